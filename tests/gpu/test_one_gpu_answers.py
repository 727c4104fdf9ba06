"""One GPU gives the answers of the CPU in float32: kernels, captured steps and pools against plain
products, for every way of decoding.
"""

from __future__ import annotations

from typing import Any

import pytest
from gpu_jobs import DEVICE, TASKS, Runs, device_facts, same

from ftjob.results.folder import read_json_file

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.layouts("cpu", *TASKS),
    pytest.mark.layouts("one", *TASKS),
]


@pytest.mark.parametrize("task", TASKS)
def test_answers(runs: Runs, task: str, capsys: Any) -> None:
    run = runs("one", task)
    same(run, runs("cpu", task), capsys)
    assert read_json_file(run / "plan.json")["plan"]["machine"]["device"] == DEVICE
    (device,) = device_facts(run)
    assert device["rows"] == TASKS[task][0]
