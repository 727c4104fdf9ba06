"""Tests of real GPUs. Without one the whole folder is skipped; with FTJOB_TESTS_DEVICE=cpu two
devices of the CPU stand in, so that the tests themselves are tried on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu_jobs import DEVICE, Runs
from job_fixtures import place

__all__ = ["place"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine has not the devices for."""
    mine = [item for item in items if Path(__file__).parent in item.path.parents]
    gpus = torch.cuda.device_count() if mine and DEVICE == "cuda" else 2
    for item in mine:
        if not gpus:
            item.add_marker(pytest.mark.skip(reason="no GPU is visible; see tests/gpu/README.md"))
        elif gpus < 2 and item.get_closest_marker("two_gpus"):
            item.add_marker(pytest.mark.skip(reason="needs two GPUs"))
        elif DEVICE == "cpu" and item.get_closest_marker("gpu_alone"):
            item.add_marker(pytest.mark.skip(reason="nothing of the CPU stands in for this"))


@pytest.fixture(scope="session", autouse=True)
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """The runs of every layout that a test of this session asks for, all begun now."""
    with Runs(tmp_path_factory.mktemp("runs")) as made:
        for item in request.session.items:
            if not item.get_closest_marker("skip"):
                for mark in item.iter_markers("layouts"):
                    made.begin(*mark.args)
        yield made
