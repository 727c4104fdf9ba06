"""How activations go from a GPU to another: within a process from memory to memory, between
processes by NCCL. `groups` makes a `Way` of one kind or the other, `device` and `decode/loop` use
it.

Neither is part of a captured step. A stage's steps wait for those of the next one, whose tokens
come back to it: captured, a send would hold up its own stage until the receiver is there, and a
ring of stages would wait for itself. Both ways send on a stream of their own and hold up nobody:
a copy between two devices on CUDA's null stream, which they compute on, would wait for both and
let neither go on beside it (CUDA C++ programming guide, peer-to-peer memory copy).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from ftjob.comm import Form, Pulse
from ftjob.comm.nccl import Meet
from ftjob.comm.threads import Pipe


class NearWay(Pipe):
    """The `Way` to a GPU of this process: the sender copies into its memory."""

    def __init__(self, capacity: int, target: torch.device) -> None:
        super().__init__(capacity)
        self._target = target
        self._aside: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        self._copied: deque[torch.cuda.Event] = deque()

    def put(self, sequence: int, x: torch.Tensor, pulse: Pulse) -> None:
        """Copy behind what the device is at, while it goes on, and hand over."""
        if self._aside is None:
            self._aside = (_stream(x.device), _stream(self._target))
        here, there = self._aside
        x = x.clone()  # what a captured step gives, or a stage adds to, is written over
        here.wait_stream(torch.cuda.current_stream(x.device))
        # torch copies on the current stream of the source's device, when that of the target's has
        # come as far, and has the latter wait for the copy
        with torch.cuda.stream(there), torch.cuda.stream(here):
            y = x.to(self._target, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(here)
        x.record_stream(here)
        self._copied.append(copied)
        super().put(sequence, y, pulse)

    def take(self, sequence: int, pulse: Pulse, form: Form) -> torch.Tensor:
        """What comes, as soon as the sender's host has handed it over; the device waits for the
        copy by itself."""
        x = super().take(sequence, pulse, form)
        if (tuple(x.shape), x.dtype) != form:
            raise RuntimeError(f"chunk {sequence}: expected {form}, got {tuple(x.shape)} {x.dtype}")
        stream = torch.cuda.current_stream(self._target)
        self._copied.popleft().wait(stream)
        x.record_stream(stream)
        return x


class FarWay:
    """The `Way` to or from a GPU of another process. `outgoing` says which end this is."""

    def __init__(self, meet: Meet, name: str, outgoing: bool) -> None:
        self._meet, self._name, self._outgoing = meet, name, outgoing
        self._group: Any = None
        self._aside: torch.cuda.Stream | None = None

    def connect(self, device: torch.device, pulse: Pulse) -> None:
        """Meet the other end; a first number goes over, so that nothing is made ready later."""
        self._aside = _stream(device)
        self._group = self._meet.group(self._name, 0 if self._outgoing else 1, 2)
        first = torch.ones(1, device=device)
        with pulse.waiting():
            if self._outgoing:
                self.put(-1, first, pulse)
            else:
                self.take(-1, pulse, ((1,), first.dtype))

    def put(self, sequence: int, x: torch.Tensor, pulse: Pulse) -> None:
        """Send behind what the device is at, while it goes on."""
        assert self._aside is not None
        x = x.clone()  # what a captured step gives, or a stage adds to, is written over
        self._aside.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._aside):
            self._group.send([x], 1, 0).wait()
        x.record_stream(self._aside)

    def take(self, sequence: int, pulse: Pulse, form: Form) -> torch.Tensor:
        """What comes, in memory that it will have filled when the device gets there."""
        assert self._aside is not None
        shape, dtype = form
        with torch.cuda.stream(self._aside):
            x = torch.empty(shape, dtype=dtype, device=self._aside.device)
            self._group.recv([x], 0, 0).wait()
        stream = torch.cuda.current_stream(x.device)
        stream.wait_stream(self._aside)
        x.record_stream(stream)
        return x


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
