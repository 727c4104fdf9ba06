"""One attempt as real processes: start it, watch its folder for a shot's moment, kill, wait.

Its processes are found by a word in their environment, which mpirun passes on, so that none is
missed and no other is struck.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.kills.draw import Layout, Shot
from eval.kills.evidence import ANSWER, journal_sizes
from eval.kills.work import command, environment

VARIABLE = "KILL_CAMPAIGN_JOB"
WATCH_S, GONE_S = 0.002, 0.01
LIMIT_S = 120.0


@dataclass(frozen=True)
class Process:
    """A process of the job; `rank` is None for those of the launcher."""

    pid: int
    rank: int | None
    born: int


def processes(word: str) -> list[Process]:
    """The living processes whose environment holds the word. One that waits for its parent to
    read its exit code is gone."""
    mark, found = f"{VARIABLE}={word}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            if mark not in variables:
                continue
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile, or is another user's
        ranks = [int(v[9:]) for v in variables if v.startswith(b"PMI_RANK=")]
        if fields[0] not in "ZX":
            found.append(Process(int(folder.name), ranks[0] if ranks else None, int(fields[19])))
    return sorted(found, key=lambda process: process.born)


class View:
    """What can be seen of a running attempt in its folder, cheap enough to look all the time.

    `samples` and `report` are those of this attempt: files of an earlier one do not count."""

    def __init__(self, run: Path, attempt: int) -> None:
        self._run, self._attempt = run, attempt
        self._read: dict[Path, int] = {}
        self._before = {name: self._inode(name) for name in ("samples.jsonl", "report.html")}
        self.answers = 0

    def _inode(self, name: str) -> int | None:
        try:
            return (self._run / name).stat().st_ino
        except OSError:
            return None

    def _fresh(self, name: str) -> bool:
        return self._inode(name) not in (None, self._before[name])

    @property
    def begun(self) -> bool:
        """Whether the attempt's first status file is there."""
        return any((self._run / "status").glob(f"rank*.attempt{self._attempt}.json"))

    @property
    def samples(self) -> bool:
        """Whether the attempt has merged the journals."""
        return self._fresh("samples.jsonl")

    @property
    def report(self) -> bool:
        """Whether the attempt has written its report's page."""
        return self._fresh("report.html")

    def look(self) -> int:
        """Count the rows this attempt has answered, refused rows apart."""
        for path in (self._run / "journal").glob(f"rank*.attempt{self._attempt}.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            self.answers += whole.count(ANSWER)
        return self.answers


@dataclass(frozen=True)
class Kill:
    """A kill that struck: what was on disk at that moment, and how long until all were gone."""

    sizes: dict[str, int]
    samples: bool
    report: bool
    gone_s: float | None


class Attempt:
    """One start of the job. `missing` is how many rows it has to answer; its output goes to
    `output`. Use as a context: what still runs at its end is killed."""

    def __init__(
        self,
        run: Path,
        number: int,
        layout: Layout,
        arguments: Sequence[str],
        missing: int,
        output: Path,
    ) -> None:
        self.run, self.layout, self.missing = run, layout, missing
        self.word = secrets.token_hex(8)
        self.view = View(run, number)
        self.started = time.monotonic()
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command(layout.ranks, [*arguments, *layout.overrides]),
                env=environment() | {VARIABLE: self.word},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(processes(self.word), signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    @property
    def over(self) -> bool:
        """Whether the launcher has ended, or has taken longer than any job here may."""
        return self.process.poll() is not None or self.late

    @property
    def late(self) -> bool:
        """Whether the attempt has taken longer than any job here may."""
        return time.monotonic() - self.started > LIMIT_S

    def wait(self) -> int | None:
        """The exit code of an undisturbed attempt; None where it does not end in time."""
        try:
            return self.process.wait(max(0.0, self.started + LIMIT_S - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def strike(self, shot: Shot, gone_limit_s: float) -> Kill | None:
        """Wait for the shot's moment and kill. None where the attempt was over before."""
        while not self.view.begun:
            if self.over:
                return None
            time.sleep(WATCH_S)
        victims = self._victims(shot)  # all ranks are there; looking later would take too long
        while not self._has_come(shot):
            if self.over:
                return None
            time.sleep(WATCH_S)
        end = time.monotonic() + self._delay_s(shot)
        while (rest := end - time.monotonic()) > 0:
            time.sleep(min(rest, WATCH_S))
        if self.process.poll() is not None:
            return None
        frozen = self._launcher() if shot.victim == "rank, alone" else []
        self._signal(frozen, signal.SIGSTOP)
        self._signal(victims, signal.SIGKILL)
        struck = time.monotonic()
        sizes = journal_sizes(self.run)
        seen = self.view.samples, self.view.report
        while self._lives(frozen):
            if time.monotonic() - struck > gone_limit_s:
                return Kill(sizes, *seen, gone_s=None)
            time.sleep(GONE_S)
        if self.process.returncode == 0:  # it was quicker, and has ended well
            return None
        return Kill(sizes, *seen, gone_s=time.monotonic() - struck)

    def _lives(self, frozen: Sequence[Process]) -> bool:
        """Whether a process of the job lives; one that we froze ourselves does not count."""
        if not frozen:
            return self.process.poll() is None or bool(processes(self.word))
        return bool({p.pid for p in processes(self.word)} - {p.pid for p in frozen})

    def _launcher(self) -> list[Process]:
        """mpirun and its proxies."""
        return [p for p in processes(self.word) if p.rank is None]

    def _has_come(self, shot: Shot) -> bool:
        """Whether the shot's moment can be seen on disk."""
        view = self.view
        if shot.phase == "load":
            return True
        if shot.phase == "score":
            return view.look() >= 1 + int(shot.moment * max(0, self.missing - 1))
        if shot.phase == "merge":
            return view.look() >= self.missing
        return view.samples

    def _delay_s(self, shot: Shot) -> float:
        """How long after that. Loading takes about a second a rank, most of it imports; chunks and
        the merge take milliseconds, the report a second."""
        spans = {
            "load": 0.3 + 0.8 * self.layout.ranks,
            "score": 0.010,
            "merge": 0.015,
            "report": 1.0,
        }
        return shot.delay * spans[shot.phase]

    def _victims(self, shot: Shot) -> list[Process]:
        """The processes that the shot strikes."""
        living = processes(self.word)
        if shot.victim == "all":
            return living
        if shot.victim == "launcher":
            return [p for p in living if p.pid == self.process.pid]
        # a rank's own children, git for one, have its environment and are younger
        return [p for p in living if p.rank == shot.rank][:1]

    @staticmethod
    def _signal(struck: Sequence[Process], number: signal.Signals) -> None:
        for process in struck:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue  # it was quicker
