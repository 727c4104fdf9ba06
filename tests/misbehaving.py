"""Jobs in which a rank or a device thread misbehaves: what it does, and what must come of it.

Real processes that a driver script changes first. All must be gone in time, for the first cause,
with a whole journal; and then the run goes on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import ROWS, Ended, Place, ended, lines, load, wait_for

Finished = tuple[Path, str, str]
# Seconds in which all are gone, with a run.deadline_s of so many.
LIMIT_S, DEADLINE_S = 10.0, 3.0

# Every rank notes its process; chunks take a moment; then rank {rank} does {act}, at {at}.
MISBEHAVES = """
import os, signal, sys, time
from pathlib import Path
import ftjob.commands.follow
import ftjob.device
from ftjob.launch.world import detect_world

rank, at = detect_world(os.environ).rank, "{at}"
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

# Device {at} of rank {rank} does {act} in a step, when rows have entered in place of others.
STEPS = """
import os, signal, time
from pathlib import Path
from ftjob.decode.loop import Generator
from ftjob.launch.world import detect_world

rank, when = detect_world(os.environ).rank, Path("when")
Path(f"pid{{rank}}").write_text(str(os.getpid()))
real = Generator._step


def act():
    when.write_text(str(time.time()))
    {act}


def step(self, batch):
    if batch.books.cohorts[0].rows[0].key:
        time.sleep(0.01)
        due = any(cohort.sequence >= 8 for cohort in batch.books.cohorts)
        if due and (rank, self._spec.local) == ({rank}, {at}) and not when.exists():
            act()
    return real(self, batch)


Generator._step = step
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


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def two_ranks(driver: Place) -> Place:
    """The driver as two ranks."""
    return driver.ranks(2)


class Ends:
    """A job, of two ranks unless `launch` says else, one of which misbehaves as `script` has it,
    over so many rows."""

    def __init__(
        self,
        place: Place,
        base: tuple[str, ...],
        case: Case,
        script: str = MISBEHAVES,
        rows: int = ROWS,
        launch: Callable[[Place], Place] = two_ranks,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.place, self.run, self.rows, self.launch = place, place.cwd / "run", rows, launch
        self.limit_s = LIMIT_S - DEADLINE_S + deadline_s
        driver = place.driver("misbehaves", script.format(rank=case.rank, act=case.act, at=case.at))
        self.arguments = (*base, "batch.max_tokens=128", "run.dir=run", *case.layout)
        process = launch(driver).start(*self.arguments, f"run.deadline_s={deadline_s}")
        if case.act == KILLED_ALONE:
            wait_for((place.cwd / "when").exists, process)
            self.find_pids()
            self.check_gone()
            for pid in (place.cwd / "launcher").read_text().split():
                os.kill(int(pid), signal.SIGCONT)
        self.ended: Ended = ended(process, timeout=100)
        self.find_pids()

    def find_pids(self) -> None:
        """The ranks' processes, and when one of them misbehaved."""
        when = self.place.cwd / "when"
        assert when.exists(), f"nobody misbehaved: {self.ended.code}\n{self.ended.err}"
        self.began = float(when.read_text())
        self.pids = [int(f.read_text()) for f in sorted(self.place.cwd.glob("pid*"))]

    def check_gone(self, ranks: int = 2) -> None:
        """All processes have ended in time; mpirun may end a moment before they do."""
        assert len(self.pids) == ranks
        while left := [pid for pid in self.pids if not gone(pid)]:
            if time.time() - self.began > self.limit_s:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"{len(left)} ranks were there after {self.limit_s} s")
            time.sleep(0.01)
        assert time.time() - self.began < self.limit_s

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


def check_first_cause(job: Ends, case: Case) -> None:
    """In status.json, in the report, and on stderr once. Where rank 0 is gone, `report` merges what
    the others left."""
    told = any(word in case.words[-1] for word in ("test", "run.deadline_s"))
    message = case.words[-1] if told else "no sign of life"
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
