"""One run folder serves one job at a time: a second one is refused, and disturbs nothing.

`report` may look at a running job; what it says is not yet the end.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import ROWS, SLOW, Place, ended, journal, lines, load, wait_for

pytestmark = pytest.mark.timeout(60)


def test_second_job_in_a_running_folder(
    place: Place, base: tuple[str, ...], finished: tuple[Path, str, str]
) -> None:
    run, arguments = place.cwd / "run", (*base, "batch.max_tokens=64", "run.dir=run")
    process = place.driver("slow", SLOW).start(*arguments)
    file = run / "journal" / "rank0000.attempt0.jsonl"
    wait_for(lambda: file.exists() and file.read_bytes().count(b"\n") > 2, process)
    place(*arguments).expect(2, "run.dir=run", "attempt 0 still runs", str(process.pid))
    looked = place("report", "run").expect(0)
    assert process.poll() is None
    assert "still runs" in looked.out
    assert load(run / "status.json")["code"] is None
    assert 0 < len(lines(run / "samples.jsonl")) < ROWS
    ended(process).expect(0)
    assert len(journal(run, 0)) == ROWS
    assert list((run / "journal").glob("*.jsonl")) == [file]
    place("compare", "run", str(finished[0] / "run")).expect(0)


def test_two_jobs_started_at_once(
    place: Place, base: tuple[str, ...], finished: tuple[Path, str, str]
) -> None:
    """Whoever comes second, one finishes and the other is refused, however far the first got."""
    both = [place.start(*base, "run.dir=run") for _ in range(2)]
    first, second = sorted((ended(p) for p in both), key=lambda e: e.code)
    first.expect(0)
    second.expect(2, "run.dir=run")
    assert "Traceback" not in second.err
    place("compare", "run", str(finished[0] / "run")).expect(0)
    assert load(place.cwd / "run" / "status.json")["code"] == 0


# After its first chunks, this attempt sees that another host, thinking it dead, has begun one.
OVERTAKEN = """
import json
from pathlib import Path
import ftjob.device

real = ftjob.device.score_chunk


def score_chunk(stage, chunk, *rest):
    if chunk.sequence == 4:
        old = json.loads(Path("run/status/rank0000.attempt0.json").read_text())
        new = json.dumps({**old, "attempt": 1, "host": "elsewhere"})
        Path("run/status/rank0000.attempt1.json").write_text(new)
    return real(stage, chunk, *rest)


ftjob.device.score_chunk = score_chunk
"""


def test_an_attempt_that_was_thought_dead(
    place: Place, base: tuple[str, ...], finished: tuple[Path, str, str]
) -> None:
    """Cut off from its cluster, it works on: it must not report over the attempt that took over."""
    run, arguments = place.cwd / "run", (*base, "batch.max_tokens=256", "run.dir=run")
    place.driver("overtaken", OVERTAKEN)(*arguments).expect(2, "attempt 1 began there meanwhile")
    assert not (run / "results.json").exists()
    assert not (run / "status.json").exists()
    assert load(run / "status" / "rank0000.attempt1.json")["host"] == "elsewhere"
    place(*arguments).expect(0)
    place("compare", "run", str(finished[0] / "run")).expect(0)
