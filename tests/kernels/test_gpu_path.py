"""Whole models by the way that a GPU takes - kernels, blocks, filled-up products, sums left to the
next norm or made in place - against the CPU's own way, in float32.

Without a GPU in Triton's interpreter, with what chooses the way turned.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ftjob.batching import Chunk
from ftjob.comm import Comm, Solo
from ftjob.decode.scoring import score_chunk
from ftjob.model.arch import Arch, Relative
from ftjob.model.arrays import ALIGNED, Arena, joined, parts
from ftjob.model.layers import RowLinear, WeightFormat
from ftjob.model.packing import Packing
from ftjob.model.residual import Residual
from ftjob.model.stage import Part, Stage, make_stage
from ftjob.tasks.base import Row, Scored, ScoreRequest

sys.path.append(str(Path(__file__).parent.parent / "model"))
from thread_comm import run_group

CPU = torch.device("cpu")
GPT = Arch("gpt2", 2, 2, 12, 24, 40, 61, 64, 1e-5, "gelu_tanh", True)
T5 = Arch(
    *("t5", 2, 2, 8, 20, 40, 61, None, 1e-6, "gelu_tanh", False),
    encoder_layers=2,
    norm="rms",
    relative=Relative(8, 16),
    gated=True,
)
# Devices, and passes of how many rows add products in place: none here; those over all positions,
# but not those over the wanted ones; all. Over a tensor group none does.
WAYS = pytest.mark.parametrize(
    ("ways", "in_place"), [(1, 1 << 20), (1, 64), (1, 1), (2, 1 << 20), (2, 1)]
)


def stage_of(arch: Arch, group: Comm, device: torch.device, part: Part | None = None) -> Stage:
    """A stage of random numbers, others on each rank but for positions: of these one rank's go into
    the sum."""
    part = part or Part(range(arch.layers), range(arch.encoder_layers), True, True)
    stage = make_stage(arch, part, "float", (torch.float32, device), group)
    made = torch.Generator().manual_seed(group.rank)
    for name, parameter in list(stage.named_parameters()):
        own = torch.Generator().manual_seed(9) if name == "embed.positions" else made
        value = torch.randn(parameter.shape, generator=own) * 0.3
        about = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        stage.fill(name, value.to(device) + about, False)
    return stage


@torch.inference_mode()
def scored(ways: int, device: torch.device) -> list[list[Scored]]:
    """The answers of each rank to a ragged chunk, in two stages if alone."""
    made = torch.Generator().manual_seed(1)
    rows = [torch.randint(61, (n,), generator=made).tolist() for n in (2, 41, 7, 20, 7, 64)]
    asked = [ScoreRequest(Row(0, 1, b"", ""), "", ids, max(1, len(ids) - 3), 1) for ids in rows]
    chunk = Chunk(0, tuple(asked))

    def answers(group: Comm) -> list[Scored]:
        if ways > 1:
            found = score_chunk(stage_of(GPT, group, device), chunk, device, lambda: None)
        else:
            spans = (
                Part(range(1), range(0), True, False),
                Part(range(1, 2), range(0), False, True),
            )
            first, last = (stage_of(GPT, group, device, span) for span in spans)
            x = score_chunk(first, chunk, device, lambda: None)
            found = score_chunk(last, chunk, device, lambda: None, x)
        return found.answers(lambda: None)

    return [answers(Solo())] if ways == 1 else run_group(ways, answers)


@WAYS
def test_scores_by_both_ways(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, ways: int, in_place: int
) -> None:
    monkeypatch.setattr("ftjob.model.layers.IN_PLACE", in_place)
    wanted = scored(ways, CPU)
    found = scored(ways, request.getfixturevalue("gpu"))
    for mine, theirs in zip(found, wanted, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)
            assert a.best == b.best
            assert a.gaps == pytest.approx(b.gaps, abs=2e-5)


@torch.inference_mode()
def encoded(ways: int, device: torch.device) -> list[torch.Tensor]:
    """What the encoder makes of sources, on each rank."""
    lengths = [40, 17, 1]
    ids = torch.randint(61, (sum(lengths),), generator=torch.Generator().manual_seed(1))

    def read(group: Comm) -> torch.Tensor:
        entry = stage_of(T5, group, device).entry(ids.numpy(), lengths, Arena(device))
        return (
            stage_of(T5, group, device)
            .enter(entry.ids, entry, [], lambda: None)
            .cpu()[: sum(lengths)]
        )

    return [read(Solo())] if ways == 1 else run_group(ways, read)


@pytest.mark.parametrize(("ways", "in_place"), [(1, 1 << 20), (1, 1), (2, 1)])
def test_sources_by_both_ways(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, ways: int, in_place: int
) -> None:
    monkeypatch.setattr("ftjob.model.layers.IN_PLACE", in_place)
    wanted = encoded(ways, CPU)
    found = encoded(ways, request.getfixturevalue("gpu"))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("biases", ["both", "one", "none"])
@pytest.mark.parametrize(
    ("dtype", "stream"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),  # T5's
    ],
)
@torch.inference_mode()
def test_products_in_place(
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    weights: WeightFormat,
    biases: str,
    dtype: torch.dtype,
    stream: torch.dtype,
) -> None:
    """Two products, one after the other, as often as a pass comes: the stream stays where it is,
    its biases are owed, and each is counted once."""
    monkeypatch.setattr("ftjob.model.layers.IN_PLACE", 20)
    made = torch.Generator().manual_seed(5)
    layers, wanted_bias = [], torch.zeros(12, device=gpu)
    for has_bias in (biases == "both", biases != "none"):
        layer = RowLinear(8, 12, weights, (dtype, gpu), Solo(), bias=has_bias)
        layer.set_weight((torch.randint(-127, 128, (12, 8), generator=made) / 64).to(gpu), None)
        if layer.bias is not None:
            layer.bias.copy_(torch.randn(12, generator=made))
            wanted_bias += layer.bias
        layers.append(layer)
    for _ in range(3):
        x = torch.randn(20, 8, generator=made).to(gpu, dtype)
        held = torch.randn(20, 12, generator=made).to(gpu, stream)
        wanted = held.float() + sum(layer.product(x.float(), None) for layer in layers)
        residual = Residual(held)
        for layer in layers:
            residual = layer.add_to(residual, x)
        assert residual.held is held
        assert residual.product is None
        assert (residual.bias is None) == (biases == "none")
        assert held.dtype == residual.total().dtype == stream
        near = {"rtol": 0, "atol": 1e-4 if stream == torch.float32 else 0.1}
        torch.testing.assert_close(held.float(), wanted, **near)
        torch.testing.assert_close(residual.total().float(), wanted + wanted_bias, **near)


def test_filled_up_packing(gpu: torch.device) -> None:
    """Real positions first, then zeros, and other arrays likewise."""
    ids, targets = np.arange(1, 22), np.arange(5)
    packing, found = Packing.beside([ids, targets], [12, 9], [9, 7], gpu, fill=True)
    assert packing.positions.tolist() == [*range(12), *range(9), *[0] * 11]
    assert packing.wanted.tolist() == [9, 10, 11, 19, 20, *[0] * 11]
    assert found[0].tolist() == [*range(1, 22), *[0] * 11]
    assert found[1].tolist() == [*range(5), *[0] * 11]
    assert packing.blocks is not None
    assert packing.wanted_blocks is not None
    assert (packing.blocks.queries, packing.wanted_blocks.queries) == (32, 16)
    exact, _ = Packing.beside([], [12, 9], [9, 7], gpu, fill=False)
    assert exact.positions.tolist() == [*range(12), *range(9)]


def test_arrays_in_one_copy_come_out_as_they_were() -> None:
    arrays = [
        np.arange(5),
        np.ones((2, 3), np.int32),
        np.empty(0),
        np.arange(3.0),
        np.zeros((0, 5)),
    ]
    held = joined(arrays, pinned=False)
    for array, tensor in zip(arrays, parts(held, arrays), strict=True):
        assert tensor.numpy().dtype == array.dtype
        assert np.array_equal(tensor.numpy(), array)
        assert (tensor.data_ptr() - held.data_ptr()) % ALIGNED == 0
