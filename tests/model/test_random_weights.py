"""Random weights are a pure function of seed, tensor name and index: any cut gives the same values
to the bit, names and seeds give different ones, and a few recorded numbers show a changed platform.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gpt2_oracle import CPU, open_stage, packed_logits, random_rows

from ftjob.checkpoint import random as random_weights
from ftjob.checkpoint.random import fill_random, uniform
from ftjob.checkpoint.shard import Region, Split
from ftjob.config import JobConfig, build
from ftjob.job import identity_hash, open_model

SHAPE = {"layers": 2, "heads": 4, "hidden": 24, "vocab": 61, "positions": 40}
# The first rows of h.0.attn.c_attn.weight with seed 7 and shape [4, 3].
RECORDED = [
    [0.0013583266409114003, -0.01739063672721386, -0.005581060890108347],
    [0.0018904621247202158, -0.019625984132289886, -0.01109009888023138],
    [-0.006435737479478121, 0.026268135756254196, 0.02922736294567585],
    [-0.028475403785705566, -0.006772988010197878, -0.007359484676271677],
]


def made(
    shape: tuple[int, ...],
    region: Region | None = None,
    seed: int = 0,
    name: str = "wte.weight",
    dtype: torch.dtype = torch.float32,
    **moments: float,
) -> torch.Tensor:
    """A region (all of it by default) of a random tensor."""
    region = region or tuple(slice(0, n) for n in shape)
    usual = {"mean": 0.0, "std": 0.02} | moments
    out = torch.empty([r.stop - r.start for r in region], dtype=dtype, device=CPU)
    fill_random(out, seed, name, shape, region, mean=usual["mean"], std=usual["std"])
    return out


def random_config(**model: Any) -> JobConfig:
    return build({"model": {"checkpoint": "random", "arch": SHAPE} | model})


@pytest.mark.parametrize("ways", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "cut", [Split(0), Split(1), Split(1, fused=3), Split(0, padded=True)], ids=str
)
def test_any_cut_gives_the_same_bits(cut: Split, ways: int) -> None:
    shape = (37, 36) if cut.padded else (36, 36)
    whole = made(shape)
    regions = [cut.regions(shape, rank, ways) for rank in range(ways)]
    parts = [torch.cat([made(shape, r) for r in rs], dim=cut.axis) for rs in regions]
    for fused in range(cut.fused):
        pieces = [part.chunk(cut.fused, dim=cut.axis)[fused] for part in parts]
        width = shape[cut.axis] // cut.fused
        wanted = whole.narrow(cut.axis, fused * width, width)
        assert torch.equal(torch.cat(pieces, dim=cut.axis), wanted)


def test_pieces_made_one_after_the_other_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made((50, 6))
    monkeypatch.setattr(random_weights, "_CHUNK", {"cpu": 20, "cuda": 20})
    assert torch.equal(made((50, 6)), whole)
    assert torch.equal(made((300,)), made((50, 6)).flatten())


def test_region_may_be_empty() -> None:
    assert made((5, 4), (slice(5, 5), slice(0, 4))).shape == (0, 4)


def test_names_and_seeds_give_different_values() -> None:
    tensors = [made((64, 64), name=n, seed=s) for n in ("a", "b") for s in (0, 1)]
    for i, a in enumerate(tensors):
        for b in tensors[:i]:
            assert (a == b).float().mean() < 0.01
            assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.1


def test_mean_and_deviation_are_those_asked_for() -> None:
    x = made((512, 512), mean=1.0, std=0.5)
    assert float(x.mean()) == pytest.approx(1.0, abs=4 * 0.5 / 512)
    assert float(x.std()) == pytest.approx(0.5, rel=0.01)
    assert float((x - 1).abs().max()) <= 0.5 * math.sqrt(3.0) * (1 + 1e-6)
    below = float((x < 1.0 - 0.5 * math.sqrt(3.0) / 2).float().mean())
    assert below == pytest.approx(0.25, abs=0.01)  # uniform: a quarter below each quartile


def test_elements_are_those_of_splitmix64() -> None:
    def reference(stream: int) -> float:
        z, mask = stream, (1 << 64) - 1
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        return ((z ^ z >> 31) >> 40) / 2**23 - 1.0

    stream, step = 0xFEDCBA9876543210, 0x9E3779B97F4A7C15
    index = [0, 1, 2, 12345, 1 << 40]
    wanted = [reference((stream + i * step) % (1 << 64)) for i in index]
    assert uniform(torch.tensor(index), stream).tolist() == wanted


def test_recorded_values_have_not_changed() -> None:
    assert made((4, 3), seed=7, name="h.0.attn.c_attn.weight").tolist() == RECORDED
    half = made((4, 3), seed=7, name="h.0.attn.c_attn.weight", dtype=torch.bfloat16)
    assert torch.equal(half, torch.tensor(RECORDED).to(torch.bfloat16))


def test_random_model_runs_and_depends_on_its_seed() -> None:
    rows = random_rows([9, 3], 61)
    first, again, other = (
        packed_logits(open_stage(random_config(seed=s)), rows, [0, 0]) for s in (0, 0, 1)
    )
    assert torch.equal(first[0], again[0])
    assert not torch.allclose(first[0], other[0], atol=1e-3)
    stage = open_stage(random_config())
    assert float(stage.norm.weight.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(stage.norm.bias.mean()) == pytest.approx(0.0, abs=0.02)
    assert stage.norm.bias.abs().max() > 0


def test_identity_of_random_weights_holds_the_seed() -> None:
    identities = {
        identity_hash({"checkpoint": open_model(config).identity(config.model.seed)})
        for config in (random_config(seed=0), random_config(seed=1))
    }
    assert len(identities) == 2
