"""Lanes in pools on a machine without a GPU, for tests that continue rows."""

from __future__ import annotations

from typing import Any

import pytest

from ftjob.decode import microbatch
from ftjob.decode.pool import PoolLanes
from ftjob.kernels import step_attention


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
