"""A rank is lost among several: those that are left wait for rank 0, which writes the report."""

from __future__ import annotations

import pytest
from harness import Place, ended, load

pytestmark = pytest.mark.timeout(120)

# Rank 2 stops answering in the middle of its work.
STOPS = """
import os, signal, time
import ftjob.device

real = ftjob.device.score_chunk


def score_chunk(stage, chunk, *rest):
    if chunk.sequence >= 0:
        time.sleep(0.05)
        if os.environ["PMI_RANK"] == "2" and chunk.sequence >= 6:
            os.kill(os.getpid(), signal.SIGSTOP)
    return real(stage, chunk, *rest)


ftjob.device.score_chunk = score_chunk
"""


def test_the_others_do_not_abort_the_report(place: Place, base: tuple[str, ...]) -> None:
    driver = place.driver("stops", STOPS)
    job = driver.ranks(3).start(*base, "batch.max_tokens=128", "run.dir=run", "run.deadline_s=3")
    done = ended(job, timeout=60)
    done.expect(124, "rank 2 in score", "no sign of life")
    assert "rank 0 in serve" not in done.err, "nobody lost rank 0"
    run = place.cwd / "run"
    assert load(run / "results.json")["cause"] in (run / "report.md").read_text(encoding="utf-8")
    assert (run / "report.html").exists()
    assert (run / "summary.txt").exists(), "the last file of a report"
