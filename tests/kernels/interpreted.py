"""Kernels in Triton's interpreter, with every address that they read or write looked at: one beside
the tensors that they were given is an error here, as it may be on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from triton.runtime import interpreter

# Of these the peers' memory is no argument: its addresses are read from a table.
BY_ADDRESS = ("ftjob.kernels.one_shot",)


@contextmanager
def bounded() -> Iterator[None]:
    """From now on, until the end of the context."""
    real, executor, local = interpreter._interpreter, interpreter.GridExecutor, threading.local()
    call, to_host = executor.__call__, executor._init_args_hst

    def init(self: Any, args: Any, kwargs: Any) -> Any:
        made = to_host(self, args, kwargs)
        tensors = [a for a in (*made[0], *made[1].values()) if isinstance(a, torch.Tensor)]
        storages = [t.untyped_storage() for t in tensors]
        local.ranges = sorted({(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages})
        return made

    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        local.name = f"{self.fn.__module__}.{self.fn.__name__}"
        local.looks = self.fn.__module__ not in BY_ADDRESS
        call(self, *args, **kwargs)

    def check(pointers: Any, mask: Any, bytes_each: int) -> None:
        if not getattr(local, "looks", False):
            return
        held = np.broadcast_to(mask, np.shape(pointers)).astype(bool)
        asked = np.asarray(pointers)[held]
        starts, ends = (np.asarray(each, np.uint64) for each in zip(*local.ranges, strict=True))
        at = np.searchsorted(starts, asked.astype(np.uint64), side="right").astype(np.int64) - 1
        beside = (at < 0) | (asked.astype(np.uint64) + np.uint64(bytes_each) > ends[at])
        if beside.any():
            raise IndexError(f"{local.name} reaches {int(beside.sum())} places beside its tensors")

    def load(pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        check(pointers, mask, np.dtype(dtype).itemsize)
        return real.load(pointers, mask, other, dtype)

    def store(pointers: Any, value: Any, mask: Any) -> Any:
        check(pointers, mask, np.asarray(value).itemsize)
        return real.store(pointers, value, mask)

    def atomic(op: Any, pointers: Any, value: Any, mask: Any, order: Any) -> Any:
        check(pointers, mask, np.asarray(value).itemsize)
        return real.atomic_rmw(op, pointers, value, mask, order)

    kept = {name: getattr(real, name) for name in dir(real) if not name.startswith("__")}
    watched = SimpleNamespace(**kept | {"load": load, "store": store, "atomic_rmw": atomic})
    with (
        patch.object(interpreter, "_interpreter", watched),
        patch.object(executor, "__call__", run),
        patch.object(executor, "_init_args_hst", init),
    ):
        yield
