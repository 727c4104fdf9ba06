"""The kernel of residual sum and norm against the same in float64.

Without a GPU in Triton's interpreter; bf16 where there is a GPU: `python -m pytest tests/kernels`.
"""

from __future__ import annotations

import pytest
import torch

from ftjob.kernels.add_norm import add_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = [torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# residual's dtype, the model's: alike, or T5's in half precision
KINDS = [
    (torch.float32, torch.float32),
    *((h, h) for h in HALF),
    *((torch.float32, h) for h in HALF),
]


def numbers(*shape: int, seed: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return made.to(DEVICE, dtype)


def plain(
    total: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, centred: bool
) -> torch.Tensor:
    """The norm of the sum as it is kept, in float64."""
    x = total.double()
    if centred:
        x = x - x.mean(dim=1, keepdim=True)
    y = x / (x.square().mean(dim=1, keepdim=True) + eps).sqrt() * weight.double()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("adds", ["nothing", "product", "bias", "product and bias"])
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (13, 24), (3, 257), (2, 1024), (2, 1600)])
@pytest.mark.parametrize("many", [4096, 2], ids=["few", "many"])
def test_sum_and_norm(
    monkeypatch: pytest.MonkeyPatch,
    kind: tuple[torch.dtype, torch.dtype],
    centred: bool,
    adds: str,
    rows: int,
    width: int,
    many: int,
) -> None:
    """Widths that are no powers of two; a stream far from zero, so that a mean left in shows. A
    bias alone is added for the norm, and not kept. A row a program, and several, of which the last
    has fewer."""
    monkeypatch.setattr("ftjob.kernels.add_norm.MANY", many)
    held, dtype = kind
    residual = numbers(rows, width, seed=0, dtype=held, scale=2.0) + 3.0
    product = None if "product" not in adds else numbers(rows, width, seed=1, dtype=held)
    # of several products it is owed in f32
    owed = torch.float32 if adds == "bias" else dtype
    last = numbers(width, seed=2, dtype=owed) if "bias" in adds else None
    weight = numbers(width, seed=3, dtype=dtype)
    bias = numbers(width, seed=4, dtype=dtype) if centred else None
    before = residual.clone()
    total, normed = add_norm(residual, product, last, weight, bias, 1e-5, centred=centred)
    assert torch.equal(residual, before)
    assert (total.dtype, normed.dtype) == (held, dtype)
    wanted = residual.double()
    if product is not None:
        wanted = wanted + product.double() + (0.0 if last is None else last.double())
    torch.testing.assert_close(total.double(), wanted, rtol=TOLERANCE[held], atol=TOLERANCE[held])
    summed = total if product is not None or last is None else total.double() + last.double()
    expected = plain(summed, weight, bias, 1e-5, centred)
    torch.testing.assert_close(normed.double(), expected, rtol=0, atol=3 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_norm_is_that_of_the_sum_as_it_is_kept(dtype: torch.dtype) -> None:
    """A stage that is handed the stream must norm it as the stage before would: here all of a small
    product is lost where the sum is rounded, and nothing is left to be normed."""
    residual = torch.full((1, 24), 2048.0, device=DEVICE, dtype=dtype)
    product = torch.tensor([0.25, -0.25] * 12, device=DEVICE, dtype=dtype).unsqueeze(0)
    weight, bias = torch.ones(24, device=DEVICE, dtype=dtype), torch.zeros(24, device=DEVICE)
    total, normed = add_norm(residual, product, None, weight, bias.to(dtype), 1e-5, centred=True)
    assert torch.equal(total, residual)
    assert bool((normed.abs() < 0.1).all())  # a product that is kept makes it 1


def test_epsilon_counts() -> None:
    residual = torch.full((1, 12), 1e-3, device=DEVICE)
    weight = torch.ones(12, device=DEVICE)
    _, normed = add_norm(residual, None, None, weight, None, 1e-2, centred=False)
    torch.testing.assert_close(normed, torch.full_like(normed, 1e-3 / (1e-6 + 1e-2) ** 0.5))


def test_columns_of_a_wider_tensor() -> None:
    """A residual and a product that are not dense, as a tensor group may give them."""
    wide = numbers(4, 40, seed=5, dtype=torch.float32)
    weight = torch.ones(20, device=DEVICE)
    total, _ = add_norm(wide[:, :20], wide[:, 20:], None, weight, None, 1e-5, centred=True)
    torch.testing.assert_close(total, wide[:, :20] + wide[:, 20:])


def test_no_rows() -> None:
    none = torch.empty(0, 16, device=DEVICE)
    total, normed = add_norm(
        none, none, None, torch.ones(16, device=DEVICE), None, 1e-5, centred=False
    )
    assert total.shape == normed.shape == (0, 16)
