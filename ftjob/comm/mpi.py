"""Tensors between ranks over MPI: the `Exchange` of a tensor group, the `Courier` of pipes.

Every operation is non-blocking and polled, so that a rank that gives up is never held. Tensors go
as bytes, on a communicator of their own; MPI moves data, it never adds. `groups` makes these where
a group or a pipe crosses ranks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ftjob.comm import Halted, Pulse
from ftjob.comm.threads import Pipe
from ftjob.comm.tree import Span
from ftjob.errors import PeerLost

IDLE_S = 0.0002
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)


def _bytes(x: torch.Tensor) -> Any:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return x.view(-1).view(torch.uint8).numpy()


class Exchange:
    """The leader's way to the other processes of a tensor group. `held` tells, by rank, which
    logical ranks of the group it holds; `tag` is the group's own."""

    def __init__(self, data: Any, held: dict[int, Span], tag: int) -> None:
        self._data, self._held, self._tag = data, held, tag

    def swap(
        self, mine: dict[Span, torch.Tensor], spans: Callable[[Span], list[Span]], pulse: Pulse
    ) -> dict[Span, torch.Tensor]:
        """Give `mine` to every other process and get the `spans` of each; all of one shape."""
        like = next(iter(mine.values()))
        theirs: dict[Span, torch.Tensor] = {}
        requests = []
        for rank, held in self._held.items():
            for span in spans(held):
                theirs[span] = torch.empty_like(like)
                requests.append(self._data.Irecv(_bytes(theirs[span]), rank, self._tag))
        with reaching():
            for rank in self._held:
                requests += [self._data.Isend(_bytes(x), rank, self._tag) for x in mine.values()]
        with pulse.waiting():
            _finish(requests, pulse)
        return theirs


def _finish(requests: Sequence[Any], pulse: Pulse) -> None:
    """Poll until all requests are complete."""
    waiting = list(requests)
    tries = 0
    while waiting := [request for request in waiting if not _complete(request)]:
        pulse()
        tries += 1
        time.sleep(0 if tries < 50 else IDLE_S)


def _complete(request: Any) -> bool:
    """Whether a request is complete."""
    with reaching():
        return bool(request.Test())


@contextmanager
def reaching() -> Iterator[None]:
    """Around what MPI does with another rank.

    Raises:
        PeerLost: where it cannot. libfabric refuses to send to a rank that has gone; a receiver may
            read the sender's memory, and finds it gone before anybody has noticed.
    """
    try:
        yield
    except RuntimeError as error:  # mpi4py's own is one
        reason = str(error).splitlines()[-1]
        raise PeerLost(f"another rank can no longer be reached: {reason}") from None


@dataclass
class Lane:
    """A pipe to or from a stage on another rank."""

    pipe: Pipe
    peer: int
    tag: int
    outgoing: bool
    requests: list[Any] = field(default_factory=list)
    header: torch.Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.int64))
    body: torch.Tensor | None = None


class Courier(threading.Thread):
    """Carries the activations of all pipes that cross to other ranks, while devices compute.

    Each tensor [rows, columns] travels as a header (sequence, dtype, rows, columns) and a body.
    """

    def __init__(self, data: Any, lanes: Sequence[Lane], pulse: Pulse) -> None:
        super().__init__(name="courier", daemon=True)
        self._data, self._lanes, self._pulse = data, lanes, pulse
        self._over = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        """Carry until `finish`, and then what is still on its way to others, who may need it to
        end; or until the rank has given up."""
        try:
            while not (self._over.is_set() and self._delivered()):
                self._pulse()
                moved = [self._step(lane) for lane in self._lanes]
                if not any(moved):
                    time.sleep(IDLE_S)
        except Halted:
            pass
        except Exception as error:  # the main thread looks at it
            self.error = error

    def finish(self) -> None:
        """Let the thread end: the devices have, so nothing is put or taken any more."""
        self._over.set()

    def _delivered(self) -> bool:
        outgoing = (lane for lane in self._lanes if lane.outgoing)
        return all(lane.pipe.empty and not lane.requests for lane in outgoing)

    def _step(self, lane: Lane) -> bool:
        """Move a lane on. False where there was nothing to do."""
        if lane.requests:
            lane.requests = [r for r in lane.requests if not _complete(r)]
            if lane.requests:
                return False
            return lane.outgoing or self._received(lane)
        return self._send_next(lane) if lane.outgoing else self._receive_next(lane)

    def _send_next(self, lane: Lane) -> bool:
        taken = lane.pipe.poll()
        if taken is None:
            return False
        sequence, x = taken
        lane.header = torch.tensor([sequence, DTYPES.index(x.dtype), *x.shape])
        lane.body = x.contiguous()
        parts = (_bytes(lane.header), _bytes(lane.body))
        with reaching():
            lane.requests = [self._data.Isend(part, lane.peer, lane.tag) for part in parts]
        return True

    def _receive_next(self, lane: Lane) -> bool:
        with reaching():
            mail = self._data.Improbe(lane.peer, lane.tag) if lane.pipe.room else None
        if mail is None:
            return False
        lane.body = None
        lane.requests = [mail.Irecv(_bytes(lane.header))]
        return True

    def _received(self, lane: Lane) -> bool:
        """A header or a body is there: wait for its body, or hand it to the device."""
        sequence, dtype, *shape = lane.header.tolist()
        if lane.body is None:
            lane.body = torch.empty(shape, dtype=DTYPES[dtype])
            lane.requests = [self._data.Irecv(_bytes(lane.body), lane.peer, lane.tag)]
        else:
            lane.pipe.put(sequence, lane.body, self._pulse)
            lane.body = None
        return True
