"""A GPU that is too small for a batch: the run halves it, says so, and gives the same answers; what
can never fit is refused by the plan.

The memory really runs out: torch may take less of the GPU than the same run took before.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_jobs import EN_DE, ON, same

from ftjob.__main__ import main

pytestmark = pytest.mark.timeout(100)
GPU = 0
# All rows enter as one chunk of over 30,000 tokens: a single tensor of the MLP has 200 MB.
ROWS = (
    "model=demo_gpt",
    "dataset.limit=400",
    "batch.max_tokens=65536",
    "cluster.memory_gb=8",
    "cluster.devices_per_node=1",
    ON,
)
JOBS = {"scored": ROWS, "continued": (*ROWS, "dataset.mode=generate", "batch.lanes=1600")}
# Less than that by which the chunk's halves are smaller, more than what gaps take.
MISSING_BYTES = 64 << 20


@pytest.fixture
def whole_gpu() -> Iterator[None]:
    """Afterwards torch may take all of the GPU again."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, GPU)


def held() -> int:
    """Bytes that torch keeps for this process, after it gave back what it can."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(GPU)


def log_of(run: Path) -> str:
    return (run / "logs" / "rank0000.log").read_text(encoding="utf-8")


@pytest.mark.gpu_alone
@pytest.mark.parametrize("job", JOBS)
def test_halves(tmp_path: Path, whole_gpu: None, job: str, capsys: Any) -> None:
    command = JOBS[job]
    # the first run also makes what libraries keep, the second shows what is taken each time
    for run in ("first", "whole"):
        before = held()
        torch.cuda.reset_peak_memory_stats(GPU)
        assert main([*command, f"run.dir={tmp_path / run}"]) == 0
        taken = torch.cuda.max_memory_allocated(GPU) - before
    assert "out of memory" not in log_of(tmp_path / "whole")
    limit = held() + taken - MISSING_BYTES
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, GPU)
    assert main([*command, f"run.dir={tmp_path / 'halved'}"]) == 0
    warnings = [line for line in log_of(tmp_path / "halved").splitlines() if "warning" in line]
    said = [line for line in warnings if "out of memory with" in line]
    assert said, log_of(tmp_path / "halved")
    assert all("batch.max_tokens=65536" in line for line in said)
    same(tmp_path / "halved", tmp_path / "whole", capsys)


def test_refused_by_the_plan(tmp_path: Path, capsys: Any) -> None:
    """Before anything is loaded."""
    command = (*EN_DE, ON, "cluster.devices_per_node=1", "cluster.memory_gb=0.02")
    assert main([*command, f"run.dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "cluster.memory_gb: a device has 0.02 GB" in said
    assert "batch.lanes" in said
    assert not (tmp_path / "run").exists()
