"""Attention of a decode step on a GPU: a Triton kernel over the pool of all rows' keys and values.

Where each row's cells lie, and how many steps it has made, the kernel reads from a table on the
device, so a launch is the same for every step and can be captured once. `decode/pool` keeps the
table and calls it in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ftjob.kernels.early import starts_early

# What the table [rows, FIELDS] int64 has of a row: the first of its cells; cells of its source, of
# its prompt behind that; steps made, and how many its cells have room for.
BASE, SOURCE, PREFIX, STEPS, MOST = range(5)
FIELDS = 5
# Programs that a GPU's processors need to be busy; a row's keys are split among several below it.
PROGRAMS, MOST_SPLITS = 264, 16
# Fewer pairs of a row and a head than this leave a processor few programs at once.
FEW_PAIRS = 1024
LOG2_E = tl.constexpr(1.4426950408889634)


class Way(NamedTuple):
    """How a program looks at its keys: so many together, with so many warps, so many such steps
    loaded ahead (1 is none), by products of matrices or, for a single lane, by plain sums."""

    keys: int
    warps: int
    stages: int
    matrices: bool


# For a single lane, the more programs the fewer keys at once; for several; and in f32, which takes
# twice the registers. On an H200 at 20 to 600 keys a row these were the fastest or near it;
# `python -m eval.bench.step_attention` asks the GPU at hand.
SINGLE, FEW, MANY = Way(64, 2, 1, False), Way(32, 1, 3, True), Way(16, 1, 3, True)
SEVERAL = Way(32, 1, 1, True)
ONE_F32, SEVERAL_F32 = Way(16, 1, 1, False), Way(16, 1, 3, True)


def way_of(lanes: int, dtype: torch.dtype, pairs: int) -> Way:
    """The way that is taken for so many pairs of a row and a head."""
    if dtype == torch.float32:
        return ONE_F32 if lanes == 1 else SEVERAL_F32
    if lanes > 1:
        return SEVERAL
    if splits_of(pairs) == MOST_SPLITS:
        return SINGLE
    return FEW if pairs < FEW_PAIRS else MANY


@dataclass(frozen=True)
class Scratch:
    """Where the parts of a split row meet: sums f32 [rows, heads, splits, lanes, size + 2], and
    how many have come, int32 [rows, heads], zero between launches. Enough for every number of rows,
    because many are not split."""

    sums: torch.Tensor
    arrived: torch.Tensor

    @staticmethod
    def of(lanes: int, size: int, device: torch.device) -> Scratch:
        """For rows of so many lanes and heads of that size."""
        return Scratch(
            torch.empty(2 * PROGRAMS * lanes * (size + 2), device=device),
            torch.zeros(PROGRAMS, dtype=torch.int32, device=device),
        )


def splits_of(pairs: int) -> int:
    """Into how many programs each of so many pairs of a row and a head is split."""
    splits = 1
    while splits < MOST_SPLITS and pairs * splits < PROGRAMS:
        splits *= 2
    return splits


def step_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    table: torch.Tensor,
    rows: int,
    scratch: Scratch,
    *,
    scale: float,
    new: torch.Tensor | None = None,
    lineage: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    way: Way | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scale + bias) v for W lanes of each of the first `rows` rows of the table.

    q [rows * W, heads * size] and the step's own keys and values `new` [rows * W, 2 * heads * size]
    (both may be columns of a wider tensor) -> [rows * W, heads * size]. `pool` [2, heads, cells,
    size] has the keys and values of a layer. With `new`, a row's own cells are looked at: its
    prompt's, and of each step W, one a lane, of which a lane sees that of its ancestor, `lineage`
    [rows, W, steps] int32 (None where W is 1); the new ones are put behind them. Without, its
    source is looked at. `bias` f32 [heads, 2 * reach + 1] is added by the distance key - query in
    steps, beyond `reach` that of the end; rows have no prompts then. `way` is there to be timed.
    """
    _, heads, cells, size = pool.shape
    lanes = q.shape[0] // rows
    out = torch.empty((q.shape[0], heads * size), dtype=q.dtype, device=q.device)
    splits = splits_of(rows * heads)
    way = way or way_of(lanes, q.dtype, rows * heads)
    early = starts_early(q.device)
    _look[(rows, heads, splits)](
        q,
        q if new is None else new,
        out,
        pool,
        table,
        q if lineage is None else lineage,
        q if bias is None else bias,
        scratch.sums,
        scratch.arrived,
        scale,
        q.stride(0),
        0 if new is None else new.stride(0),
        cells,
        1 if lineage is None else lineage.stride(1),
        SIZE=size,
        PADDED=max(16, triton.next_power_of_2(size)),
        LANES=lanes,
        HELD=max(16, triton.next_power_of_2(lanes)) if way.matrices else 1,
        KEYS=way.keys,
        OWN=new is not None,
        REACH=0 if bias is None else bias.shape[1] // 2,
        BIASED=bias is not None,
        PDL=early,
        launch_pdl=early,
        STAGES=way.stages,
        num_warps=way.warps,
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _look(
    q,
    new,
    out,
    pool,
    table,
    lineage,
    bias,
    sums,
    arrived,
    scale,
    q_stride,
    new_stride,
    cells,
    lineage_stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    LANES: tl.constexpr,
    HELD: tl.constexpr,
    KEYS: tl.constexpr,
    OWN: tl.constexpr,
    REACH: tl.constexpr,
    BIASED: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """A part of a row's keys for one head, with a running maximum (Dao et al. 2022, arXiv
    2205.14135, algorithm 1); the last part to come puts all together."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads, splits = tl.num_programs(1), tl.num_programs(2)
    about = table + row * 5
    first = tl.load(about)
    source = tl.load(about + 1)
    prefix = 0
    step = 0
    keys = source.to(tl.int32)
    if OWN:
        first += source
        prefix = tl.load(about + 2).to(tl.int32)
        # a row that is finished goes on over its last cells
        step = tl.minimum(tl.load(about + 3), tl.load(about + 4) - 1).to(tl.int32)
        keys = prefix + step * LANES
    lanes, columns = tl.arange(0, HELD), tl.arange(0, PADDED)
    mine = (lanes < LANES)[:, None] & (columns < SIZE)[None, :]
    at_lane = (row * LANES + lanes).to(tl.int64)[:, None]
    place = head * SIZE + columns
    own = tl.load(q + at_lane * q_stride + place[None, :], mask=mine, other=0.0)
    k_pool = pool + (head.to(tl.int64) * cells + first) * SIZE
    v_pool = k_pool + heads.to(tl.int64) * cells * SIZE
    table_of_bias = bias + head * (2 * REACH + 1) + REACH

    best = tl.full((HELD,), float("-inf"), tl.float32)
    total = tl.zeros((HELD,), tl.float32)
    acc = tl.zeros((HELD, PADDED), tl.float32)
    share = tl.cdiv(tl.cdiv(keys, splits), KEYS) * KEYS
    end = tl.minimum(keys, (split + 1) * share)
    for start in tl.range(split * share, end, KEYS, num_stages=STAGES):
        at = start + tl.arange(0, KEYS)
        there = at < keys
        mask = there[:, None] & (columns < SIZE)[None, :]
        offset = at.to(tl.int64)[:, None] * SIZE + columns[None, :]
        k = tl.load(k_pool + offset, mask=mask, other=0.0)
        v = tl.load(v_pool + offset, mask=mask, other=0.0)
        if HELD == 1:  # sums, for a product of matrices has 16 rows at least
            scores = tl.sum(own.to(tl.float32) * k.to(tl.float32), 1)[None, :] * scale
        else:
            scores = tl.dot(own, tl.trans(k), input_precision="ieee") * scale
        seen = there[None, :]
        if OWN:
            made = (at - prefix) // LANES
            if BIASED:
                distance = tl.maximum(made - step, -REACH)
                scores += tl.load(table_of_bias + distance, mask=there, other=0.0)[None, :]
            if LANES > 1:
                ancestor = tl.load(
                    lineage + at_lane * lineage_stride + made[None, :],
                    mask=(lanes < LANES)[:, None] & (there & (at >= prefix))[None, :],
                    other=0,
                )
                mark = (at - prefix) - made * LANES
                seen = seen & ((at < prefix)[None, :] | (ancestor == mark[None, :]))
        scores = tl.where(seen, scores * LOG2_E, float("-inf"))
        highest = tl.maximum(best, tl.max(scores, 1))
        known = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(scores - known[:, None])
        shrink = tl.exp2(best - known)
        best, total = highest, total * shrink + tl.sum(weights, 1)
        if HELD == 1:
            more = tl.sum(tl.trans(weights) * v.to(tl.float32), 0)[None, :]
        else:
            more = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        acc = acc * shrink[:, None] + more

    if OWN and split == splits - 1:
        k = tl.load(new + at_lane * new_stride + place[None, :], mask=mine, other=0.0)
        v = tl.load(
            new + at_lane * new_stride + heads * SIZE + place[None, :], mask=mine, other=0.0
        )
        cell = (keys + lanes).to(tl.int64)[:, None] * SIZE + columns[None, :]
        tl.store(k_pool + cell, k, mask=mine)
        tl.store(v_pool + cell, v, mask=mine)
        score = tl.sum(own.to(tl.float32) * k.to(tl.float32), 1) * scale
        if BIASED:
            score += tl.load(table_of_bias)
        score *= LOG2_E
        highest = tl.maximum(best, score)
        weight = tl.exp2(score - highest)
        shrink = tl.exp2(best - highest)
        best, total = highest, total * shrink + weight
        acc = acc * shrink[:, None] + weight[:, None] * v.to(tl.float32)

    answer = out + at_lane * (heads * SIZE) + place[None, :]
    if splits == 1:
        # a row that is none has no keys
        tl.store(answer, (acc / tl.maximum(total, 1e-30)[:, None]), mask=mine)
    else:
        pair = row * heads + head
        part = (pair * splits + split) * LANES + lanes
        where = sums + part * (SIZE + 2)
        tl.store(where[:, None] + columns[None, :], acc, mask=mine)
        tl.store(where + SIZE, best, mask=lanes < LANES)
        tl.store(where + SIZE + 1, total, mask=lanes < LANES)
        tl.debug_barrier()  # all of this program's threads have written
        came = tl.atomic_add(arrived + pair, 1)
        if came == splits - 1:
            tl.store(arrived + pair, 0)
            best = tl.full((HELD,), float("-inf"), tl.float32)
            total = tl.zeros((HELD,), tl.float32)
            acc = tl.zeros((HELD, PADDED), tl.float32)
            for other in range(splits):
                where = sums + ((pair * splits + other) * LANES + lanes) * (SIZE + 2)
                theirs = tl.load(
                    where + SIZE, mask=lanes < LANES, other=float("-inf"), cache_modifier=".cg"
                )
                highest = tl.maximum(best, theirs)
                known = tl.where(highest == float("-inf"), 0.0, highest)
                shrink, grow = tl.exp2(best - known), tl.exp2(theirs - known)
                more = tl.load(
                    where + SIZE + 1, mask=lanes < LANES, other=0.0, cache_modifier=".cg"
                )
                their_acc = tl.load(
                    where[:, None] + columns[None, :], mask=mine, other=0.0, cache_modifier=".cg"
                )
                best, total = highest, total * shrink + more * grow
                acc = acc * shrink[:, None] + their_acc * grow[:, None]
            tl.store(answer, (acc / tl.maximum(total, 1e-30)[:, None]), mask=mine)
