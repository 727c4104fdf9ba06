"""What `bench` is told of a card: its clocks by nvidia-smi, and the memory of captured work."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from ftjob.bench.ceilings import ask_card, graph_bytes

SMI = "NVIDIA H100 80GB HBM3, 580.1, 1980, 2619, 612.40, 51"


@pytest.mark.parametrize("said", [SMI, "", "No devices were found"])
def test_the_card_is_asked_by_a_fixed_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str
) -> None:
    """A fake nvidia-smi on PATH; one that says something else is as good as none."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/argv\necho "{said}"\n', encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = ask_card("GPU-1")
    argv = (tmp_path / "argv").read_text(encoding="utf-8").split()
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    assert argv == ["--id=GPU-1", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    assert (found is not None) == (said == SMI)
    if found is not None:
        assert (found["clocks.sm"], found["driver_version"]) == ("1980", "580.1")


def test_no_card_where_there_is_no_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert ask_card("GPU-1") is None
    with pytest.raises(FileNotFoundError):
        subprocess.run(["nvidia-smi"], check=False)


def test_memory_of_captured_work_is_that_of_its_own_pools() -> None:
    every = [
        {"device": d, "total_size": 100, "allocated_size": used, "segment_pool_id": pool}
        for d, used, pool in ((0, 30, (0, 0)), (0, 25, (0, 1)), (0, 100, (0, 2)), (1, 0, (0, 1)))
    ]
    assert graph_bytes(every, torch.device("cuda", 0)) == 75
