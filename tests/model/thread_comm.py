"""A `Comm` between threads of one process, as plain as can be: slots and a barrier.

It stands in for NCCL and MPI in the tensor parallel tests, so that the arithmetic of the cut model
is tried without ranks. A wait that takes too long breaks the group instead of hanging the test.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ftjob.comm import Reduction

T = TypeVar("T")
PATIENCE_S = 30.0


class ThreadComm:
    """One member of a group of threads. Sums are made in rank order, so all members agree."""

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(slots)
        self._slots, self._barrier = slots, barrier

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Every member's tensor, stacked in rank order."""
        self._slots[self.rank] = x.clone()
        self._barrier.wait(PATIENCE_S)
        gathered = torch.stack(self._slots)
        self._barrier.wait(PATIENCE_S)
        return gathered

    def all_reduce(self, x: torch.Tensor, op: Reduction = "sum") -> torch.Tensor:
        """The sum or maximum over the members."""
        gathered = self.all_gather(x)
        return gathered.sum(0) if op == "sum" else gathered.amax(0)


def run_group(ways: int, work: Callable[[ThreadComm], T]) -> list[T]:
    """Run `work` on every member of a group at once; the results in rank order.

    The first error of a member is raised here, and ends the others.
    """
    slots: list[Any] = [None] * ways
    barrier = threading.Barrier(ways)
    results: dict[int, T] = {}
    errors: list[Exception] = []

    def member(rank: int) -> None:
        try:
            results[rank] = work(ThreadComm(rank, slots, barrier))
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=member, args=(r,), daemon=True) for r in range(ways)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(ways)]
