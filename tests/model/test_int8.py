"""Weights as int8 with one scale per output column: how far a stored weight may lie off, columns of
zeros, half precision, and what it costs the demo model on LAMBADA.
"""

from __future__ import annotations

import pytest
import torch
from demo_job import demo_job, lambada_requests, score
from gpt2_oracle import CPU

from ftjob.model.layers import Linear
from ftjob.tasks.base import Scored

ROWS, LONGEST = 200, 82


def linear(weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> Linear:
    """An int8 layer of that weight [out, in], bias 0.5."""
    layer = Linear(weight.shape[1], weight.shape[0], "int8", (dtype, CPU))
    layer.set_weight(weight.to(dtype), None)
    layer.bias.fill_(0.5)
    return layer


def test_stored_weight_is_within_half_a_step() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(40, 64, generator=generator) * torch.logspace(-6, 3, 40).unsqueeze(1)
    layer = linear(weight)
    scale = layer.scale.unsqueeze(1)
    assert layer.scale.dtype == torch.float32
    torch.testing.assert_close(layer.scale * 127, weight.abs().amax(dim=1))
    error = (layer.weight.float() * scale - weight).abs()
    assert bool((error <= scale / 2 * (1 + 1e-4)).all())
    assert layer.weight.abs().max(dim=1).values.tolist() == [127] * 40


def test_product_is_that_of_the_stored_weight() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, x = (torch.randn(n, 16, generator=generator) for n in (12, 5))
    layer = linear(weight)
    stored = layer.weight.double() * layer.scale.double().unsqueeze(1)
    wanted = (x.double() @ stored.T + 0.5).float()
    torch.testing.assert_close(layer(x), wanted)


def test_zero_column_stays_zero() -> None:
    weight = torch.ones(4, 8)
    weight[2] = 0.0
    layer = linear(weight)
    assert layer.weight[2].tolist() == [0] * 8
    assert bool((layer.scale > 0).all())  # zero would divide zero on the way in
    y = layer(torch.ones(1, 8))
    assert y[0, 2] == 0.5
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_product_does_not_overflow(dtype: torch.dtype) -> None:
    layer = linear(torch.full((2, 64), 0.05), dtype)
    y = layer(torch.full((1, 64), 10.0, dtype=dtype))  # 32.5; int8 codes sum to 81,280
    assert y.dtype == dtype
    assert y.float()[0].tolist() == pytest.approx([32.5, 32.5], rel=0.01)


def test_demo_model_keeps_its_lambada_accuracy() -> None:
    requests = lambada_requests(demo_job(), ROWS, LONGEST)
    assert len(requests) == ROWS
    answers = {w: score(demo_job(weights=w), requests, 2048) for w in ("float", "int8")}

    def accuracy(scored: list[Scored]) -> float:
        hits = [s.best == r.ids[r.target_from :] for r, s in zip(requests, scored, strict=True)]
        return sum(hits) / len(hits)

    rates = {weights: accuracy(scored) for weights, scored in answers.items()}
    assert rates["float"] > 0.02
    assert rates["int8"] == pytest.approx(rates["float"], abs=0.02)
    off = torch.tensor(
        [
            sum(i.logprobs) - sum(f.logprobs)
            for f, i in zip(answers["float"], answers["int8"], strict=True)
        ]
    )
    assert 0 < float(off.abs().mean()) < 0.1
    assert float(off.abs().max()) < 0.5
