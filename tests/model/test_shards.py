"""How tensors are cut, without ranks: over all ranks the regions of every rule cover each element
once and in order, fused q, k, v by heads; local shapes and bytes are what the plan says. And the
stream of cut parts, put together again, is the file.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpt2_oracle import CPU, job_config, open_stage, plan_of, random_gpt2, write_gpt2
from safetensors.torch import load_file

from ftjob.checkpoint.load import FileSource, cut_tensors
from ftjob.checkpoint.shard import Placed, Split, TensorRule, Whole, place, place_all
from ftjob.comm import Solo
from ftjob.job import open_model
from ftjob.model.arch import Arch
from ftjob.model.families import family
from ftjob.plan import stage_tensors

WAYS = [1, 2, 3, 4, 6]
ARCH = Arch("gpt2", 2, 12, 2, 24, 36, 61, 17, 1e-5, "gelu_tanh", True)
RULES = family("gpt2").tensors(ARCH)


def numbered(rule: TensorRule) -> torch.Tensor:
    """A tensor of the rule's shape whose elements are their own numbers."""
    return torch.arange(math.prod(rule.shape)).reshape(rule.shape)


def part_of(rule: TensorRule, rank: int, ways: int) -> torch.Tensor:
    """One rank's true elements, joined as `load` joins them."""
    regions = rule.cut.regions(rule.shape, rank, ways)
    return torch.cat([numbered(rule)[region] for region in regions], dim=rule.cut.axis)


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.parameter)
def test_regions_cover_every_element_once(rule: TensorRule, ways: int) -> None:
    parts = [part_of(rule, rank, ways) for rank in range(ways)]
    if isinstance(rule.cut, Whole):
        assert all(torch.equal(part, numbered(rule)) for part in parts)
        return
    assert torch.equal(torch.cat(parts).flatten().sort().values, numbered(rule).flatten())
    if rule.cut.fused == 1:
        assert torch.equal(torch.cat(parts, dim=rule.cut.axis), numbered(rule))


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.parameter)
def test_local_shape_is_that_of_the_parts(rule: TensorRule, ways: int) -> None:
    local = rule.cut.local_shape(rule.shape, ways)
    for rank in range(ways):
        part = part_of(rule, rank, ways)
        padded = list(local)
        if isinstance(rule.cut, Split) and rule.cut.padded:
            axis = rule.cut.axis
            held = min(local[axis], max(0, rule.shape[axis] - rank * local[axis]))
            padded[axis] = held
        assert list(part.shape) == padded
    assert rule.parameter_shape(ways) == (local[::-1] if rule.transpose else local)


@pytest.mark.parametrize("ways", WAYS)
def test_fused_qkv_gives_each_rank_its_own_heads(ways: int) -> None:
    rules = {r.parameter: r for r in RULES}
    columns, each = torch.arange(ARCH.hidden), ARCH.hidden // ways
    for rank in range(ways):
        heads = columns[rank * each : (rank + 1) * each]
        wanted = torch.cat([heads, ARCH.hidden + heads, 2 * ARCH.hidden + heads])
        bias = part_of(rules["layers.{layer}.attention.qkv.bias"], rank, ways)
        assert torch.equal(bias, wanted)
        weight = part_of(rules["layers.{layer}.attention.qkv.weight"], rank, ways)
        assert torch.equal(weight[0], wanted)
        out = part_of(rules["layers.{layer}.attention.out.weight"], rank, ways)
        assert torch.equal(out[:, 0] // ARCH.hidden, heads)  # its input rows are the same heads


def test_fused_parts_that_are_all_wanted_are_one_region() -> None:
    assert Split(axis=1, fused=3).regions((4, 6), 0, 1) == [(slice(0, 4), slice(0, 6))]
    assert len(Split(axis=1, fused=3).regions((4, 6), 1, 2)) == 3


def test_sources_of_a_parameter_lie_behind_each_other() -> None:
    rule = TensorRule("q", ("a", "b", "c"), (4, 6), "every", Split(axis=0), quantize=True)
    turned = replace(rule, shape=(6, 4), cut=Split(axis=1), transpose=True)
    for each in (rule, turned):
        assert [each.parameter_shape(ways) for ways in (1, 2, 4)] == [(12, 6), (6, 6), (3, 6)]
        assert each.part_shape(2) == (2, 6)
        assert each.parameter_bytes(2, 2, int8=False) == 72
        assert each.parameter_bytes(2, 2, int8=True) == 36 + 4 * 6
        assert not each.cuts_input
    assert replace(rule, cut=Split(axis=1)).cuts_input
    assert [replace(rule, std=(1.0, 2.0, 3.0)).std_of(i) for i in range(3)] == [1.0, 2.0, 3.0]


def test_stages_take_their_layers_of_both_stacks() -> None:
    rules = tuple(
        TensorRule(name, (name,), (2,), where, tied_to="head" if name == "tied" else None)
        for name, where in (
            *[("l{layer}", "layer"), ("e{layer}", "encoder"), ("start", "first")],
            *[("head", "last"), ("shared", "every"), ("tied", "every")],
        )
    )

    def names(*spans: tuple[int, int], first: bool, last: bool) -> list[str]:
        return [p.parameter for p in place(rules, *spans, first=first, last=last)]

    first = names((0, 2), (0, 1), first=True, last=False)
    assert first == ["start", "shared", "tied", "l0", "l1", "e0"]
    assert names((2, 3), (1, 3), first=False, last=True) == ["head", "shared", "l2", "e1", "e2"]
    assert [p.parameter for p in place_all(rules, 1, 2)] == [
        *["start", "head", "shared", "l0", "e0", "e1"]
    ]


def test_vocabulary_padding_lies_at_the_end() -> None:
    cut = Split(axis=0, padded=True)
    taken = [cut.regions((5, 2), rank, 4)[0][0] for rank in range(4)]
    assert [(s.start, s.stop) for s in taken] == [(0, 2), (2, 4), (4, 5), (5, 5)]
    assert cut.local_shape((5, 2), 4) == (2, 2)


@pytest.mark.parametrize("ways", [1, 2, 4])
def test_cut_stream_put_together_is_the_file(tmp_path: Path, ways: int) -> None:
    write_gpt2(tmp_path, random_gpt2(vocab_size=5), shard="9KB")
    stored = {
        name.removeprefix("transformer."): tensor
        for file in tmp_path.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    config = job_config(tmp_path)
    source = open_model(config)
    plan = plan_of(config, source, tensor=ways)
    assert source.index is not None
    pulses: list[None] = []
    found: dict[str, list[tuple[Placed, torch.Tensor]]] = {}
    with FileSource(source.index, CPU) as files:
        for spec in plan.devices:
            held = stage_tensors(source.rules, spec)
            rooms = {p.parameter: torch.empty(p.rule.parameter_shape(ways)) for p in held}
            parts = cut_tensors(
                files, held, spec.tensor, ways, lambda: pulses.append(None), rooms.__getitem__
            )
            for placed, part in parts:
                found.setdefault(placed.sources[0], []).append((placed, part))
    assert found.keys() == stored.keys()
    assert len(pulses) == ways * len(stored)
    for name, cut in found.items():
        rule = cut[0][0].rule
        assert [tuple(part.shape) for _, part in cut] == [rule.parameter_shape(ways)] * ways
        turned = [part.mT if rule.transpose else part for _, part in cut]
        assert torch.equal(joined(rule, turned), stored[name]), name


def joined(rule: TensorRule, parts: list[torch.Tensor]) -> torch.Tensor:
    """The whole tensor from all ranks' parts, padding checked to be zero and dropped."""
    if isinstance(rule.cut, Whole):
        return parts[-1]
    axis, fused = rule.cut.axis, rule.cut.fused
    thirds = [part.chunk(fused, dim=axis) for part in parts]
    whole = torch.cat([p[f] for f in range(fused) for p in thirds], dim=axis)
    true, padding = whole.split([rule.shape[axis], whole.shape[axis] - rule.shape[axis]], dim=axis)
    assert not padding.any()
    return true


@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("pipeline", [1, 3])
def test_stage_holds_the_bytes_of_the_plan(tmp_path: Path, weights: str, pipeline: int) -> None:
    write_gpt2(tmp_path, random_gpt2(n_layer=4, n_inner=40))
    config = job_config(tmp_path, weights=weights)
    plan = plan_of(config, open_model(config), pipeline=pipeline)
    for spec in plan.devices:
        stage = open_stage(config, Solo(), pipeline=pipeline, at=spec.pipeline)
        held = sum(p.numel() * p.element_size() for p in stage.parameters())
        assert held == spec.weight_bytes
    shape = open_model(config).arch
    assert [(d.first_layer, d.last_layer) for d in plan.devices] == (
        [(0, shape.layers)] if pipeline == 1 else [(0, 2), (2, 3), (3, 4)]
    )


def test_tied_head_is_read_again_only_where_the_embedding_is_not() -> None:
    alone = [p.parameter for p in place(RULES, (0, 2), (0, 0), first=True, last=True)]
    assert "embed.tokens" in alone
    assert "head" not in alone
    first = [p.parameter for p in place(RULES, (0, 1), (0, 0), first=True, last=False)]
    behind = place(RULES, (1, 2), (0, 0), first=False, last=True)
    last = {p.parameter: p.sources for p in behind}
    assert "embed.tokens" in first
    assert last["head"] == ("wte.weight",)
    assert "layers.1.mlp.up.weight" in last
    assert not any(name.startswith(("embed", "layers.0")) for name in last)
