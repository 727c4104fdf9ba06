"""The residual sum and the norm behind it in one pass on a GPU: a Triton kernel.

A layer hands its last product over as it is (`model/residual.Residual`); the norm of the next one
adds it, keeps the sum and norms it, all while the row is in registers. `model/residual` calls it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ftjob.kernels.early import starts_early

# Elements of a row that a warp holds: 16 bytes a thread of half precision, once.
PER_WARP = 256
MAX_WARPS = 16


def add_norm(
    residual: torch.Tensor,
    product: torch.Tensor | None,
    product_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    centred: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """residual + (product + product_bias) [N, H] in the residual's dtype, and its norm in the
    weight's: `centred` is LayerNorm (weight * (x - mean) / sqrt(var + eps) + bias), else RMSNorm
    (weight * x / sqrt(mean(x^2) + eps)).

    Sums and statistics are f32, of the sum as it is kept. Without a product the residual itself is
    given back, and product_bias [H] is added for the norm alone. The last launch before this one
    writes neither weight nor biases.
    """
    rows, width = residual.shape
    residual = residual.contiguous()
    total = residual if product is None else torch.empty_like(residual)
    normed = torch.empty((rows, width), dtype=weight.dtype, device=residual.device)
    padded = triton.next_power_of_2(width)
    if rows:
        early = starts_early(residual.device)
        _add_norm[(rows,)](
            residual,
            residual if product is None else product.contiguous(),
            weight if product_bias is None else product_bias,
            total,
            normed,
            weight,
            weight if bias is None else bias,
            eps,
            WIDTH=width,
            PADDED=padded,
            ADDS=product is not None,
            PRODUCT_BIAS=product_bias is not None,
            BIAS=bias is not None,
            CENTRED=centred,
            PDL=early,
            launch_pdl=early,
            num_warps=min(MAX_WARPS, max(1, padded // PER_WARP)),
        )
    return total, normed


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(
    residual,
    product,
    product_bias,
    total,
    normed,
    weight,
    bias,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ADDS: tl.constexpr,
    PRODUCT_BIAS: tl.constexpr,
    BIAS: tl.constexpr,
    CENTRED: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """One row."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    factor = tl.load(weight + columns, mask=inside, other=0.0)
    if BIAS:
        shift = tl.load(bias + columns, mask=inside, other=0.0)
    if PRODUCT_BIAS:
        offset = tl.load(product_bias + columns, mask=inside, other=0.0)
    if PDL:  # the rest may be what earlier launches write
        tl.extra.cuda.gdc_wait()
    x = tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:  # and keeps the sum
        added = tl.load(product + row + columns, mask=inside, other=0.0).to(tl.float32)
        if PRODUCT_BIAS:
            added += offset.to(tl.float32)
        kept = (x + added).to(total.dtype.element_ty)
        tl.store(total + row + columns, kept, mask=inside)
        x = kept.to(tl.float32)
    elif PRODUCT_BIAS:
        x += offset.to(tl.float32)
    if CENTRED:
        x = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    y *= factor.to(tl.float32)
    if BIAS:
        y += shift.to(tl.float32)
    tl.store(normed + row + columns, y.to(normed.dtype.element_ty), mask=inside)
