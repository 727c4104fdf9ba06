"""Whatever ends one rank ends all, in time, for the first cause; and then the run goes on.

Real ranks under mpirun, one of which misbehaves in the middle of its work. mpirun kills the other
ranks a moment after one dies, so that a `kill -9` leaves them no word to say: there, what counts is
that all are gone, the journal is whole and the next run resumes.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import ROWS, Ended, Place, ended, lines, load, wait_for

pytestmark = pytest.mark.timeout(120)
Finished = tuple[Path, str, str]
LIMIT_S = 10.0

# Every rank notes its process; chunks take a moment; then rank {rank} does {act}, at {at}.
MISBEHAVES = """
import os, signal, sys, time
from pathlib import Path
import ftjob.commands.follow
import ftjob.device

rank, at = int(os.environ["PMI_RANK"]), "{at}"
Path(f"pid{{rank}}").write_text(str(os.getpid()))
real = ftjob.device.score_chunk


def act():
    Path("when").write_text(str(time.time()))
    {act}


def score_chunk(stage, chunk, *rest):
    if chunk.sequence >= 0:
        time.sleep(0.05)
        if at == "score" and rank == {rank} and chunk.sequence >= 4:
            act()
    return real(stage, chunk, *rest)


def early(*arguments):
    act()


ftjob.device.score_chunk = score_chunk
if rank == {rank} and at != "score":
    setattr(ftjob.commands.follow, at, early)
"""

RAISES = "raise ValueError('put in by the test')"
HANGS = "time.sleep(600)"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
STOPPED = "os.kill(os.getpid(), signal.SIGSTOP)"
# The launcher and its helper are frozen first, so that they do not kill the survivor.
KILLED_ALONE = """
    for pid in (os.getppid(), int(Path(f"/proc/{os.getppid()}/stat").read_text().split()[3])):
        with Path("launcher").open("a") as file:
            print(pid, file=file)
        os.kill(pid, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True)
class Case:
    """What rank `rank` does and when; the exit code (None: the launcher's), and the cause's words
    (empty: it could not say any)."""

    rank: int
    act: str
    code: int | None
    words: tuple[str, ...] = ()
    at: str = "score"
    layout: tuple[str, ...] = ()


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


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Ends:
    """A job of two ranks, one of which misbehaves as `script` has it, over so many rows."""

    def __init__(
        self,
        place: Place,
        base: tuple[str, ...],
        case: Case,
        script: str = MISBEHAVES,
        rows: int = ROWS,
    ) -> None:
        self.place, self.run, self.rows = place, place.cwd / "run", rows
        driver = place.driver("misbehaves", script.format(rank=case.rank, act=case.act, at=case.at))
        self.arguments = (*base, "batch.max_tokens=128", "run.dir=run", *case.layout)
        process = driver.ranks(2).start(*self.arguments, "run.deadline_s=3")
        if case.act == KILLED_ALONE:
            wait_for((place.cwd / "when").exists, process)
            self.find_pids()
            self.check_gone()
            for pid in (place.cwd / "launcher").read_text().split():
                os.kill(int(pid), signal.SIGCONT)
        self.ended: Ended = ended(process)
        self.find_pids()

    def find_pids(self) -> None:
        """The ranks' processes, and when one of them misbehaved."""
        self.began = float((self.place.cwd / "when").read_text())
        self.pids = [int(f.read_text()) for f in sorted(self.place.cwd.glob("pid*"))]

    def check_gone(self) -> None:
        """All processes have ended in time; mpirun may end a moment before they do."""
        assert len(self.pids) == 2
        while left := [pid for pid in self.pids if not gone(pid)]:
            if time.time() - self.began > LIMIT_S:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"{len(left)} ranks were there after {LIMIT_S} s")
            time.sleep(0.01)
        assert time.time() - self.began < LIMIT_S

    def answered(self) -> int:
        """The rows of all journals, which must be whole."""
        return sum(len(lines(f)) - 1 for f in (self.run / "journal").glob("*.jsonl"))

    def check_resumes(self, finished: Finished) -> None:
        """The next run, by one rank alone, gives the answers of one that nobody disturbed."""
        before = self.answered()
        alone = [a for a in self.arguments if not a.startswith(("parallel.", "cluster."))]
        self.place(*alone).expect(0)
        if before:
            assert load(self.run / "results.json")["attempts"][-1]["rows"] == self.rows - before
        self.place("compare", "run", str(finished[0] / "run")).expect(0)


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


def check_first_cause(job: Ends, case: Case) -> None:
    """In status.json, in the report, and on stderr once. Where rank 0 is gone, `report` merges what
    the others left."""
    message = case.words[-1] if "test" in case.words[-1] else "no sign of life"
    said = [s for s in job.ended.err.splitlines() if message in s and s.startswith("ftjob: rank")]
    if case.act != KILLED_ALONE:  # a launcher woken too late drops what it was to pass on
        assert len(said) == 1, job.ended.err
    if case.rank == 0 and case.act == STOPPED:
        assert not (job.run / "status.json").exists()
        assert job.place("report", "run").code == case.code
    merged = load(job.run / "status.json")
    assert merged["code"] == case.code
    report = (job.run / "report.md").read_text(encoding="utf-8")
    html = (job.run / "report.html").read_text(encoding="utf-8")
    for word in case.words:
        assert word in merged["cause"], merged["cause"]
        assert word in report
        assert word in html


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
