"""Generation that ends early, on two ranks: all leave in time for the first cause; then it goes on.

As `test_fail_together`, with rows that are continued: the device that misbehaves has many chunks
under way, and the others wait for its tokens.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Place, lines, load
from misbehaving import HANGS, KILLED, RAISES, STEPS, STOPPED, Case, Ends, check_first_cause

pytestmark = pytest.mark.timeout(120)
ROWS = 62
TENSOR = ("parallel.tensor=2",)
STAGES = ("parallel.pipeline=2",)
PIPELINE = (*STAGES, "cluster.devices_per_node=2")
CAPTIONS = (
    "model=demo_t5",
    "dataset=demo_en_de",
    "decode.beams=2",
    "decode.max_new_tokens=20",
    "batch.lanes=16",
)
RAISED, SILENT = "put in by the test", "no sign of life"
CASES = {
    "a device raises": Case(
        1, RAISES, 1, ("rank 1 device 0", "in decode", "at lines", RAISED), at="0"
    ),
    "a device of a tensor group raises": Case(
        0, RAISES, 1, ("rank 0 device 0", "in decode", "at lines", RAISED), at="0", layout=TENSOR
    ),
    "the last stage raises": Case(
        1, RAISES, 1, ("rank 1 device 0", "in decode", "at lines", RAISED), at="0", layout=STAGES
    ),
    "a stage beside its other one raises": Case(
        1, RAISES, 1, ("rank 1 device 1", "in decode", "at lines", RAISED), at="1", layout=PIPELINE
    ),
    "a device hangs": Case(
        1,
        HANGS,
        124,
        ("rank 1 device 0", "in decode", "at lines", SILENT, "run.deadline_s"),
        at="0",
    ),
    "a device of a tensor group hangs": Case(
        1, HANGS, 124, ("rank 1 device 0", "in decode", "at lines", SILENT), at="0", layout=TENSOR
    ),
    "the last stage hangs": Case(
        1, HANGS, 124, ("rank 1 device 0", "in decode", "at lines", SILENT), at="0", layout=STAGES
    ),
    "the first stage hangs": Case(
        0, HANGS, 124, ("rank 0 device 0", "in decode", "at lines", SILENT), at="0", layout=STAGES
    ),
    "a rank of stages stops answering": Case(
        1, STOPPED, 124, ("rank 1", "in decode", SILENT), at="0", layout=STAGES
    ),
    "a rank of a tensor group is killed": Case(1, KILLED, None, at="0", layout=TENSOR),
    "a rank of stages is killed": Case(0, KILLED, None, at="0", layout=STAGES),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run to the end."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    done = place(*CAPTIONS, "run.dir=run").expect(0)
    return place.cwd, done.out, done.err


@pytest.mark.parametrize("name", CASES)
def test_case(place: Place, undisturbed: tuple[Path, str, str], name: str) -> None:
    case = CASES[name]
    job = Ends(place, CAPTIONS, case, STEPS, ROWS)
    job.check_gone()
    if case.code is None:
        assert job.ended.code not in (0, 75)
        assert job.place("report", "run").code == 137
        assert "ended without a status" in load(job.run / "status.json")["cause"]
    else:
        assert job.ended.code == case.code, job.ended.err
        check_first_cause(job, case)
    assert 0 < job.answered() < ROWS
    job.check_resumes(undisturbed)


@pytest.mark.parametrize("layout", [(), STAGES, TENSOR], ids=str)
def test_a_drain_of_one_rank_drains_all(
    place: Place, undisturbed: tuple[Path, str, str], layout: tuple[str, ...]
) -> None:
    """TERM at rank 1, which leads nothing: rows under way are finished on both, and it goes on."""
    case = Case(1, "os.kill(os.getpid(), signal.SIGTERM)", 75, at="0", layout=layout)
    job = Ends(place, CAPTIONS, case, STEPS, ROWS)
    job.check_gone()
    job.ended.expect(75, "drained on SIGTERM")
    merged = load(job.run / "status.json")
    assert [s["code"] for s in merged["ranks"]] == [75, 75]
    assert 12 < job.answered() < ROWS
    assert len(lines(job.run / "samples.jsonl")) == job.answered()
    job.check_resumes(undisturbed)
