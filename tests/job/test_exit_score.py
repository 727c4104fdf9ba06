"""How a job ends that ran: 0, 1 for a bug of ours, 5 below what was expected, 124 for silence.

The bug and the hang are put in by small drivers that change one function of the real command.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from harness import Place, ended, journal, lines, load, status

pytestmark = [pytest.mark.timeout(60), pytest.mark.alone]

RAISES = """
import ftjob.device

real = ftjob.device.score_chunk

def score_chunk(stage, chunk, *rest):
    if chunk.sequence == 3 and chunk.requests[0].key:
        raise RuntimeError("a bug put in by the test")
    return real(stage, chunk, *rest)

ftjob.device.score_chunk = score_chunk
"""

HANGS_IN_SCORE = """
import time
import ftjob.device

real = ftjob.device.score_chunk

def score_chunk(stage, chunk, *rest):
    while chunk.sequence == 3 and chunk.requests[0].key:
        time.sleep(1)
    return real(stage, chunk, *rest)

ftjob.device.score_chunk = score_chunk
"""

HANGS_IN_LOAD = """
import time
import ftjob.device

def cut_tensors(*arguments):
    while True:
        time.sleep(1)

ftjob.device.cut_tensors = cut_tensors
"""


def same_as(place: Place, finished: tuple[Path, str, str]) -> None:
    """The run here holds the answers of the undisturbed one."""
    place("compare", "run", str(finished[0] / "run")).expect(0)


def test_a_bug_exits_1(
    place: Place, base: tuple[str, ...], finished: tuple[Path, str, str]
) -> None:
    arguments = (*base, "batch.max_tokens=256", "run.dir=run")
    done = place.driver("raises", RAISES)(*arguments)
    done.expect(1, "RuntimeError: a bug put in by the test", "Traceback")
    run = place.cwd / "run"
    cause = status(run, 0)["cause"]
    assert (cause["code"], cause["rank"], cause["device"]) == (1, 0, 0)
    assert cause["phase"] == "score"
    assert "in score_chunk" in cause["traceback"]
    assert "lines " in cause["request"]
    merged = load(run / "status.json")
    assert (merged["code"], merged["ranks"][0]["cause"]) == (1, cause)
    assert "in score_chunk" in (run / "logs/rank0000.log").read_text(encoding="utf-8")
    before = journal(run, 0)
    assert len(before) == status(run, 0)["rows"] > 0
    assert len(lines(run / "samples.jsonl")) == len(before)
    assert "a bug put in by the test" in (run / "report.html").read_text(encoding="utf-8")
    place(*arguments).expect(0)
    assert status(run, 1)["rows"] == 240 - len(before)
    same_as(place, finished)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory, base: tuple[str, ...]) -> Place:
    """Two folders with a run each, whose device hangs in the phase of the folder's name."""
    place = Place(tmp_path_factory.mktemp("silent"))
    arguments = (*base, "batch.max_tokens=256", "run.deadline_s=2")
    hung = {"score": HANGS_IN_SCORE, "load": HANGS_IN_LOAD}
    started = [place.driver(n, c).start(*arguments, f"run.dir={n}") for n, c in hung.items()]
    start = time.monotonic()
    for name, process in zip(hung, started, strict=True):
        ended(process).expect(124, "rank 0", "device 0", f"in {name}", "run.deadline_s")
    assert time.monotonic() - start < 10
    return place


@pytest.mark.parametrize("phase", ["score", "load"])
def test_silence_exits_124(silent: Place, phase: str) -> None:
    """Gone within the deadline, a few seconds of start-up and the report."""
    run = silent.cwd / phase
    cause = status(run, 0)["cause"]
    assert (cause["code"], cause["rank"], cause["device"]) == (124, 0, 0)
    assert cause["phase"] == phase
    assert load(run / "status.json")["code"] == 124
    assert len(journal(run, 0)) == status(run, 0)["rows"]
    assert (len(journal(run, 0)) > 0) == (phase == "score")


def test_expectation_met(finished: tuple[Path, str, str]) -> None:
    expect = load(finished[0] / "run" / "results.json")["expect"]
    assert expect == {"acc": {"minimum": 0.33, "value": pytest.approx(1 / 3), "met": True}}


def test_expectation_missed(place: Place, copied: Path, base: tuple[str, ...]) -> None:
    """The rows are all done: another expectation changes the verdict, and nothing runs again."""
    samples = (copied / "samples.jsonl").read_bytes()
    done = place(*base, "dataset.expect={acc: 0.9}", "run.dir=run")
    done.expect(5, "240 rows are done", "acc is 0.333333", "dataset.expect asks for 0.9")
    assert status(copied, 1)["rows"] == 0
    assert journal(copied, 1) == []
    assert (copied / "samples.jsonl").read_bytes() == samples
    results = load(copied / "results.json")
    assert results["code"] == load(copied / "status.json")["code"] == 5
    assert results["expect"]["acc"]["met"] is False
    assert "33.3%" in done.out
    assert place("report", "run").code == 5


def test_expectation_of_what_no_row_gave(place: Place, base: tuple[str, ...]) -> None:
    rows = place.cwd / "bad.jsonl"
    rows.write_text("{broken\n", encoding="utf-8")
    more = (f"dataset.path={rows}", "run.max_failed=1", "dataset.expect.acc=0.1", "run.dir=run")
    place(*base, *more).expect(5, "acc was not computed", "dataset.expect asks for 0.1")
