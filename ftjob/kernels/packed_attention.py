"""Attention over packed rows on a GPU: a Triton kernel, each row by itself and without padding.

A row's queries are the last of its positions, so one kernel serves whole prompts, an encoder's
sources and the few positions that are scored at the end. `model/packing` makes the `Blocks` once a
batch, `model/attention` calls it in every layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ftjob.model.packing import QUERIES, Blocks

# Keys are looked at in steps of so many, of which so many are loaded or at work at once: where
# biases are looked up in each, in half precision, one alone is faster.
KEYS, STAGES, STAGES_BIASED = 32, 3, 1
LOG2_E = tl.constexpr(1.4426950408889634)


def packed_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    blocks: Blocks,
    heads: int,
    *,
    causal: bool,
    scale: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scale + bias) v of each row: q [M, heads * size], kv [N, 2 * heads * size]
    (both may be columns of a wider tensor) -> [M, heads * size], 0 where a query has no keys.

    `causal` hides later keys. `bias` f32 [heads, 2 * reach + 1] is added by the distance key -
    query, beyond `reach` that of the end. Sums are f32; f32 products are exact to f32.
    """
    width = q.shape[1]
    size = width // heads
    out = torch.empty((blocks.queries, width), dtype=q.dtype, device=q.device)
    reach = 0 if bias is None else bias.shape[1] // 2
    half = q.dtype != torch.float32
    _attend[(len(blocks.table), heads)](
        q,
        kv,
        out,
        blocks.table,
        q if bias is None else bias,
        scale,
        q.stride(0),
        kv.stride(0),
        width,
        SIZE=size,
        PADDED=max(16, triton.next_power_of_2(size)),
        QUERIES=QUERIES,
        KEYS=KEYS,
        CAUSAL=causal,
        REACH=reach,
        BIASED=bias is not None,
        STAGES=STAGES_BIASED if half and bias is not None else STAGES,
        PRECISION="ieee",
        num_warps=4,
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _attend(
    q,
    kv,
    out,
    table,
    bias,
    scale,
    q_stride,
    kv_stride,
    width,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    REACH: tl.constexpr,
    BIASED: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """Some queries of a row and head over its keys, with a running maximum (Dao et al. 2022, arXiv
    2205.14135, algorithm 1)."""
    about = table + tl.program_id(0) * 5
    head = tl.program_id(1)
    first = tl.load(about).to(tl.int64)
    count = tl.load(about + 1)
    place = tl.load(about + 2)
    first_key = tl.load(about + 3).to(tl.int64)
    keys = tl.load(about + 4)
    rows, columns = tl.arange(0, QUERIES), tl.arange(0, PADDED)
    inside = columns < SIZE
    mine = (rows < count)[:, None] & inside[None, :]
    where = (first + rows)[:, None]
    own = tl.load(q + where * q_stride + (head * SIZE + columns)[None, :], mask=mine, other=0.0)
    places = place + rows
    best = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, PADDED), tl.float32)
    end = tl.minimum(keys, place + count) if CAUSAL else keys
    for start in tl.range(0, end, KEYS, num_stages=STAGES):
        at = start + tl.arange(0, KEYS)
        there = at < keys
        base = kv + (first_key + at) * kv_stride + head * SIZE
        mask = there[:, None] & inside[None, :]
        k = tl.load(base[:, None] + columns[None, :], mask=mask, other=0.0)
        scores = tl.dot(own, tl.trans(k), input_precision=PRECISION) * scale
        if BIASED:
            distance = tl.minimum(tl.maximum(at[None, :] - places[:, None], -REACH), REACH)
            scores += tl.load(bias + head * (2 * REACH + 1) + REACH + distance)
        seen = there[None, :]
        if CAUSAL:
            seen = seen & (at[None, :] <= places[:, None])
        scores = tl.where(seen, scores * LOG2_E, float("-inf"))
        highest = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(best - highest)
        best, total = highest, total * shrink + tl.sum(weights, 1)
        v = tl.load(base[:, None] + width + columns[None, :], mask=mask, other=0.0)
        product = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        sums = sums * shrink[:, None] + product
    # queries without keys only fill up: zeros
    answer = (sums / tl.where(total > 0, total, 1.0)[:, None]).to(out.dtype.element_ty)
    tl.store(out + where * width + (head * SIZE + columns)[None, :], answer, mask=mine)
