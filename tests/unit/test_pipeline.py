"""The bubble's formulas against a simulation that only follows the rules of a pipeline, and what
statuses of all kinds make of it: attempts, replicas, ranks and stages that are missing.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections import deque
from typing import Any

import pytest

from ftjob.batching import chunks
from ftjob.config import build
from ftjob.pipeline import (
    TYPICAL_WANTED,
    equal_bubble,
    equal_makespan,
    formed_sizes,
    makespan,
    stage_costs,
    steady_bubble,
    wanted_share,
)
from ftjob.results.pipeline import pipeline_facts, with_stages
from ftjob.tasks.base import Row, ScoreRequest

COSTS = [[1], [3, 1], [1, 3], [2, 2, 2], [2, 5, 3], [5, 4, 3, 2], [1, 2, 3, 4, 1]]
SHAPE = {"hidden": 4, "ffn": 16, "vocab": 10}


def simulated(costs: list[int], sizes: list[int]) -> tuple[int, list[int]]:
    """The pipeline run tick by tick: when it ends, and in how many ticks each stage did nothing.

    Every tick a free stage takes what waits for it, works one tick, and passes on what is done.
    """
    waiting: list[deque[int]] = [deque(sizes), *(deque[int]() for _ in costs)]
    left, size_of = [0] * len(costs), [0] * len(costs)
    idle, tick = [0] * len(costs), 0
    while len(waiting[-1]) < len(sizes):
        for stage, cost in enumerate(costs):
            if not left[stage] and waiting[stage]:
                size_of[stage] = waiting[stage].popleft()
                left[stage] = cost * size_of[stage]
        for stage in range(len(costs)):
            idle[stage] += not left[stage]
            if left[stage]:
                left[stage] -= 1
                if not left[stage]:
                    waiting[stage + 1].append(size_of[stage])
        tick += 1
    return tick, idle


@pytest.mark.parametrize("costs", COSTS, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 31])
def test_equal_micro_batches(costs: list[int], count: int) -> None:
    ticks, idle = simulated(costs, [1] * count)
    assert equal_makespan(costs, count) == ticks
    assert makespan(costs, [1] * count) == ticks
    assert equal_bubble(costs, count) == pytest.approx(sum(idle) / (len(costs) * ticks))


@pytest.mark.parametrize("costs", COSTS, ids=str)
def test_uneven_micro_batches(costs: list[int]) -> None:
    drawn = random.Random(len(costs))
    for count in (1, 2, 5, 12):
        sizes = [drawn.randint(1, 9) for _ in range(count)]
        assert makespan(costs, sizes) == simulated(costs, sizes)[0]


def test_stages_of_equal_work_have_the_known_bubble() -> None:
    for stages, count in itertools.product((1, 2, 4, 16), (1, 4, 32)):
        expected = (stages - 1) / (count + stages - 1)
        assert equal_bubble([7.0] * stages, count) == pytest.approx(expected)
    assert makespan([1, 2], []) == equal_makespan([1, 2], 0) == 0


def test_more_micro_batches_leave_what_unequal_stages_cost() -> None:
    for costs in COSTS:
        bubbles = [equal_bubble(costs, count) for count in (1, 2, 8, 64, 10**6)]
        assert bubbles == sorted(bubbles, reverse=True)
        assert bubbles[-1] == pytest.approx(steady_bubble(costs), abs=1e-5)
    assert steady_bubble([3, 3]) == 0
    assert steady_bubble([4, 2]) == 0.25


def test_stage_costs_by_hand() -> None:
    h, f, v = 4, 16, 10
    layer, kept, rest = 4 * h * h + 2 * h * f, 3 * h * h, h * h + 2 * h * f
    found = stage_costs([(0, 2), (2, 3), (3, 5)], h, f, v, 0.25)
    assert found == [2 * layer, layer, layer + kept + 0.25 * (rest + h * v)]
    assert stage_costs([(0, 1)], h, f, v, 1.0) == [layer + h * v]


def test_all_positions_are_wanted_where_ngrams_are_counted() -> None:
    plain = build({"model": {"checkpoint": "PATH"}})
    ngrams = build({"model": {"checkpoint": "PATH"}, "dataset": {"ngrams": 2}})
    assert wanted_share(plain.dataset) == TYPICAL_WANTED
    assert wanted_share(ngrams.dataset) == 1.0


def test_formed_sizes_are_those_of_batching() -> None:
    rows = [ScoreRequest(Row(0, 0, b"", ""), "", [1] * 5, 4, 4) for _ in range(23)]
    formed = [c.tokens for c in chunks(rows, window=99, max_tokens=32, by_length=True)]
    assert formed_sizes(sum(formed), len(formed), max(formed)) == formed == [40, 40, 35]
    assert formed_sizes(0, 0, 0) == []
    assert formed_sizes(7, 1, 7) == [7]
    assert sum(formed_sizes(100, 7, 60)) == 100
    assert min(formed_sizes(100, 7, 60)) >= 0


def status(
    rank: int, attempt: int, stages: dict[int, int], chunks: int = 4, **place: Any
) -> dict[str, Any]:
    """What rank `rank` wrote of its devices, local number -> stage of two with a layer each. The
    first stage works from 1 to 9 s, the second from 3 to 11 s, 6 s each."""
    devices = [
        {
            "rank": rank,
            "device": local,
            "name": "cpu",
            "attempt": attempt,
            "rows": 9,
            "tokens": 10 * chunks,
            "chunks": chunks,
            "largest_chunk": 10,
            "busy_s": 6.0,
            "weight_bytes": 1,
            "spec": {
                "tensor": 0,
                "data": 0,
                "pipeline": stage,
                "first_layer": stage,
                "last_layer": stage + 1,
                "first": stage == 0,
                "last": stage == 1,
            }
            | place,
        }
        for local, stage in stages.items()
    ]
    phases = [{"name": "load", "device": None, "start_s": 0.0, "end_s": 0.5}]
    phases += [
        {"name": "score", "device": local, "start_s": 1.0 + 2 * stage, "end_s": 9.0 + 2 * stage}
        for local, stage in stages.items()
    ]
    phases = [p | {"rank": rank, "attempt": attempt} for p in phases]
    return {"rank": rank, "attempt": attempt, "devices": devices, "phases": phases}


def facts(*ranks: dict[str, Any]) -> dict[str, Any]:
    before = copy.deepcopy(ranks)
    found = pipeline_facts(ranks, SHAPE, 0.25)
    assert list(ranks) == list(before)
    return found


def predicted(*sizes: list[int]) -> float:
    """The share of two one-layer stages' time without work, replicas one after the other."""
    costs = stage_costs([(0, 1), (1, 2)], 4, 16, 10, 0.25)
    work = sum(costs) * sum(map(sum, sizes))
    return 1 - work / (2 * sum(makespan(costs, s) for s in sizes))


WHOLE = status(0, 0, {0: 0, 1: 1})


def test_measured_and_predicted_stand_beside_each_other() -> None:
    found = facts(WHOLE)
    assert found["stages"] == 2
    assert found["micro_batches"] == [4]
    assert found["bubble"] == pytest.approx(1 - 12 / 20)  # 6 s of 10 s each
    assert found["predicted"] == pytest.approx(predicted([10] * 4))
    assert [e["layers"] for e in found["each"]] == [[0, 0], [1, 1]]
    assert [e["bubble"] for e in found["each"]] == pytest.approx([0.4, 0.4])
    assert found["each"][0]["predicted"] < found["predicted"] < found["each"][1]["predicted"]


def test_generation_has_a_measured_bubble_alone() -> None:
    phases = [p | {"name": "load"} for p in WHOLE["phases"][:1]]
    for phase in WHOLE["phases"][1:]:
        start, end = phase["start_s"], phase["end_s"]
        phases.append(phase | {"name": "prefill", "end_s": start + 1})
        phases.append(phase | {"name": "decode", "start_s": start + 1, "end_s": end})
    found = pipeline_facts([WHOLE | {"phases": phases}], SHAPE, None)
    assert found == {
        "stages": 2,
        "bubble": facts(WHOLE)["bubble"],
        "each": [{"stage": i, "layers": [i, i], "bubble": pytest.approx(0.4)} for i in (0, 1)],
    }


def test_stages_on_several_ranks_are_one_pipeline() -> None:
    assert facts(status(0, 0, {0: 0}), status(1, 0, {0: 1})) == facts(WHOLE)


def test_the_devices_of_a_tensor_group_share_their_stage() -> None:
    second = status(0, 0, {2: 0, 3: 1}, tensor=1)
    group = WHOLE | {k: WHOLE[k] + second[k] for k in ("devices", "phases")}
    assert facts(group) == facts(WHOLE)


def test_replicas_and_attempts_are_counted_together() -> None:
    second = status(1, 0, {0: 0, 1: 1}, chunks=2, data=1)
    assert facts(WHOLE, second)["micro_batches"] == [4, 2]
    assert facts(WHOLE, second)["predicted"] == pytest.approx(predicted([10] * 4, [10] * 2))
    later = status(0, 1, {0: 0, 1: 1}, chunks=2)
    later["devices"][0]["busy_s"] = 2.0
    found = facts(WHOLE, later)
    assert found["micro_batches"] == [4, 2]
    assert found["bubble"] == pytest.approx(1 - 20 / 40)
    assert [e["bubble"] for e in found["each"]] == pytest.approx([0.6, 0.4])


def test_what_never_was_a_pipeline_has_no_bubble() -> None:
    alone = status(0, 0, {0: 0}, last=True)
    died = status(0, 1, {0: 0, 1: 1})
    died["phases"] = []
    nothing = status(0, 1, {0: 0, 1: 1}, chunks=0)
    lost = status(0, 1, {0: 0})
    headless = status(0, 1, {0: 0, 1: 1}, last=False)  # the third stage's rank left no word
    bare = {"rank": 0, "attempt": 1, "devices": [], "phases": []}
    tail = status(1, 0, {0: 1})
    for ranks in ([], [alone], [alone, died], [nothing], [lost], [bare], [tail], [headless]):
        assert facts(*ranks) == {}
        assert facts(*ranks, WHOLE | {"attempt": 7})["micro_batches"] == [4]
    for other in (died, nothing, lost, bare, headless):
        assert facts(WHOLE, other) == facts(WHOLE)


def test_only_attempts_with_the_latest_stages_are_compared() -> None:
    other = status(0, 1, {0: 0, 1: 1}, chunks=3)
    for device in other["devices"]:
        device["spec"]["last_layer"] += 1
    assert facts(WHOLE, other)["micro_batches"] == [3]


def test_devices_and_phases_say_their_stage_only_in_a_pipeline() -> None:
    phases, devices = with_stages([WHOLE, status(0, 1, {0: 0}, last=True)])
    assert [d.get("stage") for d in devices] == [0, 1, None]
    assert [p.get("stage") for p in phases] == [None, 0, 1, None, None]
    assert all("spec" not in d for d in devices)
    assert "stage" not in WHOLE["phases"][1]
