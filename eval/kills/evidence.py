"""What a run folder shows of an attempt: its journals' rows, its phase, the rows in flight.

Reads the files by itself and not by ftjob's own reader, which is what is on trial; only the forming
of chunks is ftjob's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.kills.draw import Layout
from ftjob.batching import Chunk, chunks
from ftjob.tasks.base import Row, ScoreRequest

Json = dict[str, Any]
ANSWER = b'"error": null'


class Damage(Exception):
    """A journal is not whole up to its last line."""


@dataclass(frozen=True)
class Journal:
    """One rank's journal of one attempt: whole lines after the header, and what they take."""

    name: str
    attempt: int
    header: Json | None
    lines: list[bytes]
    records: list[Json]
    length: int
    torn: bool


def read_journal(path: Path, limit: int | None = None) -> Journal:
    """A journal up to byte `limit`; a last line without its end is torn and left out.

    Raises:
        Damage: for anything else that is no record.
    """
    found = re.fullmatch(r"rank\d+\.attempt(\d+)\.jsonl", path.name)
    if found is None:
        raise Damage(f"{path.name}: is no journal's name")
    data = path.read_bytes()[:limit]
    length = data.rfind(b"\n") + 1
    lines = data[:length].splitlines(keepends=True)
    try:
        values = [json.loads(line) for line in lines]
        for value in values[1:]:
            value["index"], value["key"], value["error"]
        if values:
            values[0]["fences"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damage(f"{path.name}: holds a damaged line: {error!r}") from None
    return Journal(
        path.name,
        int(found.group(1)),
        values[0] if values else None,
        lines[1:],
        values[1:],
        length,
        torn=length < len(data),
    )


def journal_sizes(run: Path) -> dict[str, int]:
    """The bytes of every journal at this moment."""
    return {path.name: path.stat().st_size for path in sorted((run / "journal").glob("*.jsonl"))}


def read_journals(run: Path, sizes: Mapping[str, int] | None = None) -> list[Journal]:
    """All journals, or those that had these sizes, up to them; by attempt, then rank."""
    sizes = journal_sizes(run) if sizes is None else sizes
    found = [read_journal(run / "journal" / name, size) for name, size in sizes.items()]
    return sorted(found, key=lambda journal: (journal.attempt, journal.name))


def fence_problems(journals: Sequence[Journal]) -> list[str]:
    """Where an attempt does not count just the whole lines of all earlier ones."""
    problems = []
    for journal in journals:
        if journal.header is not None:
            earlier = {j.name: j.length for j in journals if j.attempt < journal.attempt}
            if journal.header["fences"] != earlier:
                problems.append(f"{journal.name}: fences {journal.header['fences']}, not {earlier}")
    return problems


def answered(journals: Iterable[Journal], attempt: int | None = None) -> list[int]:
    """The row numbers the journals hold, of one attempt or all, as often as they hold them."""
    return [
        record["index"]
        for journal in journals
        if attempt is None or journal.attempt == attempt
        for record in journal.records
    ]


def form_chunks(reference: Sequence[Json], done: set[int], layout: Layout) -> list[Chunk]:
    """The chunks that an attempt forms when the rows `done` are journaled before it."""
    requests = (
        ScoreRequest(Row(r["index"], r["line"], b"", ""), "", [0] * r["tokens"], 0, 0)
        for r in reference
        if r["error"] is None and r["index"] not in done
    )
    return list(
        chunks(
            requests,
            window=layout.window,
            max_tokens=layout.max_tokens,
            by_length=layout.order == "length",
        )
    )


@dataclass(frozen=True)
class Flight:
    """Chunks that were handed out and not journaled: at most `rows` rows. `passed` chunks are
    surely among them, because later ones are journaled; `allowed` is how many there may be."""

    rows: int
    passed: int
    allowed: int


def in_flight(formed: Sequence[Chunk], done: set[int], layout: Layout) -> Flight:
    """What was in flight when the attempt had journaled the rows `done`: rank 0 hands out in
    order, a chunk for each stage of each replica and one ahead."""
    allowed = layout.data * (layout.pipeline + 1)
    missing = [[r.row.index for r in c.requests if r.row.index not in done] for c in formed]
    waiting = [number for number, rows in enumerate(missing) if rows]
    last = max((n for n, rows in enumerate(missing) if not rows), default=-1)
    return Flight(
        sum(len(missing[n]) for n in waiting[:allowed]),
        sum(n < last for n in waiting),
        allowed,
    )


def phase_at(rows: int, wanted: int, began: bool, samples: bool, report: bool) -> str:
    """The phase of a kill by what was on disk: `rows` journaled of those `wanted`, whether the
    attempt `began` to answer, and whether it had written samples.jsonl and report.html."""
    if report:
        return "leave"
    if samples:
        return "report"
    if rows == wanted:
        return "merge"
    return "score" if began else "load"
