"""Captured steps give what the same steps give when they run one operation after the other, and
they are in fact played again, more often than captured. So do passes and steps that add products to
the residual where it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_jobs import EN_DE, MEMORY, ON, PROMPT_FILE, SMALL, TASKS, same, write_prompts
from harness import lines

from ftjob.__main__ import main
from ftjob.decode.graphs import Graphs
from ftjob.model.layers import RowLinear

pytestmark = [pytest.mark.timeout(100), pytest.mark.gpu_alone]
TENSOR = ("parallel.tensor=2", "cluster.devices_per_node=2")
STAGES = ("parallel.pipeline=2", "cluster.devices_per_node=2")
ONE = ("cluster.devices_per_node=1",)
JOBS = {
    "prompts": (*PROMPT_FILE, "decode.max_new_tokens=48"),
    "greedy": EN_DE,
    "beam4": (*EN_DE, "decode=beam4"),
    "nucleus": (*EN_DE, "decode=nucleus"),
}
CASES = [
    *(pytest.param(job, ONE, id=f"{job}, one GPU") for job in JOBS),
    *(
        pytest.param(job, TENSOR, id=f"{job}, tensor 2", marks=pytest.mark.two_gpus)
        for job in ("prompts", "beam4")
    ),
]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many steps were captured and how many played again, from now on."""
    counts = {"captured": 0, "played": 0}

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            counts[name] += 1
            return real(*arguments, **more)

        return call

    graph = torch.cuda.CUDAGraph
    monkeypatch.setattr(Graphs, "capture", counting("captured", Graphs.capture))
    monkeypatch.setattr(graph, "replay", counting("played", graph.replay))
    return counts


def as_it_is(self: Graphs, kind: object, body: Callable[[], Any]) -> Any:
    """In place of `Graphs.run`: nothing is wanted for a capture, so nothing is played."""
    return body()


@pytest.mark.parametrize(("job", "layout"), CASES)
def test_same_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted: dict[str, int],
    job: str,
    layout: tuple[str, ...],
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    command = (*JOBS[job], *layout, ON, MEMORY, "batch.lanes=64")
    assert main([*command, "run.dir=played"]) == 0
    assert counted["played"] > counted["captured"] > 0
    before = dict(counted)
    with monkeypatch.context() as patch:
        patch.setattr(Graphs, "run", as_it_is)
        assert main([*command, "run.dir=as_it_is"]) == 0
    assert counted == before, "a step was played all the same"
    said = same(tmp_path / "played", tmp_path / "as_it_is", capsys)
    assert "(0 differences, 0 rows excused" in said
    played, plain = (lines(tmp_path / run / "samples.jsonl") for run in ("played", "as_it_is"))
    assert [s["output_ids"] for s in played] == [s["output_ids"] for s in plain]


@pytest.mark.parametrize("task", ["scored", "prompts", "greedy"])
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(ONE, id="one GPU"),
        pytest.param(STAGES, id="pipeline 2", marks=pytest.mark.two_gpus),
    ],
)
def test_products_in_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted: dict[str, int],
    task: str,
    layout: tuple[str, ...],
    capsys: Any,
) -> None:
    """All of them, on a later stage where captured work looks for what the stage before gave: the
    CPU's answers, though what is played again was written over each time."""
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    made: list[Any] = []
    real = RowLinear._in_place

    def in_place(*arguments: Any) -> Any:
        made.append(arguments[0])
        return real(*arguments)

    monkeypatch.setattr("ftjob.model.layers.IN_PLACE", 1)
    monkeypatch.setattr(RowLinear, "_in_place", in_place)
    command = TASKS[task][1]
    assert main([*command, *layout, *SMALL, ON, MEMORY, "run.dir=in_place"]) == 0
    assert made
    assert counted["played"] > counted["captured"] > 0
    assert main([*command, "cluster.device=cpu", "run.dir=cpu"]) == 0
    same(tmp_path / "in_place", tmp_path / "cpu", capsys)
