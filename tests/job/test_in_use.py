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
    run, arguments = place.cwd / "run", (*base, "batch.max_tokens=256", "run.dir=run")
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
    assert [f.name for f in (run / "journal").iterdir()] == [file.name]
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
