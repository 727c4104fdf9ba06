"""A step of beam search on a GPU: from the highest tokens of every lane to the lanes that go on,
the pool, and whether the row is done. `decode/beam` has the rules, and does the same in plain
PyTorch, an operation after the other, where rows ask for edits or diversity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ftjob.kernels.highest import next_highest

# A warp holds a row's candidates in registers: so many are held, of so many that are looked at.
MOST_CANDIDATES, MOST_LOOKS = 128, 1024
# As in `decode/search`.
TOKEN_BITS, BEAM_BITS = tl.constexpr(32), tl.constexpr(8)
LOWEST = tl.constexpr(-3.4028234663852886e38)
_NONE = tl.constexpr(2147483647)


@dataclass(frozen=True)
class Beams:
    """What is kept of the rows of S slots with W beams, for T steps; all contiguous.

    `length`, `limit` int64, `done` bool, `penalty` f32 [S]; `open` f32 [S, W], the cum_logprob of
    the open beams; `history` int64 and `logprobs` f32 [S, T, W], the tokens of each step with the
    lanes before them, and their log-probabilities; `gaps` f32 [S, T]; `power` f32 [S, T], what a
    score is divided by that ends with the step; `pool` f32 [S, W, 3] (score, cum_logprob, the last
    token's own) and `endings` int64 [S, W], best first.
    """

    length: torch.Tensor
    limit: torch.Tensor
    done: torch.Tensor
    penalty: torch.Tensor
    open: torch.Tensor
    history: torch.Tensor
    logprobs: torch.Tensor
    gaps: torch.Tensor
    power: torch.Tensor
    pool: torch.Tensor
    endings: torch.Tensor


def fits(width: int, looks: int, candidates: int) -> bool:
    """Whether a row's lanes, of which so many tokens are looked at, and candidates are few enough
    for `advance`, and enough to fill up the lanes."""
    return width < candidates <= MOST_CANDIDATES and width * looks <= MOST_LOOKS


def advance(
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    beams: Beams,
    ends: torch.Tensor,
    candidates: int,
    *,
    more: bool,
    ft: bool,
    early: bool | str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A step of slots 0..n-1: tokens [n, W] int64, the lane each goes on from [n, W] int64, and
    which rows are done [n] bool. `beams` changes in place.

    `found` is values [n * W, L] f32 falling, their ids int64, and log(sum(exp)) [n * W]; so many
    `candidates` of a row's W * L are ranked, and a lane has `more` tokens than L or not. A token of
    the row's `ends` [S, E] int64 ends. `ft` and `early` are FasterTransformer's rule at the limit,
    and early_stopping.
    """
    values, ids, norms = (t.contiguous() for t in found)
    width, looks = beams.open.shape[1], values.shape[1]
    n, device = len(norms) // width, values.device
    chosen = torch.empty((n, width), dtype=torch.int64, device=device)
    parents = torch.empty_like(chosen)
    finished = torch.empty(n, dtype=torch.bool, device=device)
    _advance[(n,)](
        *(values, ids, norms, ends, chosen, parents, finished),
        *(beams.length, beams.limit, beams.done, beams.penalty, beams.open),
        *(beams.history, beams.logprobs, beams.gaps, beams.power, beams.pool, beams.endings),
        beams.power.shape[1],
        ends.shape[1],
        WIDTH=width,
        LOOKS=looks,
        SIZE=triton.next_power_of_2(width * looks),
        CANDIDATES=candidates,
        HELD=triton.next_power_of_2(candidates),
        SLOTS=triton.next_power_of_2(width + 1),
        POOL=triton.next_power_of_2(2 * width),
        ENDS=triton.next_power_of_2(ends.shape[1]),
        MORE=more,
        FT=ft,
        EARLY="never" if early == "never" else "at once" if early else "no hope",
        num_warps=1,
    )
    return chosen, parents, finished


@triton.jit  # type: ignore[untyped-decorator]
def _at(numbers, there):  # type: ignore[no-untyped-def]
    """The one number that is `there`."""
    return tl.sum(tl.where(there, numbers, 0), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _moved(numbers, to):  # type: ignore[no-untyped-def]
    """numbers [M] to where `to` [M, N] says, [N]; 0 where nothing goes."""
    return tl.sum(tl.where(to, numbers[:, None], 0), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _count(flags, among):  # type: ignore[no-untyped-def]
    """How many of flags [M] are set among those of each row of `among` [N, M]: [N]."""
    return tl.sum(tl.where(among, flags[None, :], 0), 1)


@triton.jit  # type: ignore[untyped-decorator]
def _gap(gap):  # type: ignore[no-untyped-def]
    """Of -inf from -inf: that decides nothing."""
    return tl.where(gap != gap, float("inf"), gap)


@triton.jit  # type: ignore[untyped-decorator]
def _advance(
    values,
    ids,
    norms,
    ends,
    chosen,
    parents,
    finished,
    length,
    limit,
    done,
    penalty,
    open_sums,
    history,
    logprobs,
    gaps,
    power,
    pool,
    endings,
    columns,
    end_count,
    WIDTH: tl.constexpr,
    LOOKS: tl.constexpr,
    SIZE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    HELD: tl.constexpr,
    SLOTS: tl.constexpr,
    POOL: tl.constexpr,
    ENDS: tl.constexpr,
    MORE: tl.constexpr,
    FT: tl.constexpr,
    EARLY: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """A row. Vectors are of all that was looked at [SIZE], candidates in order [HELD], lanes and
    the best that is dropped [SLOTS], or the pool and what may join it [POOL]."""
    row = tl.program_id(0).to(tl.int64)
    at, most = tl.load(length + row), tl.load(limit + row)
    before = tl.load(done + row).to(tl.int32)
    divisor = tl.load(power + row * columns + at)
    last = at + 1 >= most

    # the highest of all continuations
    place = tl.arange(0, SIZE)
    seen = place < WIDTH * LOOKS
    looked, lanes_of = row * WIDTH * LOOKS, row * WIDTH
    value = tl.load(values + looked + place, mask=seen, other=float("-inf"))
    norm = tl.load(norms + lanes_of + place // LOOKS, mask=seen, other=0.0)
    opened = tl.load(open_sums + lanes_of + place // LOOKS, mask=seen, other=0.0)
    reached = tl.where(seen, value - norm + opened, float("-inf"))
    unseen = tl.max(tl.where(place % LOOKS == LOOKS - 1, reached, float("-inf")), 0)
    left = tl.where(seen, place, _NONE)
    rank = tl.arange(0, HELD)
    keys, spots = tl.full((HELD,), float("-inf"), tl.float32), tl.zeros((HELD,), tl.int32)
    for i in range(CANDIDATES):
        key, spot, reached, left = next_highest(reached, left)
        keys = tl.where(rank == i, key, keys)
        # none is left where there are no numbers: a model's NaN
        spots = tl.where(rank == i, tl.minimum(spot, WIDTH * LOOKS - 1), spots)
    ranked = rank < CANDIDATES
    lowest = _at(keys, rank == CANDIDATES - 1)
    unseen = tl.maximum(unseen, lowest) if MORE else lowest
    parent = spots // LOOKS
    token = tl.load(ids + looked + spots, mask=ranked, other=-1)
    own = tl.load(values + looked + spots, mask=ranked, other=0.0)
    own -= tl.load(norms + lanes_of + parent, mask=ranked, other=0.0)
    step = (parent.to(tl.int64) << TOKEN_BITS) | token
    end = tl.arange(0, ENDS)
    own_ends = tl.load(ends + row * end_count + end, mask=end < end_count, other=-1)
    ending = ranked & (tl.max((token[:, None] == own_ends[None, :]).to(tl.int32), 1) > 0)

    # those that do not end go on, and then, for want of others, those that do
    going, gone = (ranked & ~ending).to(tl.int32), ending.to(tl.int32)
    earlier = rank[None, :] < rank[:, None]
    behind = tl.sum(going, 0) + _count(gone, earlier)
    lane = tl.where(going > 0, _count(going, earlier), tl.where(ranked, behind, HELD))
    slot = tl.arange(0, SLOTS)
    to_lane = lane[:, None] == slot[None, :]
    sums = _moved(tl.where(ending, float("-inf"), keys), to_lane)

    # the first of them join the pool where they end
    seat = tl.arange(0, POOL)
    old, new = seat < WIDTH, (seat >= WIDTH) & (seat < 2 * WIDTH)
    pool_at = pool + (row * WIDTH + seat) * 3
    score = tl.load(pool_at, mask=old, other=float("-inf"))
    pool_sum = tl.load(pool_at + 1, mask=old, other=0.0)
    pool_own = tl.load(pool_at + 2, mask=old, other=0.0)
    code = tl.load(endings + row * WIDTH + seat, mask=old, other=0)
    first = rank < WIDTH
    cut = last
    if FT:  # what is cut at the limit fills up a pool that is not full
        full = tl.sum((score > float("-inf")).to(tl.int32), 0)
        cut = last & (full + tl.sum((first & ending).to(tl.int32), 0) < WIDTH)
    made = tl.math.div_rn(keys, tl.full((HELD,), 0.0, tl.float32) + divisor)
    joining = first & (ending | cut) & (made != float("-inf")) & (before == 0)
    to_seat = rank[:, None] + WIDTH == seat[None, :]
    made = tl.where(joining, made, float("-inf"))
    score = tl.where(new, _moved(tl.where(first, made, 0.0), to_seat), score)
    pool_sum = tl.where(new, _moved(tl.where(joining, keys, float("-inf")), to_seat), pool_sum)
    pool_own = tl.where(new, _moved(tl.where(joining, own, float("-inf")), to_seat), pool_own)
    ended_at = (at << (TOKEN_BITS + BEAM_BITS)) | step
    code = tl.where(new, _moved(ended_at, to_seat), code)
    ahead = (score[None, :] > score[:, None]) | (
        (score[None, :] == score[:, None]) & (seat[None, :] < seat[:, None])
    )
    order = tl.sum((ahead & (seat < 2 * WIDTH)[None, :]).to(tl.int32), 1)
    order = tl.where(old | new, order, POOL)
    worst, refused = _at(score, order == WIDTH - 1), _at(score, order == WIDTH)

    # whether the row is done
    stop_gap = float("inf")
    if EARLY == "at once":
        stops = last | (worst > float("-inf"))
    else:
        hoped = divisor
        if EARLY == "never":
            final = tl.load(power + row * columns + most - 1)
            hoped = tl.where(tl.load(penalty + row) > 0, final, divisor)
        hope = tl.math.div_rn(_at(sums, slot == 0), hoped)
        stops = last | (hope <= worst)
        stop_gap = tl.where(last, float("inf"), _gap(tl.abs(hope - worst)))

    # the closest decision of the step
    inside, outside = _at(keys, rank == WIDTH - 1), _at(keys, rank == WIDTH)
    across = tl.where(first, keys - outside, inside - keys)
    gap = tl.min(tl.where(ranked & (ending | last), _gap(across), float("inf")), 0)
    gap = tl.minimum(gap, _gap(inside - unseen))
    dropped = _gap(_at(sums, slot == WIDTH - 1) - _at(sums, slot == WIDTH))
    gap = tl.minimum(gap, tl.where(stops, float("inf"), dropped))
    unit = tl.minimum(divisor, 1.0)
    gap = tl.minimum(gap, tl.minimum(_gap((worst - refused) * unit), _gap(stop_gap * unit)))

    tl.debug_barrier()  # all of the program's threads have read
    kept = order < WIDTH
    pool_at = pool + (row * WIDTH + order) * 3
    tl.store(pool_at, score, mask=kept)
    tl.store(pool_at + 1, pool_sum, mask=kept)
    tl.store(pool_at + 2, pool_own, mask=kept)
    tl.store(endings + row * WIDTH + order, code, mask=kept)
    here, on = lanes_of + slot, slot < WIDTH
    step_at = (row * columns + at) * WIDTH + slot
    tl.store(history + step_at, _moved(step, to_lane), mask=on)
    tl.store(logprobs + step_at, _moved(own, to_lane), mask=on)
    tl.store(open_sums + here, sums, mask=on)
    tl.store(chosen + here, _moved(token, to_lane), mask=on)
    tl.store(parents + here, _moved(parent.to(tl.int64), to_lane), mask=on)
    tl.store(gaps + row * columns + at, tl.maximum(gap, LOWEST))
    tl.store(length + row, at + 1 - before)
    over = (before != 0) | stops
    tl.store(done + row, over)
    tl.store(finished + row, over)
