"""Which rank's word on the end of an attempt counts, and what all ranks' files add up to."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ftjob.errors import Cause
from ftjob.results.folder import RunFolder, write_json
from ftjob.results.statuses import attempt_facts, merged_status, throughput


def status(
    rank: int, code: int | None, *, lost: int | None = None, attempt: int = 0, **more: Any
) -> dict[str, Any]:
    """A status file of another host; `lost` is the rank that was given up."""
    cause = None
    if lost is not None:
        cause = Cause(code or 1, "no sign of life", lost, lost=True).as_dict()
    elif code:
        cause = Cause(code, f"cause of rank {rank}", rank).as_dict()
    return {
        "rank": rank,
        "attempt": attempt,
        "code": code,
        "cause": cause,
        "started": "2026-01-01T00:00:00+00:00",
        "heartbeat": "2026-01-01T00:00:09+00:00",
        "host": "elsewhere",
        "pid": 1,
        "rows": 10 * rank,
        **more,
    }


# statuses of the ranks -> code and rank of the cause
CASES = {
    "all done": ([status(0, 0), status(1, 0)], (0, None)),
    "a cause, told to all": ([status(0, 3), status(1, 3)], (3, 0)),
    "a cause, the rest killed by the launcher": (
        [status(0, None), status(1, 1), status(2, None)],
        (1, 1),
    ),
    "killed, and missed by MPI": ([status(0, 137, lost=0), status(1, None)], (137, 1)),
    "given up by rank 0": ([status(0, 124, lost=1), status(1, None)], (124, 1)),
    "given up, but it had a cause": ([status(0, 124, lost=1), status(1, 3)], (3, 1)),
    "all killed without a word": ([status(0, None), status(1, None)], (137, 0)),
    "drained": ([status(0, 75), status(1, 75)], (75, 0)),
    "a rank was killed, the others told to drain": ([status(0, 75), status(1, None)], (137, 1)),
    "rank 0 was given up and then aborted": (
        [status(0, None), status(1, 124, lost=0), status(2, 124, lost=0)],
        (124, 0),
    ),
    "rank 0 was killed, found in the drain after it": (
        [status(0, None), status(1, 137, lost=0)],
        (137, 0),
    ),
    "an older attempt does not count": ([status(0, 1), status(0, 0, attempt=1)], (0, None)),
}


@pytest.mark.parametrize("name", CASES)
def test_first_cause(tmp_path: Path, name: str) -> None:
    statuses, (code, culprit) = CASES[name]
    folder = RunFolder(tmp_path)
    for found in statuses:
        write_json(folder.status(found["rank"], found["attempt"]), found)
    merged = merged_status(folder)
    assert merged["code"] == code
    assert (merged["cause"] or {"rank": None})["rank"] == culprit
    assert len(merged["ranks"]) == len(statuses)


def test_a_death_without_a_word_reads_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for rank, code in itertools.zip_longest(range(2), [0]):
        write_json(folder.status(rank, 0), status(rank, code))
    merged = merged_status(folder)
    assert merged["cause"]["message"].startswith("attempt 0 ended without a status, last heartbeat")
    assert "2026-01-01T00:00:09" in merged["cause"]["message"]


def worked(attempt: int, names: tuple[str, str], **counts: int) -> dict[str, Any]:
    """A status with two devices, of two tensor ranks, at work from 1 to 3 and from 2 to 5 s."""
    spans = [(names[0], 1.0, 3.0), (names[1], 2.0, 5.0), ("load", 0.0, 1.0)]
    return {
        "attempt": attempt,
        "phases": [{"name": n, "start_s": a, "end_s": b} for n, a, b in spans],
        "devices": [
            {"spec": {"tensor": i, "last": True}, "rows": 4, "tokens": 30} | counts for i in (0, 1)
        ],
    }


def test_throughput_is_what_was_answered() -> None:
    """A stage that gives no answers may be behind, or count steps beyond a row's end."""
    run = worked(0, ("decode", "decode"))
    stages = [{"tensor": 0, "pipeline": i, "last": i == 1} for i in (0, 1)]
    run["devices"] = [
        {"spec": stages[0], "rows": 3, "tokens": 50},
        {"spec": stages[1], "rows": 4, "tokens": 40},
    ]
    told = throughput([run])
    assert (told["rows"], told["tokens"]) == (4, 40)


def test_throughput_of_scoring_and_of_generation() -> None:
    scored = throughput([worked(0, ("score", "score"))])
    assert scored == {
        "rows": 4,
        "tokens": 30,
        "seconds": 4.0,
        "rows_per_s": 1.0,
        "tokens_per_s": 7.5,
    }
    both = [worked(i, ("prefill", "decode"), input_tokens=7) for i in (0, 1)]
    assert throughput(both) == {
        "rows": 8,
        "tokens": 60,
        "input_tokens": 14,
        "seconds": 8.0,
        "rows_per_s": 1.0,
        "tokens_per_s": 7.5,
    }
    assert throughput([])["tokens_per_s"] == 0


def test_an_attempt_adds_its_ranks_up() -> None:
    ranks = [status(1, 0), status(2, 0), status(1, 5, attempt=1)]
    facts = attempt_facts(ranks, 0, 30)
    assert (facts["rows"], facts["ranks"], facts["code"]) == (30, 2, 0)
    assert attempt_facts(ranks, 1, 10)["code"] == 5


@pytest.mark.parametrize(
    ("seconds", "over", "code"),
    [(20, False, None), (68, False, None), (69, False, 137), (3600, False, 137), (20, True, 137)],
)
def test_a_rank_of_another_host_runs_as_long_as_its_heart_beats(
    tmp_path: Path, seconds: int, over: bool, code: int | None
) -> None:
    """Seen from where the job was submitted, while it runs; 60 s after the ninth second's beat it
    is taken for dead, and at once where the job is known to be over."""
    folder = RunFolder(tmp_path)
    write_json(folder.status(0, 0), status(0, None))
    write_json(folder.status(1, 0), status(1, None))
    seen = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
    merged = merged_status(folder, None if over else seen)
    assert merged["code"] == code
    if code is None:
        assert "still runs, as process 1 of elsewhere" in merged["cause"]["message"]


def test_a_rank_that_ended_is_not_taken_for_one_that_runs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.status(0, 0), status(0, 75))
    seen = datetime(2026, 1, 1, 0, 0, 10, tzinfo=timezone.utc)
    assert merged_status(folder, seen)["code"] == 75
