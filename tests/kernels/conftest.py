"""The way a GPU takes on a machine without one: lanes in pools, and kernels in the interpreter."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from interpreted import bounded
from triton.runtime.interpreter import GridExecutor

from ftjob import kernels
from ftjob.decode import microbatch
from ftjob.decode.pool import PoolLanes
from ftjob.kernels import few_rows_configs, linear_cpu, step_attention

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def inside() -> Iterator[None]:
    """No kernel that is interpreted reads or writes beside its tensors."""
    with bounded():
        yield


@pytest.fixture
def kind() -> str:
    """Where jobs go the GPU's way: on a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[PoolLanes]:
    """From now on lanes are in pools, on a CPU too; those that were made."""
    made: list[PoolLanes] = []

    def make(*about: Any) -> PoolLanes:
        made.append(PoolLanes(*about))
        return made[-1]

    monkeypatch.setattr(microbatch, "make_lanes", make)
    monkeypatch.setattr(step_attention, "PROGRAMS", 8)  # an interpreter is slow
    return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that goes the GPU's way; the interpreter serves one thread at a time."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    lock, real = threading.Lock(), GridExecutor.__call__

    def alone(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        with lock:
            real(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", alone)
    monkeypatch.setattr(kernels, "used", lambda device: True)
    monkeypatch.setattr(linear_cpu, "available", lambda device, dtype: False)
    monkeypatch.setattr(few_rows_configs, "PROGRAMS", 8)  # an interpreter is slow
    return CPU
