"""The linear layers against plain products in double precision: packed for the CPU or not, in one
block of inputs or several, with activation or residual fused in, and cut over a group.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from gpt2_oracle import CPU
from thread_comm import run_group

from ftjob.comm import Comm, Solo
from ftjob.kernels import linear_cpu
from ftjob.model.arch import Activation
from ftjob.model.layers import Linear, RowLinear, WeightFormat
from ftjob.model.residual import Residual

INPUTS = [1, 16, linear_cpu.BLOCK, linear_cpu.BLOCK + 1, 2 * linear_cpu.BLOCK, 500]
ACTIVATIONS: list[Activation | None] = [None, "gelu_tanh", "gelu", "relu"]


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether layers use oneDNN's packed weights; False is what other devices and dtypes run."""
    if not request.param:
        monkeypatch.setattr(linear_cpu, "available", lambda device, dtype: False)
    return bool(request.param)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(layer: Linear, weight: torch.Tensor, bias: torch.Tensor, group: Comm | None) -> None:
    with torch.no_grad():
        layer.set_weight(weight, group)
        layer.bias.copy_(bias)


def activated(x: torch.Tensor, activation: Activation | None) -> torch.Tensor:
    """The activation as torch has it, for the reference."""
    if activation is None:
        return x
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("inputs", INPUTS)
def test_linear_is_the_product_and_its_activation(
    packed: bool, inputs: int, activation: Activation | None
) -> None:
    weight, bias = numbers(37, inputs), numbers(37, seed=1)
    layer = Linear(inputs, 37, "float", (torch.float32, CPU), activation)
    fill(layer, weight, bias, None)
    assert layer.packed == packed
    for rows in (1, 7, 64):
        x = numbers(rows, inputs, seed=rows)
        product = x.double() @ weight.double().T
        wanted = activated(product + bias.double(), activation).float()
        torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(layer.product(x, None), product.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("inputs", INPUTS)
def test_row_linear_adds_to_the_residual(packed: bool, inputs: int, weights: WeightFormat) -> None:
    weight = torch.randint(-127, 128, (37, inputs), generator=torch.Generator().manual_seed(4)) / 8
    weight[:, 0] = 127 / 8  # int8 holds these weights exactly
    bias, x, residual = numbers(37, seed=1), numbers(9, inputs, seed=2), numbers(9, 37, seed=3)
    before = residual.clone()
    layer = RowLinear(inputs, 37, weights, (torch.float32, CPU), Solo())
    fill(layer, weight, bias, Solo())
    wanted = residual.double() + x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(
        layer.add_to(Residual(residual), x).total(), wanted.float(), rtol=1e-5, atol=2e-3
    )
    assert torch.equal(residual, before)


@pytest.mark.parametrize("ways", [2, 3])
def test_row_linear_over_a_group_adds_bias_and_residual_once(packed: bool, ways: int) -> None:
    inputs = 198
    weight, bias = numbers(11, ways * inputs), numbers(11, seed=1)
    x, residual = numbers(5, ways * inputs, seed=2), numbers(5, 11, seed=3)

    def member(comm: Comm) -> torch.Tensor:
        mine = slice(comm.rank * inputs, (comm.rank + 1) * inputs)
        layer = RowLinear(inputs, 11, "float", (torch.float32, CPU), comm)
        fill(layer, weight[:, mine], bias, comm)
        return layer.add_to(Residual(residual), x[:, mine].contiguous()).total()

    wanted = residual.double() + x.double() @ weight.double().T + bias.double()
    for y in run_group(ways, member):
        torch.testing.assert_close(y, wanted.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("whole", "block"), [(True, 384), (False, linear_cpu.BLOCK)])
def test_packed_weight_takes_the_same_bytes(whole: bool, block: int) -> None:
    weight = numbers(48, 384)
    blocks = linear_cpu.pack(weight, whole)
    assert sum(b.numel() * b.element_size() for b in blocks) == 4 * weight.numel()
    assert [tuple(b.shape) for b in blocks] == [
        (48, part.shape[1]) for part in weight.split(block, dim=1)
    ]


def test_blocks_round_no_worse_than_blocks_do_in_theory() -> None:
    """Products of unit normals, summed in `blocks` sums of BLOCK in a row that are added in a row:
    behind k of them an addition rounds a number of size sqrt(k), uniformly within half an ulp. One
    sum over all inputs in a row errs almost three times as much."""
    blocks, block = 8, linear_cpu.BLOCK
    inputs = blocks * block
    weight, x, zero = numbers(64, inputs), numbers(64, inputs, seed=1), torch.zeros(64, 64)
    layer = RowLinear(inputs, 64, "float", (torch.float32, CPU), Solo())
    fill(layer, weight, torch.zeros(64), Solo())
    exact = x.double() @ weight.double().T
    error = (layer.add_to(Residual(zero), x).total().double() - exact).square().mean().sqrt()
    half_ulp = torch.finfo(torch.float32).eps / 2
    sums = blocks * block**2 / 2 + blocks**2 * block / 2
    assert float(error) < half_ulp / math.sqrt(3) * math.sqrt(sums)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_layers_are_not_packed(dtype: torch.dtype) -> None:
    weight, bias, x = numbers(8, 16), numbers(8, seed=1), numbers(3, 16, seed=2)
    layer = Linear(16, 8, "float", (dtype, CPU))
    fill(layer, weight.to(dtype), bias.to(dtype), None)
    assert not layer.packed
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), F.linear(x, weight, bias), rtol=0.05, atol=0.05)
