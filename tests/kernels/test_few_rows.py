"""The kernel of products of few rows against float64: rows, odd sizes, splits, formats of weights,
bias and activation; and the layers and heads that go its way.

Without a GPU it runs in Triton's interpreter, whose tl.dot takes no bf16.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from ftjob import kernels
from ftjob.comm import Solo
from ftjob.kernels import few_rows_configs, linear_cpu
from ftjob.kernels.few_rows import few_rows
from ftjob.kernels.few_rows_configs import (
    BANDS,
    MOST_ROWS,
    PROGRAMS,
    TUNED,
    Config,
    arrivals,
    config_of,
)
from ftjob.model.arch import Activation, Arch
from ftjob.model.layers import Linear, RowLinear, WeightFormat
from ftjob.model.residual import Residual
from ftjob.model.stage import Part, make_stage

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
PLAIN, SPLIT = Config(8, 1), Config(16, 1, splits=3)
MATRICES, SPLIT_MATRICES = Config(16, 2, depth=32, stages=2), Config(32, 4, 4, 64, 3)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    limit = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=limit, atol=limit)


def activated(x: torch.Tensor, activation: Activation | None) -> torch.Tensor:
    """The activation as torch has it, for the reference."""
    if activation is None:
        return x
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


@DTYPES
@pytest.mark.parametrize("config", [PLAIN, SPLIT, MATRICES, SPLIT_MATRICES], ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 512), (37, 515), (3, 33)])
def test_rows_and_sizes(outputs: int, inputs: int, config: Config, dtype: torch.dtype) -> None:
    """Blocks that are full and not; parts without inputs; x as columns of a wider tensor."""
    if config.depth and dtype == torch.bfloat16 and not GPU:
        pytest.skip("the interpreter's tl.dot takes no bf16")
    weight = numbers(outputs, inputs, seed=1).to(DEVICE, dtype) / inputs**0.5
    wider = numbers(MOST_ROWS, inputs + 3, seed=2).to(DEVICE, dtype)
    arrived = arrivals(DEVICE)
    for rows in range(1, MOST_ROWS + 1) if GPU else (1, 5, 16):
        x = wider[:rows, 2 : inputs + 2]
        found = few_rows(x, weight, arrived, config=config)
        close(found, x.double() @ weight.double().t(), dtype)
        assert not bool(arrived.any())
        if config.splits > 1:
            assert torch.equal(few_rows(x, weight, arrived, config=config), found)


@pytest.mark.parametrize("rows", [17, 33, BANDS[-1]])
@pytest.mark.parametrize("weights", ["float", "int8"])
def test_more_rows_by_tensor_cores(rows: int, weights: WeightFormat) -> None:
    weight = torch.randint(-64, 65, (70, 300), generator=torch.Generator().manual_seed(4))
    x = numbers(rows, 300, seed=2).to(DEVICE, torch.float16)
    kept = weight.to(DEVICE, torch.int8 if weights == "int8" else torch.float16)
    scale = torch.full((70,), 2.0**-8, device=DEVICE) if weights == "int8" else None
    for splits in (1, 2):
        config = Config(64, 4, splits, 64, 3)
        found = few_rows(x, kept, arrivals(DEVICE), scale=scale, config=config)
        wanted = x.double() @ kept.double().t() * (1.0 if scale is None else 2.0**-8)
        torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=2e-3 * wanted.std())


@DTYPES
@pytest.mark.parametrize("config", [PLAIN, SPLIT, MATRICES, SPLIT_MATRICES], ids=str)
def test_int8_is_scaled_in_f32(config: Config, dtype: torch.dtype) -> None:
    """Sums of steps beyond what f16 holds, scales far apart, the bias added after the scale."""
    if config.depth and dtype == torch.bfloat16 and not GPU:
        pytest.skip("the interpreter's tl.dot takes no bf16")
    codes = torch.randint(-127, 128, (37, 515), generator=torch.Generator().manual_seed(1))
    codes[3] = 127
    codes = codes.to(DEVICE, torch.int8)
    scale = torch.logspace(-7, -3, 37, device=DEVICE)
    bias = numbers(37, seed=3).to(DEVICE, dtype)
    x = numbers(6, 515, seed=2).to(DEVICE, dtype)
    x[0] = 2.0
    found = few_rows(x, codes, arrivals(DEVICE), scale=scale, bias=bias, config=config)
    wanted = x.double() @ codes.double().t() * scale.double() + bias.double()
    close(found, wanted, dtype)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@DTYPES
@pytest.mark.parametrize("activation", [None, "gelu_tanh", "gelu", "relu"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize("config", [PLAIN, SPLIT], ids=str)
def test_bias_and_activation_before_rounding(
    config: Config, biased: bool, activation: Activation | None, dtype: torch.dtype
) -> None:
    weight, x = (numbers(n, 64, seed=n).to(DEVICE, dtype) for n in (37, 3))
    bias = 5 * numbers(37).to(DEVICE, dtype) if biased else None
    found = few_rows(x, weight, arrivals(DEVICE), bias=bias, activation=activation, config=config)
    sums = x.double() @ weight.double().t() + (0.0 if bias is None else bias.double())
    assert float(sums.min()) < -6
    close(found, activated(sums, activation), dtype)


def test_f16_weight_of_an_f32_residual() -> None:
    weight = numbers(12, 70).to(DEVICE, torch.float16)
    x = 1e6 * numbers(4, 70, seed=1).to(DEVICE)
    wanted = x.double() @ weight.double().t()
    found = few_rows(x, weight, arrivals(DEVICE))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=10)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that goes the GPU's way."""
    if not GPU:
        monkeypatch.setattr(kernels, "used", lambda device: True)
        monkeypatch.setattr(linear_cpu, "available", lambda device, dtype: False)
        monkeypatch.setattr(few_rows_configs, "PROGRAMS", 8)  # an interpreter is slow
    return DEVICE


@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("rows", [0, 1, MOST_ROWS, MOST_ROWS + 1])
def test_layers_of_few_rows_and_of_more(
    gpu: torch.device, rows: int, weights: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(count: int, *rest: int) -> Config:
        asked.append(count)
        return config_of(count, *rest)

    monkeypatch.setattr("ftjob.kernels.few_rows.config_of", counted)
    weight = torch.randint(-127, 128, (40, 48), generator=torch.Generator().manual_seed(4)) / 64
    weight[:, 0] = 127 / 64  # int8 holds these weights exactly
    bias, x, residual = numbers(40), numbers(rows, 48, seed=1), numbers(rows, 40, seed=2)
    bias, x, residual = (t.to(gpu) for t in (bias, x, residual))
    up = Linear(48, 40, weights, (torch.float32, gpu), "gelu")
    down = RowLinear(48, 40, weights, (torch.float32, gpu), Solo())
    with torch.inference_mode():
        for layer in (up, down):
            layer.set_weight(weight.to(gpu), None)
            layer.bias.copy_(bias)
        sums = x.double() @ weight.to(gpu).double().t() + bias.double()
        close(up(x), F.gelu(sums), torch.float32)
        close(down.add_to(Residual(residual), x).total(), residual.double() + sums, torch.float32)
    assert asked == ([rows] * 2 if 0 < rows <= MOST_ROWS else [])


def test_heads_of_few_rows_and_of_more(gpu: torch.device) -> None:
    arch = Arch("gpt2", 1, 2, 12, 24, 40, 61, 64, 1e-5, "gelu_tanh", True)
    stage = make_stage(
        arch, Part(range(1), range(0), True, True), "float", (torch.float32, gpu), Solo()
    )
    stage.fill("embed.tokens", numbers(61, 24), False)
    for rows in (0, 1, MOST_ROWS, MOST_ROWS + 1):
        x = numbers(rows, 24, seed=rows).to(gpu)
        close(stage.scores(x), x.double() @ stage.head_weight.double().t(), torch.float32)


def test_every_config_can_be_launched() -> None:
    """Powers of two; splits only where their arrivals have room."""
    sizes = (1, 2, 40, 768, 1000, 1024, 3072, 4096, 16384, 50257)
    guesses = [*product(range(1, MOST_ROWS + 1), sizes, sizes, (2, 4), (1, 2, 4))]
    guesses += product(range(MOST_ROWS + 1, BANDS[-1] + 1), sizes, sizes, (2,), (1, 2))
    found = [
        (outputs, config_of(rows, outputs, inputs, x, weight))
        for rows, outputs, inputs, x, weight in guesses
    ]
    found += [(outputs, config) for (_, outputs, _, _), config in TUNED.items()]
    for outputs, config in found:
        assert all(n > 0 and n & (n - 1) == 0 for n in (config.columns, config.warps))
        assert config.depth == 0 or (config.depth >= 16 and config.columns >= 16)
        if config.splits > 1:
            assert -(-outputs // config.columns) <= PROGRAMS


def test_what_was_measured_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the band of the rows and the bytes of a weight, and only for half precision."""
    config = Config(8, 2)
    monkeypatch.setattr(few_rows_configs, "TUNED", {(1, 1024, 4096, 8): config})
    assert config_of(5, 1024, 4096, 2, 1) == config_of(8, 1024, 4096, 2, 1) == config
    others = [
        (4, 1024, 4096, 2, 1),
        (9, 1024, 4096, 2, 1),
        (5, 1024, 4096, 2, 2),
        (5, 1024, 4096, 4, 1),
        (5, 4096, 1024, 2, 1),
    ]
    assert config not in [config_of(*sizes) for sizes in others]
    assert MOST_ROWS in BANDS
