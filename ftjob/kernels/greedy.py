"""The end of a greedy decode step on a GPU: from the two highest logits of each lane to what is
kept of its token, and whether its row is done. `decode/sampling` does the same in plain PyTorch,
an operation after the other, for steps that draw or edit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ftjob.kernels.early import starts_early


def take(
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    steps: tuple[torch.Tensor, torch.Tensor],
    state: tuple[torch.Tensor, torch.Tensor],
    limit: torch.Tensor,
    ends: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every lane of slots 0..n-1 takes its likeliest token: ids [n, W] int64, and which rows are
    finished [n] bool.

    `found` is values [n * W, L] f32 falling, L 1 or 2, their ids int64, and log(sum(exp)) [n * W],
    all contiguous. Changed in place, for as many slots as there are: `steps`, tokens [slots, step,
    W] int64 and their figures [slots, step, W, 3] f32 (the log-probability twice and the gap to the
    second), each at its lane's length; `state`, lengths [slots, W] int64 and done [slots, W] bool.
    A lane is done with one of the row's `ends` [slots, E] int64 or at its `limit` [slots, 1] int64;
    the length of one that is done stays.
    """
    values, ids, norms = found
    (tokens, figures), (length, done) = steps, state
    width, looks = length.shape[1], values.shape[1]
    n = len(norms) // width
    chosen = torch.empty((n, width), dtype=torch.int64, device=ids.device)
    finished = torch.empty(n, dtype=torch.bool, device=ids.device)
    early = starts_early(ids.device)
    _take[(n,)](
        values,
        ids,
        norms,
        tokens,
        figures,
        length,
        done,
        limit,
        ends,
        chosen,
        finished,
        tokens.shape[1],
        ends.shape[1],
        LOOKS=looks,
        WIDTH=width,
        LANES=triton.next_power_of_2(width),
        ENDS=triton.next_power_of_2(ends.shape[1]),
        PDL=early,
        launch_pdl=early,
        num_warps=1,
    )
    return chosen, finished


@triton.jit  # type: ignore[untyped-decorator]
def _take(
    values,
    ids,
    norms,
    tokens,
    figures,
    length,
    done,
    limit,
    ends,
    chosen,
    finished,
    columns,
    count,
    LOOKS: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    ENDS: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """A row."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    lane, end = tl.arange(0, LANES), tl.arange(0, ENDS)
    inside, lanes = lane < WIDTH, row * WIDTH + lane
    value = tl.load(values + lanes * LOOKS, mask=inside, other=0.0)
    second = tl.load(values + lanes * LOOKS + LOOKS - 1, mask=inside, other=0.0)
    logprob = value - tl.load(norms + lanes, mask=inside, other=0.0)
    gap = value - second if LOOKS > 1 else tl.full((LANES,), float("inf"), tl.float32)
    token = tl.load(ids + lanes * LOOKS, mask=inside, other=0)
    at = tl.load(length + lanes, mask=inside, other=0)
    kept = (row.to(tl.int64) * columns + at) * WIDTH + lane
    tl.store(tokens + kept, token, mask=inside)
    tl.store(figures + kept * 3, logprob, mask=inside)
    tl.store(figures + kept * 3 + 1, logprob, mask=inside)
    tl.store(figures + kept * 3 + 2, gap, mask=inside)
    tl.store(chosen + lanes, token, mask=inside)
    before = tl.load(done + lanes, mask=inside, other=1).to(tl.int32)
    own = tl.load(ends + row * count + end, mask=end < count, other=-1)  # -1: no token's id
    ended = tl.max((token[:, None] == own[None, :]).to(tl.int32), 1)
    now = at + 1 - before
    over = before | ended | (now >= tl.load(limit + row)).to(tl.int32)
    tl.store(length + lanes, now, mask=inside)
    tl.store(done + lanes, over != 0, mask=inside)
    tl.store(finished + row, tl.min(tl.where(inside, over, 1), 0) != 0)
