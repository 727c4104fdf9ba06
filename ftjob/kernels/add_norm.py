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
# Of so many rows a program has several, which read weights and biases once (on an H200 at 16384
# rows of 1024: 18.5 us for 21.0), as long as the registers for so many elements leave room for
# several programs.
MANY, TOGETHER, MOST_HELD = 4096, 4, 8192


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
        together = TOGETHER if rows >= MANY and TOGETHER * padded <= MOST_HELD else 1
        warps = max(1, padded // PER_WARP) * (2 if together > 1 else 1)
        early = starts_early(residual.device)
        _add_norm[(triton.cdiv(rows, together),)](
            residual,
            residual if product is None else product.contiguous(),
            weight if product_bias is None else product_bias,
            total,
            normed,
            weight,
            weight if bias is None else bias,
            eps,
            rows,
            ROWS=together,
            WIDTH=width,
            PADDED=padded,
            ADDS=product is not None,
            PRODUCT_BIAS=product_bias is not None,
            BIAS=bias is not None,
            CENTRED=centred,
            PDL=early,
            launch_pdl=early,
            num_warps=min(MAX_WARPS, warps),
        )
    return total, normed


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _add_norm(
    residual,
    product,
    product_bias,
    total,
    normed,
    weight,
    bias,
    eps,
    rows,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ADDS: tl.constexpr,
    PRODUCT_BIAS: tl.constexpr,
    BIAS: tl.constexpr,
    CENTRED: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """`ROWS` rows."""
    block = tl.program_id(0)
    if ROWS > 1:  # last rows first, which a product made last: they are in the cache still
        block = tl.num_programs(0) - 1 - block
    own = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    columns = tl.arange(0, PADDED)[None, :]
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
    at, mine = own * WIDTH + columns, inside & (own < rows)
    x = tl.load(residual + at, mask=mine, other=0.0).to(tl.float32)
    if ADDS:  # and keeps the sum
        added = tl.load(product + at, mask=mine, other=0.0).to(tl.float32)
        if PRODUCT_BIAS:
            added += offset.to(tl.float32)
        kept = (x + added).to(total.dtype.element_ty)
        tl.store(total + at, kept, mask=mine)
        x = kept.to(tl.float32)
    elif PRODUCT_BIAS:
        x += offset.to(tl.float32)
    if CENTRED:
        x = tl.where(inside, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]
    y *= factor.to(tl.float32)
    if BIAS:
        y += shift.to(tl.float32)
    tl.store(normed + at, y.to(normed.dtype.element_ty), mask=mine)
