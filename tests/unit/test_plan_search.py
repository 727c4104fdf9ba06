"""Layouts ranked by what is predicted of them: every one of the devices is ranked or refused with a
reason, the best is what the rates make best, and the command is instant without torch.
"""

from __future__ import annotations

import re
import resource
from dataclasses import replace
from typing import Any

import pytest
from test_plan import ARCH, BIG, command, config
from test_predict import BYTES_ONLY, gpu

from ftjob import plan_memory
from ftjob.errors import CONFIG_REFUSED
from ftjob.model.families import family
from ftjob.plan import Machine
from ftjob.plan_search import Found, search
from ftjob.rates import Rates, Wire

FAST = Wire(0.0, 1e30)
FREE = replace(
    BYTES_ONLY,
    reduce={"process": FAST, "nodes": FAST},
    send={"process": FAST, "nodes": FAST},
)


def found(machine: Machine, rates: Rates = BYTES_ONLY, **groups: dict[str, Any]) -> Found:
    made = config(model={"checkpoint": "PATH", "dtype": "f16"}, **groups)
    return search(made, ARCH, family("gpt2").tensors(ARCH), machine, rates, (6, 4))


GENERATE = {"dataset": {"mode": "generate"}, "plan": {"batch": 8}}


def test_every_layout_is_ranked_or_refused() -> None:
    made = found(gpu(12), **GENERATE)
    every = {(t, p) for t in range(1, 13) for p in range(1, 13) if 12 % (t * p) == 0}
    ranked = {(x.tensor, x.pipeline) for x in made.layouts}
    assert every - ranked == {(1, 12)}
    assert made.refused == [
        "parallel.pipeline=12: the model has 10 layers, and a stage takes at least one"
    ]
    assert all(x.tensor * x.pipeline * x.data == 12 for x in made.layouts)
    speeds = [x.prediction.tokens_s for x in made.layouts]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[0] > speeds[-1]


def test_slow_wires_favour_replicas_and_free_ones_tensor() -> None:
    """Eight rows a replica, whatever the layout: with free messages four replicas of one device
    are as fast as their devices, and sharing a layer divides its weights but not its rows."""
    slow = found(gpu(4), **GENERATE).layouts[0]
    assert (slow.tensor, slow.pipeline, slow.data) == (1, 1, 4)
    by_split = {(x.tensor, x.pipeline): x for x in found(gpu(4), FREE, **GENERATE).layouts}
    one, shared = by_split[1, 1].prediction, by_split[4, 1].prediction
    assert shared.turn.weights == pytest.approx(one.turn.weights / 4)
    assert shared.turn.total < one.turn.total


def test_a_tensor_group_across_nodes_is_slower() -> None:
    near = {(x.tensor, x.pipeline): x for x in found(gpu(4), **GENERATE).layouts}
    far = {(x.tensor, x.pipeline): x for x in found(gpu(2, 2), **GENERATE).layouts}
    assert far[2, 1].prediction.tokens_s == near[2, 1].prediction.tokens_s
    assert far[4, 1].prediction.tokens_s < near[4, 1].prediction.tokens_s / 10


def test_what_does_not_fit_is_refused_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_memory, "LIBRARY_BYTES", 0)  # more than all the rest of this model
    weights = 2 * 300_000  # of the whole model, some more than its layers
    small = replace(gpu(4), memory_bytes=weights)
    made = found(small, batch={"max_tokens": 16})
    assert {x.tensor * x.pipeline for x in made.layouts} == {2, 4}
    (reason,) = made.refused
    assert re.fullmatch(
        r"parallel\.tensor=1 parallel\.pipeline=1: does not fit: one row needs 0\.000\d+ GB of "
        r"0\.0006 GB a device",
        reason,
    )
    assert all(x.bytes_taken <= weights and x.largest_batch > 0 for x in made.layouts)
    none = found(replace(gpu(4), memory_bytes=1000), **GENERATE)
    assert not none.layouts
    assert len(none.refused) == 6
    assert all("cluster.memory_gb: a device has" in reason for reason in none.refused)


def test_unequal_nodes_hold_whole_replicas() -> None:
    made = found(gpu(4, 2), **GENERATE)
    assert {(x.tensor, x.pipeline) for x in made.layouts} == {(1, 1), (2, 1), (1, 2)}
    assert sum("a replica takes" in reason for reason in made.refused) == 6


def test_rates_without_a_wire_refuse_what_needs_it() -> None:
    made = found(gpu(2), replace(BYTES_ONLY, reduce={}), **GENERATE)
    assert {(x.tensor, x.pipeline) for x in made.layouts} == {(1, 1), (1, 2)}
    (refused,) = made.refused
    assert refused.startswith(
        "parallel.tensor=2 parallel.pipeline=1: test has no all_reduce with where=process; "
    )


SEARCH = [*BIG, "model.dtype=bf16", "plan.search=true", "cluster.memory_gb=140"]


@pytest.mark.parametrize("mode", ["score", "generate"])
def test_175b_on_16_nodes_is_searched_in_two_seconds(mode: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command(*SEARCH, f"dataset.mode={mode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # of a core, whatever else this machine does
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    assert "loaded: []" in done.stdout
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("rank "))
    rows = [line.split() for line in lines[start + 1 :] if line[:1].isdigit()]
    assert [int(r[0]) for r in rows] == list(range(1, len(rows) + 1))
    assert all(int(r[1]) * int(r[2]) * int(r[3]) == 128 for r in rows)
    speeds = [float(r[5].replace(",", "")) for r in rows]
    assert speeds == sorted(speeds, reverse=True)
    best = f"parallel.tensor={rows[0][1]} parallel.pipeline={rows[0][2]} parallel.data={rows[0][3]}"
    assert lines[-2] == f"best       {best}"
    assert "refused    parallel.tensor=64: the model's 96 attention heads" in done.stdout
    assert ("step ms" if mode == "generate" else "batch ms") in lines[start]


def test_the_best_overrides_are_a_plan() -> None:
    done = command(*SEARCH, "plan.batch=8", "dataset.mode=generate")
    best = done.stdout.splitlines()[-2].split()[1:]
    again = command(*BIG, "model.dtype=bf16", "cluster.memory_gb=140", *best, "plan.batch=8")
    assert again.returncode == 0, again.stderr
    assert re.search(r"^speed      [\d,]+ tokens/s", again.stdout, re.MULTILINE)
    assert re.search(r"^rates      copy 4\.2 TB/s, product 785 TFLOP/s", again.stdout, re.MULTILINE)


def test_no_more_than_ten_reasons_are_listed() -> None:
    done = command(
        *BIG, "model.dtype=bf16", "plan.search=true", "cluster.memory_gb=1", "plan.output_len=1"
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("refused")]
    assert len(lines) == 11
    assert re.fullmatch(r"refused    \d+ more", lines[-1])
    assert "best       none: no layout of these devices holds the model" in done.stdout


def test_a_cpu_is_not_predicted_without_rates() -> None:
    for arguments in ([], ["plan.search=true"]):
        done = command(*arguments, "cluster.device=cpu", "cluster.devices_per_node=2")
        assert done.returncode == 0, done.stderr
        assert "no prediction: how fast a CPU is differs too much" in done.stdout
    given = ["plan.copy_tb_s=0.01", "plan.product_tflops=0.1", "cluster.device=cpu"]
    assert "tokens/s, " in command(*given).stdout
    two = command(*given, "cluster.devices_per_node=2", "parallel.tensor=2")
    assert "no prediction: plan.copy_tb_s, plan.product_tflops has no all_reduce" in two.stdout


def test_a_batch_that_does_not_fit_is_refused() -> None:
    done = command(*BIG, "parallel.tensor=8", "model.dtype=bf16", "plan.batch=99999")
    assert done.returncode == CONFIG_REFUSED
    assert "plan.batch=99999: " in done.stderr
