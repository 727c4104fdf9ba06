"""The highest logits of each row on a GPU, and its log(sum(exp)): one look at every logit.

A row's columns are shared out among programs; each finds the highest of its own, which are then few
enough to be put in order. `decode/logits` asks for them in every decode step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Columns of a program.
COLUMNS = 4096
# Each of the highest costs a look at the columns, which are held; beyond so many sorting is faster.
MOST = 32
_NONE = tl.constexpr(2147483647)
LOG2_E = tl.constexpr(1.4426950408889634)


def highest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `k` highest of f32 logits [M, V]: values [M, k] falling, columns [M, k] int64, equal
    values by rising column, and log(sum(exp(logits))) [M]. k is at most V and `MOST`."""
    rows, columns = logits.shape
    parts = triton.cdiv(columns, COLUMNS)
    values = torch.empty((rows, parts, k), device=logits.device)
    places = torch.empty((rows, parts, k), dtype=torch.int64, device=logits.device)
    norms = torch.empty((rows, parts), device=logits.device)
    _find[(rows, parts)](
        logits,
        values,
        places,
        norms,
        columns,
        logits.stride(0),
        K=k,
        COLUMNS=COLUMNS,
        num_warps=8,
    )
    # columns rise from part to part, so a stable order keeps equal values by rising column
    found, order = values.flatten(1).sort(dim=1, descending=True, stable=True)
    at = places.flatten(1).gather(1, order[:, :k])
    return found[:, :k], at, norms.logsumexp(dim=1)


@triton.jit  # type: ignore[untyped-decorator]
def _find(
    logits,
    values,
    places,
    norms,
    columns,
    stride,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """The K highest of a part of a row, one after the other, and its log(sum(exp))."""
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    at = part * COLUMNS + tl.arange(0, COLUMNS)
    held = tl.load(logits + row.to(tl.int64) * stride + at, mask=at < columns, other=float("-inf"))
    first = (row * parts + part) * K
    top = tl.max(held, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2((held - shift) * LOG2_E), 0)
    norm = shift + tl.log2(tl.maximum(total, 1e-38)) / LOG2_E
    tl.store(norms + row * parts + part, tl.where(top == float("-inf"), top, norm))
    left = at
    for i in tl.static_range(K):
        value = tl.max(held, 0)
        place = tl.min(tl.where(held == value, left, _NONE), 0)
        tl.store(values + first + i, value)
        # a part with fewer columns gives some that are none, lower than any
        tl.store(places + first + i, tl.minimum(place, columns - 1).to(tl.int64))
        taken = at == place
        held = tl.where(taken, float("-inf"), held)
        left = tl.where(taken, _NONE, left)
