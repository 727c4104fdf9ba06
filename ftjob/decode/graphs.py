"""Captured work: what a decode step or a pass over rows launches on a GPU, recorded once a kind and
played again.

A kind is run as it is at first, which also compiles its kernels, and captured after that, outside
of the time that counts as work. Captures are local to the thread, so the device threads of a
process do not disturb each other; sums over a tensor group are captured with the rest, by all its
devices at the same step. `loop` runs its steps and passes through it, `device` what it scores.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

from ftjob.model.arrays import Arena
from ftjob.model.fill import PADDED, Fill

T = TypeVar("T")


class Graphs:
    """What was captured so far: kinds that have been run `after` times, `most` of them. A body
    works on tensors that stay where they are; what it gives lies in memory of the graphs, and is
    good until the next body."""

    def __init__(self, device: torch.device, after: int = 1, most: int | None = None) -> None:
        self._device, self._after, self._most = device, after, most
        self._held: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._seen: dict[Hashable, int] = {}
        self._wanted: dict[Hashable, Callable[[], Any]] = {}
        self._pool: torch.cuda._POOL_HANDLE | None = None
        self._stream: torch.cuda.Stream | None = None

    def run(self, kind: Hashable, body: Callable[[], T]) -> T:
        """A body: captured before, or run as it is and, in time, wanted for `capture`."""
        if kind in self._held:
            graph, given = self._held[kind]
            graph.replay()
            made: T = given
            return made
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] == self._after and not self._full:
            self._wanted[kind] = body
        return body()

    @property
    def _full(self) -> bool:
        return self._most is not None and len(self._held) >= self._most

    @property
    def wanting(self) -> bool:
        """Whether there is something to be captured."""
        return bool(self._wanted)

    def capture(self) -> None:
        """Capture what is wanted. Nothing is computed by that. What there is not memory enough for
        goes on as it is."""
        wanted, self._wanted = self._wanted, {}
        for kind, body in wanted.items():
            try:
                self._held[kind] = self._captured(body)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()

    def _captured(self, body: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            assert self._pool is not None
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                given = body()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return graph, given


class Passes:
    """Passes over rows, of which those of a size come again and again: their numbers go to an
    `arena`, and on a GPU a size is captured when it comes for the second time, or where `fill`
    knows them all for the first time. A pass has so many `tokens`, unless a single row has
    more."""

    # of so many sizes at most: each takes some megabytes of the driver's memory
    MOST = 32

    def __init__(self, device: torch.device, tokens: int = 0, fill: Fill = PADDED) -> None:
        self.arena = Arena(device, fill=fill)
        self._tokens = fill.tokens(tokens)
        self._inbox: dict[torch.dtype, torch.Tensor] = {}
        after = 1 if fill.step and fill.rows else 2
        self._graphs = Graphs(device, after, self.MOST) if device.type == "cuda" else None

    def run(
        self,
        place: Hashable | None,
        body: Callable[[torch.Tensor], T],
        given: torch.Tensor,
        *,
        moves: bool = False,
    ) -> T:
        """What the body makes of `given` [N, ...] and of what lies at a `place` of the arena.
        `given` lies there too, unless it `moves`: what another stage has made does."""
        if self._graphs is None or place is None or (moves and len(given) > self._tokens):
            return body(given)
        if moves:
            if given.dtype not in self._inbox:
                self._inbox[given.dtype] = given.new_empty(self._tokens, *given.shape[1:])
            given = self._inbox[given.dtype][: len(given)].copy_(given)
        return self._graphs.run(place, lambda: body(given))

    def capture(self, around: Callable[[], AbstractContextManager[None]]) -> None:
        """Capture what has come often enough."""
        if self._graphs is not None and self._graphs.wanting:
            with around():
                self._graphs.capture()
