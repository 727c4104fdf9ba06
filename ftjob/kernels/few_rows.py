"""Products of few rows with a weight on a GPU: a Triton kernel bound by the reading of the weight.

`model/layers` calls it where a step has few lanes, `model/stage` for their logits. A weight is read
once, as it is kept, float or int8; bias and activation are applied to the f32 sums. How a product
is shared out among programs says `few_rows_configs`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ftjob.kernels.early import starts_early
from ftjob.kernels.few_rows_configs import Config, config_of
from ftjob.model.arch import Activation

SQRT_HALF = tl.constexpr(0.7071067811865476)
TWICE_SQRT_2_OVER_PI = tl.constexpr(1.5957691216057308)
# So many times 16 bytes of x's inputs a thread holds of W while it waits for x: 64 registers.
AT_ONCE = 16


def few_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    arrived: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: Activation | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """activation(x W^T + b): x [M, K], M from 1 to the last of `BANDS`, of f32 to `MOST_ROWS`, and
    W [N, K], both with dense rows -> [M, N] in the dtype of x.

    W is of any float dtype, or int8 with `scale` f32 [N]: the sum of x * int8 is scaled, which is
    exact but for the rounding of f32; the way of other devices rounds scale * int8 to the dtype of
    x first. Sums are f32, exact ones for f32 x, and added in the same order every time. `arrived`
    is what `arrivals` gives, zero before and after. `config` is for those who measure one. The last
    launch before this one writes neither W nor scale nor bias, which may be read while it runs.
    """
    assert x.stride(1) == weight.stride(1) == 1
    (rows, inputs), outputs = x.shape, weight.shape[0]
    chosen = config or config_of(rows, outputs, inputs, x.element_size(), weight.element_size())
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    vector = 16 // x.element_size()
    depth = chosen.depth or 32 * chosen.warps * vector
    pieces = triton.cdiv(inputs, depth)
    share = triton.cdiv(pieces, chosen.splits)
    blocks, splits = triton.cdiv(outputs, chosen.columns), triton.cdiv(pieces, share)
    sums = out
    if splits > 1:
        assert blocks <= len(arrived)
        sums = torch.empty((splits, rows, outputs), device=x.device)
    early = starts_early(x.device)
    _product[(blocks, splits)](
        x,
        weight,
        out,
        weight if scale is None else scale,
        weight if bias is None else bias,
        sums,
        arrived,
        rows,
        outputs,
        x.stride(0),
        weight.stride(0),
        INPUTS=inputs,
        ROWS=max(16 if chosen.depth else 1, triton.next_power_of_2(rows)),
        COLUMNS=chosen.columns,
        DEPTH=depth,
        SHARE=share,
        SPLITS=splits,
        VECTOR=0 if chosen.depth else vector,
        AHEAD=min(share, max(1, AT_ONCE // chosen.columns)),
        EVEN=inputs == share * splits * depth,
        SCALED=scale is not None,
        BIASED=bias is not None,
        ACTIVATION=activation,
        PDL=early,
        launch_pdl=early,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _product(
    x,
    weight,
    out,
    scale,
    bias,
    sums,
    arrived,
    rows,
    outputs,
    x_stride,
    weight_stride,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SHARE: tl.constexpr,
    SPLITS: tl.constexpr,
    VECTOR: tl.constexpr,
    AHEAD: tl.constexpr,
    EVEN: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """A block of columns, SHARE pieces of their inputs; the last part to come adds all parts up, in
    their order."""
    block, split = tl.program_id(0), tl.program_id(1)
    columns, lanes = block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, ROWS)
    inside, there = columns < outputs, lanes < rows
    x_at = x + lanes.to(tl.int64) * x_stride
    weight_at = weight + columns.to(tl.int64) * weight_stride
    first = split * SHARE * DEPTH
    if SCALED:
        factor = tl.load(scale + columns, mask=inside, other=0.0)
    if BIASED:
        addend = tl.load(bias + columns, mask=inside, other=0.0)
    if VECTOR == 0:
        acc = _by_matrices(x_at, weight_at, there, inside, first, INPUTS, DEPTH, SHARE, EVEN, PDL)
    else:
        acc = _plain(
            *(x_at, weight_at, there, inside, first),
            *(INPUTS, DEPTH, SHARE, VECTOR, AHEAD, EVEN, PDL),
        )

    at = lanes[:, None] * outputs + columns[None, :]
    mine = there[:, None] & inside[None, :]
    last = True
    if SPLITS > 1:
        part = rows * outputs
        tl.store(sums + split * part + at, acc, mask=mine)
        tl.debug_barrier()  # all of this program's threads have written
        last = tl.atomic_add(arrived + block, 1) == SPLITS - 1
        if last:
            tl.store(arrived + block, 0)
            acc = tl.zeros((ROWS, COLUMNS), tl.float32)
            for other in tl.static_range(SPLITS):
                acc += tl.load(sums + other * part + at, mask=mine, other=0.0, cache_modifier=".cg")
    if last:
        if SCALED:
            acc *= factor[None, :]
        if BIASED:
            acc += addend.to(tl.float32)[None, :]
        tl.store(out + at, _activated(acc, ACTIVATION).to(out.dtype.element_ty), mask=mine)


@triton.jit  # type: ignore[untyped-decorator]
def _plain(
    x_at,
    weight_at,
    there,
    inside,
    first,
    INPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    SHARE: tl.constexpr,
    VECTOR: tl.constexpr,
    AHEAD: tl.constexpr,
    EVEN: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """Sums of products, f32 [ROWS, COLUMNS]. A piece is VECTOR inputs for every thread, so all of
    the threads lie along the inputs, in x and W alike, and nothing is exchanged until the end.
    AHEAD pieces of W are loaded before x is there."""
    pieces: tl.constexpr = DEPTH // VECTOR
    ROWS: tl.constexpr = x_at.shape[0]
    COLUMNS: tl.constexpr = weight_at.shape[0]
    x_at, there = x_at[:, None, None], there[:, None, None]
    weight_at, inside = weight_at[None, :, None], inside[None, :, None]
    held = ()
    for i in tl.static_range(AHEAD):
        held += (_piece(weight_at, inside, first + i * DEPTH, INPUTS, DEPTH, VECTOR, EVEN),)
    if PDL:  # the next launch's W comes behind this one's
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros((ROWS, COLUMNS, pieces), tl.float32)
    # unrolled, so that a thread's loads are all under way together
    for i in tl.static_range(SHARE):
        start = first + i * DEPTH
        w = held[i] if i < AHEAD else _piece(weight_at, inside, start, INPUTS, DEPTH, VECTOR, EVEN)
        own = _piece(x_at, there, start, INPUTS, DEPTH, VECTOR, EVEN)
        product = own.to(tl.float32) * w.to(tl.float32)
        acc += tl.sum(tl.reshape(product, (ROWS, COLUMNS, pieces, VECTOR)), 3)
    return tl.sum(acc, 2)


@triton.jit  # type: ignore[untyped-decorator]
def _piece(
    at_rows,
    known,
    start,
    INPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    VECTOR: tl.constexpr,
    EVEN: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """DEPTH inputs from `start` on, of x [ROWS, 1, DEPTH] or of W [1, COLUMNS, DEPTH]."""
    # of int8, too, a thread loads VECTOR
    at = tl.max_contiguous(start + tl.arange(0, DEPTH), VECTOR)[None, None, :]
    if not EVEN:
        known = known & (at < INPUTS)
    return tl.load(at_rows + at, mask=known, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _by_matrices(
    x_at,
    weight_at,
    there,
    inside,
    first,
    INPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    SHARE: tl.constexpr,
    EVEN: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """The same by tensor cores, where the columns are their longer side."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros((weight_at.shape[0], x_at.shape[0]), tl.float32)
    for i in range(SHARE):
        at = first + i * DEPTH + tl.arange(0, DEPTH)
        x_mask, weight_mask = there[None, :], inside[:, None]
        if not EVEN:
            x_mask, weight_mask = (
                x_mask & (at < INPUTS)[:, None],
                weight_mask & (at < INPUTS)[None, :],
            )
        w = tl.load(weight_at[:, None] + at[None, :], mask=weight_mask, other=0.0)
        own = tl.load(x_at[None, :] + at[:, None], mask=x_mask, other=0.0)
        acc = tl.dot(w.to(own.dtype), own, acc, input_precision="ieee")
    return tl.trans(acc)


@triton.jit  # type: ignore[untyped-decorator]
def _activated(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The formulas of `model/layers.activate`; tanh as a sigmoid, (1 + tanh(z)) / 2 = s(2 z)."""
    if ACTIVATION == "gelu_tanh":
        x = x / (1 + tl.exp(-TWICE_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * SQRT_HALF))
    elif ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    return x
