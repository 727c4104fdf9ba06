"""Whatever ends one rank ends all, in time, for the first cause; and then the run goes on.

Real ranks under mpirun, one of which misbehaves in the middle of its work. mpirun kills the other
ranks a moment after one dies, so that a `kill -9` leaves them no word to say: there, what counts is
that all are gone, the journal is whole and the next run resumes.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from harness import ROWS, Place, ended, load, wait_for
from misbehaving import (
    HANGS,
    KILLED,
    KILLED_ALONE,
    LIMIT_S,
    MISBEHAVES,
    RAISES,
    STOPPED,
    Case,
    Ends,
    Finished,
    check_first_cause,
)

pytestmark = pytest.mark.timeout(120)

TENSOR = ("parallel.tensor=2",)
PIPELINE = ("parallel.pipeline=2", "cluster.devices_per_node=2")
CASES = {
    "a device thread raises": Case(
        1, RAISES, 1, ("rank 1 device 0", "in score", "at lines", "put in by the test")
    ),
    "a device thread of a tensor group raises": Case(
        1, RAISES, 1, ("rank 1 device 0", "put in by the test"), layout=TENSOR
    ),
    "a device thread of rank 0 raises": Case(
        0, RAISES, 1, ("rank 0 device 0", "at lines", "put in by the test"), layout=PIPELINE
    ),
    "a device thread hangs": Case(
        1, HANGS, 124, ("rank 1 device 0", "in score", "no sign of life", "run.deadline_s")
    ),
    "a member of a tensor group hangs": Case(
        1, HANGS, 124, ("rank 1 device 0", "no sign of life"), layout=TENSOR
    ),
    "a rank stops answering": Case(1, STOPPED, 124, ("rank 1", "no sign of life", "in score")),
    "a rank of a pipeline stops answering": Case(
        1, STOPPED, 124, ("rank 1", "no sign of life"), layout=("parallel.pipeline=2",)
    ),
    "rank 0 stops answering": Case(0, STOPPED, 124, ("rank 0", "no sign of life")),
    "a rank is killed": Case(1, KILLED, None),
    "a rank is killed and its launcher sleeps": Case(
        1, KILLED_ALONE, 124, ("rank 1", "in score", "no sign of life")
    ),
    "rank 0 is killed": Case(0, KILLED, None, layout=TENSOR),
    "a rank raises before the first message": Case(
        1, RAISES, 1, ("rank 1 in prepare", "put in by the test"), at="hello"
    ),
    "a rank raises before the first collective": Case(
        1, RAISES, 1, ("rank 1 in prepare", "put in by the test"), at="prepare", layout=TENSOR
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(place: Place, base: tuple[str, ...], finished: Finished, name: str) -> None:
    case = CASES[name]
    job = Ends(place, base, case)
    job.check_gone()
    started = (job.run / "journal").exists()
    assert started == (case.at != "hello"), "only a rank's first word comes before the run folder"
    if case.words and started:
        check_first_cause(job, case)
    elif case.words:
        assert all(word in job.ended.err for word in case.words), job.ended.err
    if case.act == KILLED_ALONE:
        pass  # the launcher itself was disturbed
    elif case.code is not None:
        assert job.ended.code == case.code, job.ended.err
    else:
        assert job.ended.code not in (0, 75)
        assert not (job.run / "report.html").exists()
        assert job.place("report", "run").code == 137
        assert "ended without a status" in load(job.run / "status.json")["cause"]
    if case.at == "score":
        assert 0 < job.answered() < ROWS
    if started:
        job.check_resumes(finished)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_drain_of_one_rank_drains_all(
    place: Place, base: tuple[str, ...], finished: Finished, asked: int
) -> None:
    """TERM at either rank: chunks in flight are finished, all leave with 75, and it goes on."""
    case = Case(asked, "os.kill(os.getpid(), signal.SIGTERM)", 75)
    job = Ends(place, base, case)
    job.check_gone()
    job.ended.expect(75, "drained on SIGTERM")
    merged = load(job.run / "status.json")
    assert [s["code"] for s in merged["ranks"]] == [75, 75]
    assert 0 < job.answered() < ROWS
    job.check_resumes(finished)


def test_two_worlds_of_one(place: Place) -> None:
    """A wrong `srun --mpi` starts every task as a world of its own: nobody may begin."""
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    start = time.monotonic()
    tasks = [
        place.start("dataset.limit=2", "run.dir=run", env={**step, "SLURM_PROCID": str(rank)})
        for rank in (0, 1)
    ]
    first, second = (ended(task) for task in tasks)
    assert time.monotonic() - start < LIMIT_S
    first.expect(2, "rank 0 of 2", "rank 0 of 1", "--mpi")
    second.expect(2)
    assert second.err == ""
    assert not (place.cwd / "run").exists()


def test_a_rank_that_never_comes(place: Place, base: tuple[str, ...]) -> None:
    """It died before MPI began: MPI itself would wait for it for ever."""
    dies = "import os, sys\nif os.environ['PMI_RANK'] == '1': sys.exit(0)"
    start = time.monotonic()
    done = place.driver("dies", dies).ranks(2)(*base, "run.dir=run", "run.deadline_s=3")
    assert time.monotonic() - start < LIMIT_S
    done.expect(124, "not all ranks have come", "run.deadline_s")
    assert not (place.cwd / "run").exists()


@pytest.mark.parametrize("asleep", [0, 1])
def test_a_rank_that_was_only_asleep_goes_on(
    place: Place, base: tuple[str, ...], finished: Finished, asleep: int
) -> None:
    """Stopped for less than the deadline: nobody gives it up, and it gives nobody up."""
    driver = place.driver("sleeps", MISBEHAVES.format(rank=-1, act="pass", at="score"))
    process = driver.ranks(2).start(
        *base, "batch.max_tokens=128", "run.dir=run", "parallel.tensor=2", "run.deadline_s=6"
    )
    journal = place.cwd / "run" / "journal" / "rank0000.attempt0.jsonl"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 4, process)
    pid = int((place.cwd / f"pid{asleep}").read_text())
    os.kill(pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(pid, signal.SIGCONT)
    ended(process).expect(0)
    place("compare", "run", str(finished[0] / "run")).expect(0)
