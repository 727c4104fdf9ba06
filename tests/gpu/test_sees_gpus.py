"""A job that says nothing of devices takes the GPUs that it can see, a thread each."""

from __future__ import annotations

import re

import pytest
import torch
from gpu_jobs import DEVICE, SCORED, device_facts
from harness import Place, load

from ftjob.results.folder import read_json_file

pytestmark = pytest.mark.timeout(100)


def test_run(place: Place) -> None:
    """The plan has them all, and every one does rows under its own name."""
    place(f"dataset.limit={SCORED}", "batch.max_tokens=256", "run.dir=run").expect(0)
    run = place.cwd / "run"
    gpus = torch.cuda.device_count() if DEVICE == "cuda" else 0
    machine = read_json_file(run / "plan.json")["plan"]["machine"]
    assert (machine["device"], machine["devices_of_rank"]) == (DEVICE, [max(1, gpus)])
    devices = device_facts(run)
    assert [device["device"] for device in devices] == list(range(max(1, gpus)))
    assert all(device["rows"] > 0 for device in devices)
    assert load(run / "results.json")["parallel"]["data"] == max(1, gpus)
    if gpus:
        names = [torch.cuda.get_device_name(number) for number in range(gpus)]
        assert [device["name"] for device in devices] == names
        assert machine["memory_source"].startswith("free on this node's fullest GPU")
        assert machine["memory_bytes"] < torch.cuda.get_device_properties(0).total_memory


@pytest.mark.parametrize(
    ("visible", "told"),
    [
        pytest.param("0", "1 cuda device on 1 rank", marks=pytest.mark.gpu_alone),
        pytest.param("0,1", "2 cuda devices on 1 rank", marks=pytest.mark.two_gpus),
        ("", "1 cpu device on 1 rank"),
    ],
)
def test_plan(place: Place, visible: str, told: str) -> None:
    """CUDA_VISIBLE_DEVICES hides some of them, or all."""
    if DEVICE == "cpu" and "cuda" in told:
        told = "cuda devices on 1 rank"  # the plan believes the variable
    done = place("plan", env={"CUDA_VISIBLE_DEVICES": visible}).expect(0)
    assert re.search(rf"= \d .*{told}|{told}", done.out), done.out
