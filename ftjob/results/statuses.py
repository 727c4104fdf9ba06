"""What the status files of all ranks and attempts say together: code, first cause, throughput.

`rank` writes the files; `summary` puts what is found here into status.json and results.json.
"""

from __future__ import annotations

import socket
from datetime import datetime
from typing import Any

from ftjob.errors import DEADLINE, DONE, DRAINED, KILLED, Cause, RunFolderError
from ftjob.results.folder import RunFolder, is_running

Json = dict[str, Any]
# The phases in which devices answer rows: teacher-forced in one, or generating in two.
SILENT_S = 60.0  # a rank that works writes a heartbeat every few seconds, one that merges none
WORKING = ("score", "prefill", "decode")


def merged_status(folder: RunFolder, now: datetime | None = None) -> Json:
    """status.json: the latest attempt's code and first cause, over all its ranks.

    A rank that left no end (killed without a word) reads as killed, unless it still runs here, or
    on another host as far as its heartbeat tells at `now`; None: the job is known to be over.
    """
    statuses = folder.statuses()
    if not statuses:
        raise RunFolderError(f"{folder.path}: no attempt has left a status there")
    for status in statuses:
        if is_running(status) or (now is not None and _beats(status, now)):
            status["cause"] = Cause(
                DONE,
                f"attempt {status['attempt']} still runs, as process {status['pid']} of "
                f"{status['host']}",
                status["rank"],
            ).as_dict()
        elif status["code"] is None:
            status["code"] = KILLED
            status["cause"] = Cause(
                KILLED,
                f"attempt {status['attempt']} ended without a status, last heartbeat "
                f"{status['heartbeat']}",
                status["rank"],
            ).as_dict()
    latest = [s for s in statuses if s["attempt"] == statuses[-1]["attempt"]]
    first = first_word(latest)
    return {
        "code": first["code"],
        "cause": first["cause"],
        "attempt": first["attempt"],
        "ranks": statuses,
    }


def _beats(status: Json, now: datetime) -> bool:
    """Whether a rank of another host gave a sign of life a moment ago."""
    if status["code"] is not None or status["host"] == socket.gethostname():
        return False
    return (now - datetime.fromisoformat(status["heartbeat"])).total_seconds() < SILENT_S


def first_word(statuses: list[Json]) -> Json:
    """Of an attempt's ranks, the one whose word on the end counts.

    A cause comes before a silence past the deadline (whom the survivors gave up, they then ended),
    that before a death without a word, that before the loss of a rank as a survivor saw it, that
    before a drain which such a death may have brought about.
    """

    def precedence(status: Json) -> tuple[int, int]:
        code, cause = status["code"], status["cause"] or {}
        if code == DONE:
            kind = 6
        elif code is None:
            kind = 5
        elif code == DRAINED:
            kind = 4
        elif cause.get("lost"):
            kind = 1 if code == DEADLINE else 3
        elif code == KILLED:
            kind = 2
        else:
            kind = 0
        return kind, status["rank"]

    return min(statuses, key=precedence)


def cause_text(cause: Json | None) -> str | None:
    """A status's cause as a sentence."""
    return None if cause is None else str(Cause(**cause))


def attempt_facts(ranks: list[Json], number: int, rows: int) -> Json:
    """One attempt over all its ranks; `rows` is what their journals hold, which the status of a
    rank that was killed does not know."""
    mine = [s for s in ranks if s["attempt"] == number]
    first = first_word(mine)
    return {
        "attempt": number,
        "code": first["code"],
        "cause": cause_text(first["cause"]),
        "rows": rows,
        "started": mine[0]["started"],
        "host": mine[0]["host"],
        "ranks": len(mine),
    }


def idle_device(ranks: list[Json], attempt: int) -> Json | None:
    """A device that did no chunk in an attempt; None where each did some."""
    mine = [d for s in ranks if s["attempt"] == attempt for d in s["devices"]]
    return next((d for d in mine if not d["chunks"]), None)


def throughput(ranks: list[Json]) -> Json:
    """Rows and real tokens per second of the time in which any device scored or generated,
    attempts added up.

    A replica of several devices does its rows together: they count once, by the device that gives
    its answers: only this one knows where a row ended, and in a drain the others may be behind.
    Where rows were generated, `tokens` are the new ones, `input_tokens` those read before.
    """
    rows = tokens = inputs = 0
    seconds = 0.0
    for attempt in {s["attempt"] for s in ranks}:
        spans = [
            (p["start_s"], p["end_s"])
            for s in ranks
            if s["attempt"] == attempt
            for p in s["phases"]
            if p["name"] in WORKING
        ]
        if spans:
            seconds += max(e for _, e in spans) - min(b for b, _ in spans)
        answering = [
            d
            for s in ranks
            if s["attempt"] == attempt
            for d in s["devices"]
            if d["spec"]["tensor"] == 0 and d["spec"]["last"]
        ]
        rows += sum(d["rows"] for d in answering)
        tokens += sum(d["tokens"] for d in answering)
        inputs += sum(d.get("input_tokens") or 0 for d in answering)
    return {
        "rows": rows,
        "tokens": tokens,
        **({"input_tokens": inputs} if inputs else {}),
        "seconds": round(seconds, 4),
        "rows_per_s": rows / seconds if seconds else 0.0,
        "tokens_per_s": tokens / seconds if seconds else 0.0,
    }
