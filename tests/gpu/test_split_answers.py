"""A model split over two GPUs, or two replicas, gives the answers of the CPU and of one GPU: as two
threads of one rank, and as two ranks that see one GPU each.
"""

from __future__ import annotations

from typing import Any

import pytest
from gpu_jobs import SPLITS, TASKS, Runs, device_facts, same
from harness import load

THREADS = [(layout, task) for layout in SPLITS for task in TASKS]
# Each of them starts MPI anew: every task by tensor, which has the most to say, the others where
# what goes between the ranks is of another kind.
RANKS = [
    *(("tensor", task) for task in TASKS),
    *(("pipeline", task) for task in ("scored", "prompts", "beam4")),
    *(("data", task) for task in ("scored", "nucleus")),
]


def asked(layout: str, task: str) -> Any:
    """A case, with the mark that has its runs begun."""
    return pytest.param(layout, task, marks=pytest.mark.layouts(layout, task))


pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.two_gpus,
    pytest.mark.layouts("cpu", *TASKS),
    pytest.mark.layouts("one", *TASKS),
]


@pytest.mark.layouts("tensor", *TASKS)
@pytest.mark.layouts("pipeline", *TASKS)
@pytest.mark.layouts("data", *TASKS)
@pytest.mark.parametrize(("layout", "task"), THREADS, ids=str)
def test_threads(runs: Runs, layout: str, task: str, capsys: Any) -> None:
    check(runs, layout, task, 1, capsys)


@pytest.mark.parametrize(("layout", "task"), [asked(f"{k} ranks", t) for k, t in RANKS], ids=str)
def test_ranks(runs: Runs, layout: str, task: str, capsys: Any) -> None:
    check(runs, layout, task, 2, capsys)


def check(runs: Runs, layout: str, task: str, ranks: int, capsys: Any) -> None:
    """The answers are the same, and the run was cut as asked."""
    run = runs(layout, task)
    for other in ("cpu", "one"):
        same(run, runs(other, task), capsys)
    split, rows = SPLITS[layout.removesuffix(" ranks")], TASKS[task][0]
    tensor, pipeline, data = split
    said = load(run / "results.json")["parallel"]
    assert said == {"tensor": tensor, "pipeline": pipeline, "data": data, "ranks": ranks}
    devices = device_facts(run)
    specs = [device["spec"] for device in devices]
    assert sorted((s["tensor"], s["pipeline"], s["data"]) for s in specs) == [
        (0, 0, 0),
        tuple(n - 1 for n in split),
    ]
    assert [device["rank"] for device in devices] == [0, ranks - 1]
    assert all(device["rows"] > 0 for device in devices)
    assert sum(device["rows"] for device in devices) == rows * tensor * pipeline
    if data == 1:
        (whole,) = device_facts(runs("one", task))
        assert all(device["weight_bytes"] < whole["weight_bytes"] for device in devices)
