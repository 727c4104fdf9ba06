"""What ranks tell each other, and the `Link` that carries it: rank 0 leads, the others follow.

Rank 0 starts the others with `Start`, hands out `Work`, hears of it with `Done`, and ends everybody
with `Stop` and `Leave`; whoever fails says `Trouble`. `comm/mpi.py` carries this between
processes, `LocalLink` within one. Nothing here blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ftjob.batching import Chunk
from ftjob.errors import Cause
from ftjob.plan import Machine

# Seconds between two signs of life of a rank.
BEAT_S = 0.5


@dataclass(frozen=True)
class Hello:
    """The first word of a rank: where it runs, its GPUs and the bytes that are free on each, or
    None where nobody says, and what it may use of the host's cores."""

    host: str
    gpus: int
    free_bytes: tuple[int, ...] | None
    cores: frozenset[int]
    host_cores: int


@dataclass(frozen=True)
class Start:
    """What a rank needs to build its part: rank 0 composed the configuration and made the folder.

    `origin` is when rank 0's process started, on the clock of time.time(); `sharing` is, by rank,
    the number of CPU devices that share that rank's cores; `meeting` is where GPUs of several ranks
    find each other, (host, port) of rank 0's store.
    """

    config: dict[str, Any]
    machine: Machine
    sharing: tuple[int, ...]
    folder: str
    attempt: int
    identity: str
    fences: dict[str, int]
    origin: float
    meeting: tuple[str, int] | None = None


@dataclass(frozen=True)
class Work:
    """A chunk for a replica; every rank that has devices of the replica gets it. None: there is
    no more to come."""

    replica: int
    chunk: Chunk | None


@dataclass(frozen=True)
class Done:
    """The answers to so many rows of a replica's chunk are on disk."""

    replica: int
    sequence: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class Beat:
    """A sign of life. `stuck_s`: how long every device with work there has been waiting for
    another one; None where none has work."""

    stuck_s: float | None = None


@dataclass(frozen=True)
class Asked:
    """A stop signal reached the rank."""

    signal: int


@dataclass(frozen=True)
class Trouble:
    """The rank cannot go on."""

    cause: Cause


@dataclass(frozen=True)
class Stop:
    """No more work: because all is done (no cause), or because of the job's first cause."""

    cause: Cause | None


@dataclass(frozen=True)
class Closed:
    """The rank's journal and status are on disk."""


@dataclass(frozen=True)
class Leave:
    """The job has ended with this code. Ranks meet before they go, unless one is lost."""

    code: int
    meet: bool


Message = Hello | Start | Work | Done | Beat | Asked | Trouble | Stop | Closed | Leave


class Link(Protocol):
    """One rank's end of the control messages. Only the main thread uses it, but for `keepalive`."""

    rank: int
    size: int
    data: Any  # what carries tensors between ranks; `comm` knows what it is

    def send(self, to: int, message: Message) -> None:
        """Send without waiting. Messages to one rank arrive in order."""

    def poll(self) -> list[tuple[int, Message]]:
        """What has arrived, oldest first, with the sender."""

    def put_back(self, messages: list[tuple[int, Message]]) -> None:
        """Leave messages to the next `poll`, before all others."""

    def beat(self, stuck_s: float | None) -> None:
        """Send a sign of life if one is due: rank 0 to all, the others to rank 0."""

    def silent_s(self, rank: int) -> float:
        """Seconds of listening (by `poll`) since anything came from a rank."""

    def keepalive(self) -> Any:
        """A context in which signs of life are sent although the main thread is busy."""

    def leave(self, code: int, meet: bool, limit_s: float) -> None:
        """End this process's part: meet the others within `limit_s`, or abort all of them. Between
        processes it returns only where `code` is 0."""


class LocalLink:
    """A world of one rank: it talks to itself."""

    rank = 0
    size = 1
    data = None

    def __init__(self) -> None:
        self._mail: deque[Message] = deque()

    def send(self, to: int, message: Message) -> None:
        """Keep it for the next `poll`."""
        self._mail.append(message)

    def poll(self) -> list[tuple[int, Message]]:
        """What was sent since."""
        found = [(0, message) for message in self._mail]
        self._mail.clear()
        return found

    def put_back(self, messages: list[tuple[int, Message]]) -> None:
        """Keep them for the next `poll`."""
        self._mail.extendleft(message for _, message in reversed(messages))

    def beat(self, stuck_s: float | None) -> None:
        """Nobody listens."""

    def silent_s(self, rank: int) -> float:
        """One always hears oneself."""
        return 0.0

    @contextmanager
    def keepalive(self) -> Iterator[None]:
        """Nobody listens."""
        yield

    def leave(self, code: int, meet: bool, limit_s: float) -> None:
        """Nobody waits."""
