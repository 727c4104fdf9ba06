"""The highest logits of each row on a GPU, and its log(sum(exp)): one look at every logit.

A row's columns are shared out among programs; each finds the highest of its own. Of these few one
program a row finds the highest again. `decode/logits` asks for them in every decode step, and to
merge what the devices of a tensor group have found.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ftjob.kernels.early import starts_early

# Columns of a program, which is one warp: on an H200 the fastest or near it of 512 to 4096 columns
# and 1 to 8 warps, from a row to 1024 (44 us for the 55 of 4096 and 8 there).
COLUMNS, WARPS = 1024, 1
# Each of the highest costs a look at the columns, which are held; beyond so many sorting is faster.
MOST = 32
_NONE = tl.constexpr(2147483647)
LOG2_E = tl.constexpr(1.4426950408889634)


def highest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `k` highest of logits [M, V] of any float dtype: values f32 [M, k] falling, columns
    [M, k] int64, equal values by rising column, and log(sum(exp(logits))) f32 [M]. k is at most V
    and `MOST`."""
    rows, columns = logits.shape
    parts = triton.cdiv(columns, COLUMNS)
    found = torch.empty((parts, rows, 2 * k + 1), device=logits.device)
    early = starts_early(logits.device)
    _find[(rows, parts)](
        logits,
        found,
        found.view(torch.int32),
        columns,
        logits.stride(0),
        K=k,
        COLUMNS=COLUMNS,
        PDL=early,
        launch_pdl=early,
        num_warps=WARPS,
    )
    return merge(found, k)


def merge(found: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of f32 [P, M, 2 * h + 1], what was found in P parts of the columns: the h highest
    values of a row, their columns as the bits of an int32, and log(sum(exp)). No column is in two
    parts. k is at most P * h and `MOST`."""
    parts, rows, width = found.shape
    held = width // 2
    values = torch.empty((rows, k), device=found.device)
    columns = torch.empty((rows, k), dtype=torch.int64, device=found.device)
    norms = torch.empty(rows, device=found.device)
    size = triton.next_power_of_2(parts * held)
    early = starts_early(found.device)
    _merge[(rows,)](
        found,
        found.view(torch.int32),
        values,
        columns,
        norms,
        parts,
        K=k,
        HELD=held,
        SIZE=size,
        PARTS=triton.next_power_of_2(parts),
        PDL=early,
        launch_pdl=early,
        num_warps=max(1, min(4, size // 512)),
    )
    return values, columns, norms


@triton.jit  # type: ignore[untyped-decorator]
def _norm(held):  # type: ignore[no-untyped-def]
    """log(sum(exp)) of what is held; of nothing but -inf that is -inf."""
    top = tl.max(held, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2((held - shift) * LOG2_E), 0)
    norm = shift + tl.log2(tl.maximum(total, 1e-38)) / LOG2_E
    return tl.where(top == float("-inf"), top, norm)


@triton.jit  # type: ignore[untyped-decorator]
def next_highest(held, left):  # type: ignore[no-untyped-def]
    """The highest value held, the lowest column of equals, and both without it."""
    value = tl.max(held, 0)
    place = tl.min(tl.where(held == value, left, _NONE), 0)
    taken = left == place
    return value, place, tl.where(taken, float("-inf"), held), tl.where(taken, _NONE, left)


@triton.jit  # type: ignore[untyped-decorator]
def _find(
    logits,
    found,
    places,
    columns,
    stride,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """The K highest of a part of a row, one after the other, and its log(sum(exp)). `places` are
    the bits of `found`."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, part, rows = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    left = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = left < columns
    at = logits + row.to(tl.int64) * stride + left
    held = tl.load(at, mask=inside, other=float("-inf")).to(tl.float32)
    first = (part * rows + row) * (2 * K + 1)
    tl.store(found + first + 2 * K, _norm(held))
    for i in tl.static_range(K):
        value, place, held, left = next_highest(held, left)
        tl.store(found + first + i, value)
        # a part with fewer columns gives some that are none, lower than any
        tl.store(places + first + K + i, tl.minimum(place, columns - 1))


@triton.jit  # type: ignore[untyped-decorator]
def _merge(
    found,
    places,
    values,
    columns,
    norms,
    parts,
    K: tl.constexpr,
    HELD: tl.constexpr,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """The K highest of a row's HELD of each part, one after the other, and its log(sum(exp))."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, rows = tl.program_id(0), tl.num_programs(0)
    part = tl.arange(0, PARTS)
    own = (part * rows + row) * (2 * HELD + 1)
    held = tl.load(found + own + 2 * HELD, mask=part < parts, other=float("-inf"))
    tl.store(norms + row, _norm(held))
    at = tl.arange(0, SIZE)
    own = (at // HELD * rows + row) * (2 * HELD + 1) + at % HELD
    inside = at < parts * HELD
    held = tl.load(found + own, mask=inside, other=float("-inf"))
    left = tl.load(places + own + HELD, mask=inside, other=_NONE)
    for i in tl.static_range(K):
        value, place, held, left = next_highest(held, left)
        tl.store(values + row * K + i, value)
        # none is left where there are no numbers: a model's NaN
        column = tl.where(place == _NONE, 0, place)
        tl.store(columns + row * K + i, column.to(tl.int64))
