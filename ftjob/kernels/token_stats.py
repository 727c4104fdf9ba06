"""What scoring needs of each row of logits, on a GPU: a Triton kernel that reads a row twice, the
second time from the cache.

`decode/scoring` calls it, and merges what it finds over a tensor group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Columns looked at together.
COLUMNS = 4096


def row_stats(
    scores: torch.Tensor, targets: torch.Tensor, true: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of scores [M, V] of any float dtype and target columns int64 [M], the first `true` columns
    alone: f32 [M] the score at the target (0 where that is no column here), the highest and the
    second highest, sum(exp(score - highest)), and int64 [M] the column of the highest, the lowest
    of equals. Of a row without true columns, or of -inf alone, all are -inf and the sum is 0.
    """
    rows = scores.shape[0]
    found = torch.empty((4, rows), dtype=torch.float32, device=scores.device)
    best = torch.empty(rows, dtype=torch.int64, device=scores.device)
    if rows:
        _row_stats[(rows,)](
            scores, targets, *found, best, scores.stride(0), true, COLUMNS=COLUMNS, num_warps=8
        )
    at_target, top, second, total = found
    return at_target, top, second, total, best


# a slice of a long chunk may begin anywhere; it must not be compiled for that
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize_on_alignment=["targets", "at_target", "tops", "seconds", "totals", "winners"]
)
def _row_stats(
    scores,
    targets,
    at_target,
    tops,
    seconds,
    totals,
    winners,
    stride,
    true,
    COLUMNS: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """One row. Each lane keeps its own two highest and the first column of its highest."""
    row = tl.program_id(0).to(tl.int64)
    mine = scores + row * stride
    lanes = tl.arange(0, COLUMNS)
    best = tl.full((COLUMNS,), float("-inf"), tl.float32)
    second = best
    column = lanes
    for start in range(0, true, COLUMNS):
        at = start + lanes
        x = tl.load(mine + at, mask=at < true, other=float("-inf")).to(tl.float32)
        higher = x > best
        second = tl.maximum(second, tl.minimum(x, best))
        column = tl.where(higher, at, column)
        best = tl.where(higher, x, best)
    top = tl.max(best, 0)
    winner = tl.min(tl.where(best == top, column, 2147483647), 0)
    others = tl.where(column == winner, second, best)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, true, COLUMNS):
        at = start + lanes
        x = tl.load(mine + at, mask=at < true, other=float("-inf")).to(tl.float32)
        total += tl.exp(x - top)
    target = tl.load(targets + row)
    held = (target >= 0) & (target < true)
    score = tl.load(mine + target, mask=held, other=0.0).to(tl.float32)
    tl.store(at_target + row, score)
    tl.store(tops + row, top)
    tl.store(seconds + row, tl.max(others, 0))
    tl.store(totals + row, tl.where(top > float("-inf"), tl.sum(total, 0), 0.0))
    tl.store(winners + row, winner.to(tl.int64))
