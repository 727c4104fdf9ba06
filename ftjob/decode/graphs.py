"""Captured steps: what a decode step launches on a GPU, recorded once a kind and played again.

A kind of step is run as it is the first time, which also compiles its kernels, and captured after
that, outside of the time that counts as decoding. Captures are local to the thread, so the device
threads of a process do not disturb each other; sums over a tensor group are captured with the rest,
by all its devices at the same step. `loop` runs its steps through it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Graphs:
    """The steps captured so far. A body works on tensors that stay where they are; what it gives
    lies in memory of the graphs, and is good until the next step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._wanted: tuple[Hashable, Callable[[], Any]] | None = None
        self._pool: torch.cuda._POOL_HANDLE | None = None
        self._stream: torch.cuda.Stream | None = None

    def run(self, kind: Hashable, body: Callable[[], T]) -> T:
        """A step: captured before, or run as it is and wanted for `capture`."""
        if kind in self._held:
            graph, given = self._held[kind]
            graph.replay()
            made: T = given
            return made
        self._wanted = kind, body
        return body()

    @property
    def wanting(self) -> bool:
        """Whether there is something to be captured."""
        return self._wanted is not None

    def capture(self) -> None:
        """Capture the step that was run as it is. Nothing is computed by that."""
        assert self._wanted is not None
        kind, body = self._wanted
        self._wanted = None
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
        self._held[kind] = graph, given
