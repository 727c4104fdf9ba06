"""What each device is given of a T5 checkpoint or of random weights: every part bit by bit, put
together by hand from the file, and the bytes that the plan says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from t5_files import (
    BIAS,
    BUCKETS,
    HEADS,
    KINDS,
    SHAPE,
    F,
    H,
    State,
    V,
    W,
    job_config,
    opened,
    write_t5,
)

from ftjob.checkpoint.load import FileSource, RandomSource, Source, cut_tensors
from ftjob.job import ModelSource, open_model
from ftjob.plan import DeviceSpec, Machine, Plan, make_plan, stage_tensors

CPU = torch.device("cpu")
KIND = pytest.mark.parametrize("kind", KINDS)


def plan_of(source: ModelSource, tensor: int, pipeline: int, **model: Any) -> Plan:
    config = job_config("PATH", **model)
    split = replace(config, parallel=replace(config.parallel, tensor=tensor, pipeline=pipeline))
    machine = Machine((tensor * pipeline,), "cpu", 1 << 34, "test")
    return make_plan(split, source.arch, source.rules, machine)


def given(source: ModelSource, read: Source, spec: DeviceSpec, ways: int) -> State:
    """What a device is given, by parameter; each fills the room that there is for it."""
    held = stage_tensors(source.rules, spec)
    rooms = {p.parameter: torch.full(p.rule.parameter_shape(ways), torch.nan) for p in held}
    parts = cut_tensors(read, held, spec.tensor, ways, lambda: None, rooms.__getitem__)
    found = {placed.parameter: part for placed, part in parts}
    assert len(found) == len(held)
    assert all(part is rooms[name] for name, part in found.items())
    return found


def wanted(file: State, spec: DeviceSpec, ways: int, plan: Plan) -> State:
    """What a device holds, put together by hand from the file: name -> tensor."""

    def rows(*names: str) -> torch.Tensor:
        return torch.cat([file[f"{n}.weight"].chunk(ways)[spec.tensor] for n in names])

    def columns(name: str) -> torch.Tensor:
        return file[f"{name}.weight"].chunk(ways, dim=1)[spec.tensor]

    def vocabulary(name: str) -> torch.Tensor:
        size = -(-V // ways)
        padded = torch.cat([file[name], torch.zeros(size * ways - V, H)])
        return padded[spec.tensor * size : (spec.tensor + 1) * size]

    head = "lm_head.weight" if "lm_head.weight" in file else "shared.weight"
    held = {
        f"{s}_bias.table": file[BIAS.format(s)].chunk(ways, dim=1)[spec.tensor]
        for s in ("encoder", "decoder")
    }
    if spec.first:
        held["embed.tokens"] = vocabulary("shared.weight")
    if spec.last:
        held["encoder_norm.weight"] = file["encoder.final_layer_norm.weight"]
        held["norm.weight"] = file["decoder.final_layer_norm.weight"]
        if head == "lm_head.weight" or plan.pipeline > 1:
            held["head"] = vocabulary(head)
    spans = {
        "encoder": range(spec.first_encoder, spec.last_encoder),
        "decoder": range(spec.first_layer, spec.last_layer),
    }
    for stack, span in spans.items():
        for i in span:
            ours = f"{'encoder' if stack == 'encoder' else 'layers'}.{i}"
            theirs = f"{stack}.block.{i}.layer"
            own, across = f"{theirs}.0.SelfAttention", f"{theirs}.1.EncDecAttention"
            held[f"{ours}.attention_norm.weight"] = file[f"{theirs}.0.layer_norm.weight"]
            held[f"{ours}.attention.qkv.weight"] = rows(f"{own}.q", f"{own}.k", f"{own}.v")
            held[f"{ours}.attention.out.weight"] = columns(f"{own}.o")
            last = 1
            if stack == "decoder":
                held[f"{ours}.cross_norm.weight"] = file[f"{theirs}.1.layer_norm.weight"]
                held[f"{ours}.cross.q.weight"] = rows(f"{across}.q")
                held[f"{ours}.cross.kv.weight"] = rows(f"{across}.k", f"{across}.v")
                held[f"{ours}.cross.out.weight"] = columns(f"{across}.o")
                last = 2
            mlp = f"{theirs}.{last}.DenseReluDense"
            up = [f"{mlp}.wi_0", f"{mlp}.wi_1"] if f"{mlp}.wi_0.weight" in file else [f"{mlp}.wi"]
            held[f"{ours}.mlp_norm.weight"] = file[f"{theirs}.{last}.layer_norm.weight"]
            held[f"{ours}.mlp.up.weight"] = rows(*up)
            held[f"{ours}.mlp.down.weight"] = columns(f"{mlp}.wo")
    return held


@KIND
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (4, 1), (2, 2)], ids=str)
def test_devices_are_given_their_parts_bit_by_bit(
    tmp_path: Path, kind: str, tensor: int, pipeline: int
) -> None:
    write_t5(tmp_path, kind, shard="20KB")
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    stored = {name: value for file in files for name, value in load_file(file).items()}
    source = opened(tmp_path)
    assert source.index is not None
    plan = plan_of(source, tensor, pipeline)
    for spec in plan.devices:
        with FileSource(source.index, CPU) as read:
            found = given(source, read, spec, tensor)
        expected = wanted(stored, spec, tensor, plan)
        assert found.keys() == expected.keys()
        for name, part in found.items():
            assert torch.equal(part, expected[name]), name
        size = 4 * sum(part.numel() for part in found.values())
        assert size == spec.weight_bytes
        padding = [-(-V // tensor) * tensor - V if spec.tensor == tensor - 1 else 0]
        ends = padding * sum(name in found for name in ("embed.tokens", "head"))
        assert read.bytes_read == read.bytes_needed == size - 4 * H * sum(ends)


@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@KIND
def test_bytes_by_hand(tmp_path: Path, kind: str, dtype: str, weights: str) -> None:
    write_t5(tmp_path, kind)
    own_head, gated = KINDS[kind][3], kind != "v1_0"
    t, each = 2, {"f32": 4, "bf16": 2}[dtype]
    plan = plan_of(opened(tmp_path), t, 2, dtype=dtype, weights=weights)

    def linear(inputs: int, outputs: int) -> int:
        codes = inputs * outputs
        return codes + 4 * outputs if weights == "int8" else each * codes

    attention = linear(H, 3 * W // t) + linear(W // t, H)
    cross = linear(H, W // t) + linear(H, 2 * W // t) + linear(W // t, H)
    mlp = linear(H, (1 + gated) * F // t) + linear(F // t, H)
    encoder, decoder = attention + mlp + each * 2 * H, attention + cross + mlp + each * 3 * H
    embedding, tables = each * -(-V // t) * H, each * 2 * BUCKETS * HEADS // t
    assert own_head == (not opened(tmp_path).arch.tied_head)
    for device in plan.devices:
        ends = embedding if device.first else embedding + each * 2 * H
        layers = 2 if device.first else 1
        assert (device.first_encoder, device.last_encoder) == ((0, 1) if device.first else (1, 2))
        assert (device.first_layer, device.last_layer) == ((0, 2) if device.first else (2, 3))
        assert device.weight_bytes == ends + tables + encoder + layers * decoder
        assert device.cache_bytes_per_token == each * 2 * layers * W // t
    (alone,) = plan_of(opened(tmp_path), 1, 1, dtype=dtype).devices
    counted = opened(tmp_path).parameters
    assert alone.weight_bytes == each * counted


def test_row_parallel_weights_are_known_without_a_transpose(tmp_path: Path) -> None:
    write_t5(tmp_path, "v1_1")
    linear = [r for r in opened(tmp_path).rules if r.quantize]
    cut = {r.parameter.removesuffix(".weight") for r in linear if r.cuts_input}
    assert cut == {
        *("encoder.{layer}.attention.out", "encoder.{layer}.mlp.down"),
        *(f"layers.{{layer}}.{name}" for name in ("attention.out", "cross.out", "mlp.down")),
    }
    assert len(linear) == 4 + 7


def test_random_weights_have_the_deviations_of_the_initialisation() -> None:
    shape = {"layers": 1, "heads": 8, "head_size": 16, "hidden": 64, "ffn": 256, "vocab": 500}
    source = open_model(job_config("random", arch=shape | {"variant": "v1_1"}))
    (spec,) = plan_of(source, 1, 1).devices
    made = given(source, RandomSource(0, CPU), spec, 1)
    q, k, v = made["layers.0.attention.qkv.weight"].chunk(3)
    usual = {"q": (64 * 16) ** -0.5, "h": 64**-0.5, "w": 128**-0.5, "f": 256**-0.5, "1": 1.0}
    for part, std in (
        *[(q, "q"), (k, "h"), (v, "h"), (made["layers.0.attention.out.weight"], "w")],
        *[(made["layers.0.cross.q.weight"], "q"), (made["layers.0.cross.kv.weight"], "h")],
        *[(made["encoder.0.mlp.up.weight"], "h"), (made["encoder.0.mlp.down.weight"], "f")],
        *[(made["embed.tokens"], "1"), (made["head"], "h"), (made["encoder_bias.table"], "h")],
    ):
        assert float(part.std()) == pytest.approx(usual[std], rel=0.07)
        assert abs(float(part.mean())) < 0.1 * usual[std] + 0.02
    assert not torch.equal(k, v)
    assert float(made["encoder_norm.weight"].mean()) == pytest.approx(1.0, abs=0.02)


def test_two_ways_make_the_same_random_weights() -> None:
    source = open_model(job_config("random", arch=SHAPE | {"variant": "v1_1"}))

    def parts(ways: int) -> list[State]:
        devices = plan_of(source, ways, 1).devices
        return [given(source, RandomSource(5, CPU), spec, ways) for spec in devices]

    (whole,), (left, right) = parts(1), parts(2)
    for name, stacked in (("layers.2.cross.kv", 2), ("layers.0.attention.qkv", 3)):
        halves = [rank[f"{name}.weight"].chunk(stacked) for rank in (left, right)]
        joined = torch.cat([half[s] for s in range(stacked) for half in halves])
        assert torch.equal(joined, whole[f"{name}.weight"])
    table = torch.cat([left["decoder_bias.table"], right["decoder_bias.table"]], dim=1)
    assert torch.equal(table, whole["decoder_bias.table"])
