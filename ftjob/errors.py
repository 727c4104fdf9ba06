"""The exceptions a user can meet, and the exit code each one ends the job with.

Whatever goes wrong anywhere becomes one of these, travels to the rank's main thread as a
`Cause`, and leaves through `__main__` as an exit code that a batch script can act on.
"""

from __future__ import annotations

import difflib
import signal
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

DONE = 0
BUG = 1
CONFIG_REFUSED = 2
UNREADABLE = 3
TOO_MANY_FAILED = 4
BELOW_EXPECTATION = 5
DRAINED = 75
DEADLINE = 124
INTERRUPTED = 128 + signal.SIGINT
KILLED = 128 + signal.SIGKILL

EXIT_CODES: Mapping[int, str] = MappingProxyType(
    {
        DONE: "done",
        BUG: "a bug of ftjob's, two attempts in a row without a new row, or broken devices",
        CONFIG_REFUSED: "configuration refused",
        UNREADABLE: "checkpoint or data unreadable, every row left out as too long, or the run "
        "folder cannot be written",
        TOO_MANY_FAILED: "finished, but more failed requests than run.max_failed",
        BELOW_EXPECTATION: "below dataset.expect, or compare found other answers",
        DRAINED: "drained on request; run the same command again to go on",
        DEADLINE: "deadline passed",
        INTERRUPTED: "interrupted (128 + signal)",
        KILLED: "killed without a word (128 + signal)",
    }
)


class JobError(Exception):
    """An error with an exit code. Its text is shown to the user as it is, without a traceback."""

    code = BUG


class ConfigError(JobError):
    """The configuration is impossible, or names a key or value that does not exist."""

    code = CONFIG_REFUSED


class WrongWorld(ConfigError):
    """MPI and the launcher disagree about the ranks; every rank finds so by itself."""


class CheckpointError(JobError):
    """A checkpoint or tokenizer is absent, damaged or does not fit the model."""

    code = UNREADABLE


class DataError(JobError):
    """The dataset as a whole cannot be read. One bad row is an error record instead."""

    code = UNREADABLE


class RunFolderError(JobError):
    """The run folder cannot be used: it is damaged, belongs to other answers, or takes no more."""

    code = UNREADABLE


class ResumeRefused(JobError):
    """The run folder holds answers of another model or setting."""

    code = CONFIG_REFUSED


class NoProgress(JobError):
    """A job that is requeued again and again answers no row."""

    code = BUG


class DeadlinePassed(JobError):
    """Something did not answer within `run.deadline_s`."""

    code = DEADLINE


class BrokenLink(JobError):
    """What one device sent or a group added up came out wrong: no answer can be trusted."""

    code = BUG


class PeerLost(JobError):
    """MPI cannot reach another rank any more: that one is gone, and its word tells why."""

    code = KILLED


class Stopped(JobError):
    """A signal ended the run early; what was done is in the journal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Cause:
    """The first thing that went wrong: what status.json, the log and the report show.

    `traceback` is kept for bugs only (code 1); a user's mistake needs none. `lost` says that
    a rank is gone, so that what that one left itself tells more.
    """

    code: int
    message: str
    rank: int = 0
    device: int | None = None
    phase: str | None = None
    request: str | None = None
    traceback: str | None = None
    lost: bool = False

    def __str__(self) -> str:
        where = [f"rank {self.rank}"]
        if self.device is not None:
            where.append(f"device {self.device}")
        if self.phase:
            where.append(f"in {self.phase}")
        if self.request:
            where.append(f"at {self.request}")
        return f"{' '.join(where)}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def cause_of(error: Exception, rank: int, phase: str) -> Cause:
    """The cause that an error of a rank's main thread is; a bug keeps its traceback."""
    if isinstance(error, JobError):
        lost = isinstance(error, PeerLost)
        return Cause(error.code, str(error), rank, phase=phase, lost=lost)
    trace = "".join(traceback.format_exception(error))
    return Cause(BUG, f"{type(error).__name__}: {error}", rank, phase=phase, traceback=trace)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written inside is `path`, of a run folder.

    Raises:
        RunFolderError: where the disk is full or read-only, or fails, or nobody may write there;
            naming another file where the error does, which then was one to read.
    """
    try:
        yield
    except FileExistsError:  # somebody else's file: no fault of the disk
        raise
    except OSError as error:
        name = error.filename
        if isinstance(name, str) and not _is_to_write(Path(name), path):
            raise unreadable(Path(name), error) from None
        raise RunFolderError(f"{path}: cannot be written: {error.strerror or error}") from None


def _is_to_write(name: Path, path: Path) -> bool:
    """Whether who writes `path` also writes `name`: the file itself or a hidden one beside that
    takes its place, and the folders they lie in."""
    near = name.parent == path.parent and name.name.startswith(f".{path.name}.")
    return near or name == path or name in path.parents


def unreadable(path: Path, error: OSError) -> RunFolderError:
    """What to raise where a file of a run folder cannot be read."""
    return RunFolderError(f"{path}: cannot be read: {error.strerror or error}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What is read inside is `path`, of a run folder.

    Raises:
        RunFolderError: where it cannot be.
    """
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from None


def nearest(word: str, legal: Iterable[str]) -> str:
    """A sentence naming the legal choice closest to `word`, and the others if they are few."""
    choices = sorted(legal)
    listed = choices if len(choices) <= 24 else [*choices[:24], "..."]
    return f"{closest(word, choices)}Known: {', '.join(listed)}."


def closest(word: str, choices: Iterable[str], prefix: str = "") -> str:
    """The question whether the choice closest to `word` is meant, and a space; empty where none is
    close. `prefix` is what all of them, and the word, have in common."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"Did you mean {prefix}{close[0]}? " if close else ""
