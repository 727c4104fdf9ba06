"""Groups of GPUs by NCCL: one communicator a device thread and group, of threads of a process and
of other processes alike. A few rows of a group that one process has go through `peer` instead.

`groups` makes a `GpuMember` for each tensor group; it is connected by its device's thread, and all
its calls are work on that thread's current stream, which can be captured. Nothing here waits for
the device: a peer that stays away shows where the host waits for answers.
"""

from __future__ import annotations

import ctypes
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)

from ftjob.comm import Near, Pulse, Reduction
from ftjob.comm.peer import Neighbours, OneShot, join
from ftjob.comm.threads import GLANCE_S

# NCCL's own watch never ends a job: the ranks' deadlines do.
NEVER = timedelta(days=365)


class Meet:
    """Where the device threads of a job find each other: a store in this process, or at `address`
    (host, port), where rank 0 keeps one for all."""

    def __init__(self, address: tuple[str, int] | None, limit_s: float) -> None:
        self._address, self._limit = address, timedelta(seconds=limit_s)
        self._own = HashStore()

    def store(self, name: str) -> Store:
        """A store of that name, for one thread."""
        # a connection a thread: one that threads share deadlocks
        store = (
            self._own
            if self._address is None
            else TCPStore(*self._address, is_master=False, timeout=self._limit)
        )
        return PrefixStore(name, store)

    def group(self, name: str, rank: int, size: int) -> Any:
        """One device's end of a communicator, which lives until the process ends: to take it down
        is to wait for others, who may be gone."""
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = NEVER
        made = dist.ProcessGroupNCCL(self.store(name), rank, size, options)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
        return made

    def wait(self, name: str, size: int, pulse: Pulse) -> None:
        """Return when `size` threads have come here."""
        store = self.store("wait")
        store.add(name, 1)
        with pulse.waiting():
            while store.add(name, 0) < size:
                pulse()
                time.sleep(GLANCE_S / 10)


class GpuMember:
    """One GPU's `Comm` in a tensor group. `neighbours` are there where one process has them all."""

    def __init__(
        self,
        meet: Meet,
        name: str,
        rank: int,
        size: int,
        neighbours: Neighbours | None,
    ) -> None:
        self._meet, self._name, self._neighbours = meet, name, neighbours
        self.rank, self.size = rank, size
        self._group: Any = None
        self._near: OneShot | None = None

    @property
    def near(self) -> Near | None:
        """See `Comm`."""
        return self._near

    def connect(self, device: torch.device, pulse: Pulse, row_bytes: int, limit_s: float) -> None:
        """Meet the others. A first sum is made, so that nothing is made ready later; `preflight`
        looks at whether sums are right. Rows that are summed have at most `row_bytes`."""
        self._group = self._meet.group(self._name, self.rank, self.size)
        with pulse.waiting():
            self.all_reduce(torch.ones(1, device=device))
            there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            there.record()
            while not there.query():  # type: ignore[no-untyped-call]
                pulse()
                time.sleep(GLANCE_S / 10)
        if self._neighbours is not None:
            self._near = join(self._neighbours, self.rank, device, row_bytes, limit_s, pulse)
            if self._near is not None:
                pulse.watch(self._near.check)

    def all_reduce(self, x: torch.Tensor, op: Reduction = "sum") -> torch.Tensor:
        """The sum or maximum over the group: `x` itself, or a tensor of its own."""
        x = x.contiguous()
        if op == "sum" and self._near is not None and self._near.takes(x):
            return self._near.sum(x)
        options = AllreduceOptions()
        kinds: Any = dist.ReduceOp
        options.reduceOp = kinds.SUM if op == "sum" else kinds.MAX
        options.asyncOp = False  # on the current stream
        self._group.allreduce([x], options)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Every member's tensor, stacked in logical order."""
        x = x.contiguous()
        if self._near is not None and self._near.gathers(x):
            return self._near.gather(x)
        out = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
        options = AllgatherOptions()
        options.asyncOp = False
        self._group._allgather_base(out, x, options)
        return out
