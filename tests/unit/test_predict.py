"""Predicted times against sums by hand for a small model, against what must grow and fall, and the
work that `roofline` counts in another way: the parts of whole layouts add up to it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_plan import ARCH, config, plan
from test_plan_t5 import t5

from ftjob.bench.roofline import Sizes, decode
from ftjob.config import JobConfig
from ftjob.errors import ConfigError
from ftjob.model.arch import Arch
from ftjob.pipeline import steady_bubble
from ftjob.plan import Machine, Plan
from ftjob.predict import Prediction, cell, predict, rows_at_once, sized
from ftjob.rates import Rates, Wire
from ftjob.stage_times import FEW, STEP_KERNELS, Parts, Stages, seats_of, unknown_wire

# A copy of 1 GB/s, a product so fast that only bytes count, and kernels that start at once.
BYTES_ONLY = Rates(
    source="test",
    copy_bytes_s=1e9,
    product_flop_s=1e30,
    weights_share=1.0,
    cache_share=1.0,
    product_share=1.0,
    attention_share=1.0,
    few_s=0.0,
    matrix_s=0.0,
    launch_s=0.0,
    beams_s=0.0,
    entry_s=0.0,
    row_s=0.0,
    reduce={"process": Wire(1e-3, 1e6), "nodes": Wire(1e-1, 1e6)},
    send={"process": Wire(2e-3, 1e6), "nodes": Wire(2e-1, 1e6)},
)
FLOP_ONLY = replace(BYTES_ONLY, copy_bytes_s=1e30, product_flop_s=1e9)
H, F, V, LAYERS = 48, 192, 101, 10
LAYER, HEAD = 4 * H * H + 2 * H * F, V * H


def gpu(*devices: int) -> Machine:
    return Machine(devices, "cuda", 10**10, "test")


def generating(
    tensor: int = 1,
    pipeline: int = 1,
    machine: Machine | None = None,
    arch: Arch = ARCH,
    **groups: dict[str, Any],
) -> tuple[JobConfig, Plan]:
    made = config(
        tensor,
        pipeline,
        dataset={"mode": "generate"},
        model={"checkpoint": "PATH", "dtype": "f16"} | groups.pop("model", {}),
        **groups,
    )
    return made, plan(made, machine or gpu(tensor * pipeline), arch)


def predicted(
    rates: Rates, made: tuple[JobConfig, Plan], rows: int, lengths: tuple[int, int] = (6, 4)
) -> Prediction:
    return predict(made[0], ARCH, made[1], rates, *lengths, rows)


def test_parts_of_a_step_by_hand() -> None:
    rows, seen = 3, 6 + 4 / 2
    turn = predicted(BYTES_ONLY, generating(), rows).turn
    assert turn.weights == pytest.approx(2 * (LAYERS * LAYER + HEAD) / 1e9)
    assert turn.cache == pytest.approx(2 * 2 * H * LAYERS * rows * seen / 1e9)
    stream = LAYERS * rows * 2 * (8 * H + 4 * H)
    assert turn.activations == pytest.approx((stream + 8 * rows * V) / 1e9)
    assert turn.messages == turn.bubble == turn.launches == 0
    assert turn.compute == pytest.approx(0)
    parts = turn.weights + turn.cache + turn.activations
    assert turn.total == pytest.approx(parts)
    flop = predicted(FLOP_ONLY, generating(), rows).turn
    attention = 4 * H * LAYERS * rows * seen
    assert flop.total == pytest.approx((2 * (LAYERS * LAYER + HEAD) * rows + attention) / 1e9)


@pytest.mark.parametrize(("rows", "each"), [(1, 1.0), (FEW, 1.0), (FEW + 1, 3.0)])
def test_launches_of_a_step_by_hand(rows: int, each: float) -> None:
    slow = replace(BYTES_ONLY, few_s=1.0, matrix_s=3.0, launch_s=0.01, beams_s=0.5)
    turn = predicted(slow, generating(), rows).turn
    others = 0.01 * (4 * LAYERS + STEP_KERNELS)
    assert turn.launches == pytest.approx(each * (4 * LAYERS + 1) + others)
    beams = predicted(slow, generating(decode={"beams": 5}), 1).turn
    assert beams.launches == pytest.approx(3 * (4 * LAYERS + 1) + others + 0.5)


def test_norms_are_part_of_sums_within_a_process() -> None:
    slow = replace(BYTES_ONLY, launch_s=0.01)
    for machine, kernels in ((gpu(2), 2 * LAYERS), (gpu(1, 1), 4 * LAYERS)):
        turn = predicted(slow, generating(2, 1, machine), 1).turn
        assert turn.launches == pytest.approx(0.01 * (kernels + STEP_KERNELS))


def test_shares_of_the_rates() -> None:
    weights, cache = (
        predicted(replace(BYTES_ONLY, **{f"{name}_share": 0.5}), generating(), 3).turn
        for name in ("weights", "cache")
    )
    whole = predicted(BYTES_ONLY, generating(), 3).turn
    assert (weights.weights, weights.cache) == pytest.approx((2 * whole.weights, whole.cache))
    assert (cache.weights, cache.cache) == pytest.approx((whole.weights, 2 * whole.cache))
    slow, fast = (
        predicted(replace(FLOP_ONLY, product_share=share), generating(), 9).turn.compute
        for share in (0.5, 1.0)
    )
    attention = 4 * H * LAYERS * 9 * 8 / 1e9
    assert slow - attention == pytest.approx(2 * (fast - attention))


def test_whatever_takes_longer_counts_once() -> None:
    both = replace(BYTES_ONLY, product_flop_s=1e9)
    one, many = (predicted(both, generating(), rows).turn for rows in (1, 8))
    assert one.weights == many.weights
    assert one.compute == pytest.approx(0)  # of one row as many operations as bytes
    # 7 more rows' products, and what attention takes beyond its bytes: nothing, f16 has as many
    assert many.compute == pytest.approx(7 * 2 * (LAYERS * LAYER + HEAD) / 1e9)


def test_int8_reads_half_but_for_the_head() -> None:
    int8 = predicted(BYTES_ONLY, generating(model={"weights": "int8"}), 1).turn
    assert int8.weights == pytest.approx((LAYERS * LAYER + 2 * HEAD) / 1e9)


def test_tensor_divides_weights_and_costs_messages() -> None:
    turns = [predicted(BYTES_ONLY, generating(t), 4).turn for t in (1, 2, 4)]
    weights = [t.weights for t in turns]
    assert weights == pytest.approx([weights[0], weights[0] / 2, weights[0] / 4])
    assert turns[0].messages == 0 < turns[1].messages < turns[2].messages
    # two sums a layer and the embedding's, and the highest logits
    each = 2 * H * 4
    by_hand = (2 * LAYERS + 1) * (1e-3 + each / 1e6) + 1e-3 + 8 * 4 / 1e6
    assert turns[1].messages == pytest.approx(by_hand)
    far = predicted(BYTES_ONLY, generating(2, 1, gpu(1, 1)), 4).turn
    assert far.messages == pytest.approx(by_hand + (2 * LAYERS + 2) * (1e-1 - 1e-3))


def test_a_decoder_behind_an_encoder_sums_three_times_a_layer() -> None:
    made, planned = generating(2, arch=t5())
    stages = Stages(made, t5(), planned, BYTES_ONLY)
    parts = stages.step(stages.seats[0], 2, 3, 5, 1.0)
    each = 2 * 20 * 6
    assert parts.messages == pytest.approx((3 * 7 + 1) * (1e-3 + each / 1e6) + 1e-3 + 8 * 6 / 1e6)
    sizes = Sizes(t5(), 2, 2)
    assert parts.weights == pytest.approx((7 * sizes.layer + sizes.head) / 1e9)
    # the source once a row, and of each lane its start token and one more
    assert parts.cache == pytest.approx(sizes.token * 2 * (5 + 3 * 2) / 2 / 1e9)


@pytest.mark.parametrize("arch", [ARCH, t5()], ids=["gpt2", "t5"])
def test_steps_are_the_work_of_the_roofline(arch: Arch) -> None:
    """Weights and cache of all steps, in seconds, are the bytes that `roofline.decode` counts."""
    made, planned = generating(arch=arch, decode={"beams": 3})
    new, rows = 9, 4
    turn = predict(made, arch, planned, BYTES_ONLY, 20, new, rows).turn
    work = decode(Sizes(arch, 2, 2), rows, 3, 20, new)
    assert (new - 1) * (turn.weights + turn.cache) == pytest.approx(work.bytes / 1e9)


def test_micro_batches_go_round_at_the_slowest_stages_pace() -> None:
    made = generating(1, 3)  # 4, 3 and 3 layers
    turn = predicted(BYTES_ONLY, made, 6).turn
    stages = Stages(made[0], ARCH, made[1], BYTES_ONLY)
    parts = [stages.step(s, 2, 1, 6, 2.0).total for s in stages.seats]
    assert turn.total == pytest.approx(3 * max(parts))
    assert turn.bubble == pytest.approx(3 * max(parts) * steady_bubble(parts))
    # a micro-batch reads all weights of the stages, each step of all rows three times a third
    assert turn.weights == pytest.approx(2 * (LAYERS * LAYER + HEAD) / 1e9)


def test_a_single_row_passes_one_stage_after_the_other() -> None:
    made = generating(1, 2)
    turn = predicted(BYTES_ONLY, made, 1).turn
    stages = Stages(made[0], ARCH, made[1], BYTES_ONLY)
    parts = [stages.step(s, 1, 1, 6, 2.0) for s in stages.seats]
    assert turn.total == pytest.approx(sum(p.total for p in parts))
    assert turn.bubble == pytest.approx(turn.total / 2)
    # the row's hidden state, and its token back
    assert [p.messages for p in parts] == pytest.approx([2e-3 + 2 * H / 1e6, 2e-3 + 8 / 1e6])


def test_stages_know_where_their_neighbours_are() -> None:
    _, planned = generating(2, 3, gpu(4, 4, 4))
    assert [(s.group_ranks, s.next_ranks) for s in seats_of(planned)] == [(1, 2), (1, 2), (1, 2)]
    _, planned = generating(2, 2, gpu(4, 4))
    assert [(s.group_ranks, s.next_ranks) for s in seats_of(planned)] == [(1, 1), (1, 1)]
    _, planned = generating(4, 2, gpu(2, 2, 2, 2))
    assert [(s.group_ranks, s.next_ranks) for s in seats_of(planned)] == [(2, 2), (2, 2)]


def test_a_scored_batch_by_hand() -> None:
    made = config(model={"checkpoint": "PATH", "dtype": "f16"})
    planned = plan(made, gpu(1))
    turn = predict(made, ARCH, planned, FLOP_ONLY, 7, 2, 5).turn
    rest = LAYER - 3 * H * H
    products = 2 * 5 * (8 * (9 * LAYER + 3 * H * H) + 2 * (rest + HEAD))
    pairs = 4 * H * 5 * (9 * 8 * 9 / 2 + 2 * 8)
    assert turn.compute == pytest.approx((products + pairs) / 1e9)
    found = predict(made, ARCH, plan(made, gpu(3)), FLOP_ONLY, 7, 2, 5)
    assert found.prefill is None
    assert found.token_s == pytest.approx(turn.total / 45)
    assert found.tokens_s == pytest.approx(3 * 45 / turn.total)


def test_tokens_are_those_of_the_rows_life() -> None:
    made = generating(machine=gpu(2))
    found = predicted(BYTES_ONLY, made, 8, (6, 4))
    assert found.prefill is not None
    seconds = found.prefill.total + 3 * found.turn.total
    assert found.tokens_s == pytest.approx(2 * 8 * 4 / seconds)
    assert found.token_s == pytest.approx(seconds / 32)


def test_prompts_enter_in_parts_with_work_of_the_host() -> None:
    slow = replace(BYTES_ONLY, entry_s=1.0, row_s=0.1)
    whole = predicted(slow, generating(), 8).prefill
    parts = predicted(slow, generating(batch={"max_tokens": 12}), 8).prefill
    assert whole is not None
    assert parts is not None
    assert (whole.host, parts.host) == pytest.approx((1 + 0.8, 4 + 0.8))
    assert whole.total == pytest.approx(1.8, rel=0.01)


def test_a_cell_enters_at_once() -> None:
    made, planned = generating()
    slow = replace(BYTES_ONLY, entry_s=1.0)
    found = cell(made, ARCH, planned, slow, 8, 6, 4)
    assert found["prefill_s"] == pytest.approx(1.0, rel=0.01)
    turn = predict(made, ARCH, planned, slow, 6, 4, 8).turn
    assert found["step_s"] == pytest.approx(turn.total)
    assert found["seconds"] == pytest.approx(found["prefill_s"] + 3 * found["step_s"])


def test_a_scored_cell_fills_and_drains_the_stages() -> None:
    made = config(1, 2, model={"checkpoint": "PATH", "dtype": "f16"}, batch={"max_tokens": 16})
    planned = plan(made, gpu(2))
    stages = Stages(made, ARCH, planned, BYTES_ONLY)
    parts = [stages.score(s, 2, 7, 2).total for s in stages.seats]
    found = cell(made, ARCH, planned, BYTES_ONLY, 10, 7, 2)
    assert found == {"seconds": pytest.approx(sum(parts) + 4 * max(parts))}


def test_rows_at_once() -> None:
    made, planned = generating(batch={"lanes": 6})
    assert rows_at_once(made, planned, 6, 4) == 6
    short = replace(planned, machine=replace(planned.machine, memory_bytes=0))
    assert rows_at_once(made, short, 6, 4) == 0
    for rows, words in ((4, None), (7, r"plan\.batch=7: batch\.lanes=6 is 6 rows\.")):
        wanted = replace(made, plan=replace(made.plan, batch=rows))
        if words is None:
            assert rows_at_once(wanted, planned, 6, 4) == rows
        else:
            with pytest.raises(ConfigError, match=words):
                rows_at_once(wanted, planned, 6, 4)
    scored = config(batch={"max_tokens": 27})
    assert rows_at_once(scored, plan(scored, gpu(1)), 8, 2) == 3


def test_named_rows_get_lanes() -> None:
    made, _ = generating(1, 4, decode={"beams": 3}, plan={"batch": 2})
    assert sized(made).batch.lanes == 12  # a row a stage at least
    assert sized(replace(made, plan=replace(made.plan, batch=9))).batch.lanes == 36
    assert sized(generating()[0]).batch.lanes == "auto"
    kept, _ = generating(batch={"lanes": 50}, plan={"batch": 9})
    assert sized(kept).batch.lanes == 50


def test_wires_that_are_not_known_are_named() -> None:
    none = replace(BYTES_ONLY, reduce={}, send={"process": Wire(0, 1)})
    assert unknown_wire(generating()[1], none) is None
    assert unknown_wire(generating(1, 2)[1], none) is None
    reason = unknown_wire(generating(2)[1], none)
    assert reason == (
        "test has no all_reduce with where=process; doctor.out measures it, plan.link_us and "
        "plan.link_gb_s state it"
    )
    reason = unknown_wire(generating(1, 2, gpu(1, 1))[1], none)
    assert reason is not None
    assert reason.startswith("test has no send with where=nodes; ")
    assert reason.endswith("plan.network_us and plan.network_gb_s state it")


def test_parts_are_told_longest_first() -> None:
    parts = Parts(weights=1.0, messages=3.0) + Parts(weights=1.0)
    assert parts.largest() == [("messages", 3.0), ("weights", 2.0)]
    assert parts.times(2).total == 10
