"""Sums and gatherings over the GPUs of one process in a single step each: Triton kernels that write
into each other's memory.

A program sends its words to every peer, waits for theirs, and adds them in the order of ranks, so
that all get the same bits. A word of 8 bytes has 4 of data and, behind them, the epoch that it is
of; it arrives as one, so the words themselves are all that is waited for (the LL protocol of NCCL:
Hu et al. 2025, arXiv 2507.04786, section III). `comm/peer` owns the memory and calls these.

Epochs are counted by each program for itself, and memory is used in turn by their parity. A peer
writes into a place again two epochs on: by then it has had our words of the epoch between, which
were sent by a launch after the one that read the place.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
import triton
import triton.language as tl

from ftjob.kernels.early import starts_early

# Words that a warp holds: 8 a thread.
PER_WARP, MAX_WARPS = 256, 16
_TYPES = MappingProxyType(
    {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
)


@dataclass(frozen=True)
class Mailbox:
    """One device's end of what a group shares: room for `rows` rows of `words` words from each of
    `ways` ranks, twice. `slots` int64 [ways + 1] are the addresses of everybody's mail, int64
    [2, ways, rows, words], and of a word of the host that is set where a peer's words stay away;
    `epochs` int32 [rows] counts, `failed` int32 [1] is set likewise. After so many `tries`, some
    1 us each, nobody is waited for. `kept` is what the addresses are of."""

    rank: int
    ways: int
    rows: int
    words: int
    slots: torch.Tensor
    epochs: torch.Tensor
    failed: torch.Tensor
    tries: int
    kept: tuple[torch.Tensor, ...]


def sum_rows(mail: Mailbox, x: torch.Tensor) -> torch.Tensor:
    """The sum over the group of x [N, H], N at most `rows` and a row at most `words` words:
    f32 sums, rounded once."""
    total = torch.empty_like(x)
    _launch(mail, x, total, total, x, x, None, None, 0.0, norms=False, centred=False)
    return total


def sum_and_norm(
    mail: Mailbox,
    residual: torch.Tensor,
    product: torch.Tensor,
    product_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    centred: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `add_norm` gives of the sum of `product` [N, H] over the group, in its own words:
    residual + (sum + product_bias) [N, H], and the norm of that. The last launch before this
    one writes neither weight nor biases."""
    residual = residual.contiguous()
    total = torch.empty_like(residual)
    normed = torch.empty(residual.shape, dtype=weight.dtype, device=residual.device)
    _launch(
        *(mail, product, total, normed, residual, weight, product_bias, bias, eps),
        norms=True,
        centred=centred,
    )
    return total, normed


def _launch(
    mail: Mailbox,
    x: torch.Tensor,
    total: torch.Tensor,
    normed: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    product_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    *,
    norms: bool,
    centred: bool,
) -> None:
    rows, width = x.shape
    words = width * x.element_size() // 4
    if not rows:
        return
    padded = triton.next_power_of_2(words)
    early = starts_early(x.device)
    _sum[(rows,)](
        x.view(torch.int32),
        mail.slots,
        mail.epochs,
        mail.failed,
        mail.tries,
        total,
        normed,
        residual,
        weight,
        weight if product_bias is None else product_bias,
        weight if bias is None else bias,
        eps,
        RANK=mail.rank,
        WAYS=mail.ways,
        ROWS=mail.rows,
        ROOM=mail.words,
        WORDS=words,
        PADDED=padded,
        TYPE=_TYPES[x.dtype],
        EACH=4 // x.element_size(),
        NORMS=norms,
        PRODUCT_BIAS=product_bias is not None,
        BIAS=bias is not None,
        CENTRED=centred,
        PDL=early,
        launch_pdl=early,
        num_warps=min(MAX_WARPS, max(1, padded // PER_WARP)),
    )


def gather_rows(mail: Mailbox, x: torch.Tensor) -> torch.Tensor:
    """Everybody's x, stacked in the order of ranks: [ways, *x.shape]. x is contiguous, of whole
    words, at most rows x words of them."""
    out = torch.empty((mail.ways, *x.shape), dtype=x.dtype, device=x.device)
    count = x.numel() * x.element_size() // 4
    if count:
        early = starts_early(x.device)
        _gather[(triton.cdiv(count, mail.words),)](
            x.view(-1).view(torch.int32),
            mail.slots,
            mail.epochs,
            mail.failed,
            mail.tries,
            out.view(-1).view(torch.int32),
            count,
            RANK=mail.rank,
            WAYS=mail.ways,
            ROWS=mail.rows,
            ROOM=mail.words,
            PDL=early,
            launch_pdl=early,
            num_warps=min(MAX_WARPS, max(1, mail.words // PER_WARP)),
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _send(
    mine,
    slots,
    row,
    words,
    inside,
    epoch,
    RANK: tl.constexpr,
    WAYS: tl.constexpr,
    ROWS: tl.constexpr,
    ROOM: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """Words of a row to every peer, each with its epoch."""
    marked = (mine.to(tl.int64) & 0xFFFFFFFF) | (epoch.to(tl.int64) << 32)
    place = (((epoch & 1) * WAYS + RANK) * ROWS + row).to(tl.int64) * ROOM
    for peer in tl.static_range(WAYS):
        if peer != RANK:
            theirs = tl.load(slots + peer).to(tl.pointer_type(tl.int64))
            tl.store(theirs + place + words, marked, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _awaited(
    slots,
    row,
    words,
    inside,
    epoch,
    failed,
    tries,
    RANK: tl.constexpr,
    WAYS: tl.constexpr,
    ROWS: tl.constexpr,
    ROOM: tl.constexpr,
    FROM: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """What rank FROM sent of a row."""
    own = tl.load(slots + RANK).to(tl.pointer_type(tl.int64))
    place = own + (((epoch & 1) * WAYS + FROM) * ROWS + row).to(tl.int64) * ROOM + words
    got = tl.load(place, mask=inside, other=0, volatile=True)
    late = tl.max((inside & ((got >> 32).to(tl.int32) != epoch)).to(tl.int32), 0)
    left = tries
    while (late != 0) & (left > 0):
        got = tl.load(place, mask=inside, other=0, volatile=True)
        late = tl.max((inside & ((got >> 32).to(tl.int32) != epoch)).to(tl.int32), 0)
        left -= 1
    if late != 0:
        tl.store(failed, 1)
        tl.store(tl.load(slots + WAYS).to(tl.pointer_type(tl.int32)), 1)
    return got.to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _numbers(words, TYPE: tl.constexpr, EACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The numbers in words, as f32 in their order: EACH a word."""
    if EACH == 1:
        return words.to(TYPE, bitcast=True)
    else:
        low = (words & 0xFFFF).to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
        high = ((words >> 16) & 0xFFFF).to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
        return tl.interleave(low, high)


@triton.jit  # type: ignore[untyped-decorator]
def _sum(
    x,
    slots,
    epochs,
    failed,
    tries,
    total,
    normed,
    residual,
    weight,
    product_bias,
    bias,
    eps,
    RANK: tl.constexpr,
    WAYS: tl.constexpr,
    ROWS: tl.constexpr,
    ROOM: tl.constexpr,
    WORDS: tl.constexpr,
    PADDED: tl.constexpr,
    TYPE: tl.constexpr,
    EACH: tl.constexpr,
    NORMS: tl.constexpr,
    PRODUCT_BIAS: tl.constexpr,
    BIAS: tl.constexpr,
    CENTRED: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """One row."""
    row = tl.program_id(0)
    words = tl.arange(0, PADDED)
    known = words < WORDS
    columns = tl.arange(0, PADDED * EACH)
    inside = columns < WORDS * EACH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if NORMS:
        factor = tl.load(weight + columns, mask=inside, other=0.0)
        if PRODUCT_BIAS:
            offset = tl.load(product_bias + columns, mask=inside, other=0.0)
        if BIAS:
            shift = tl.load(bias + columns, mask=inside, other=0.0)
    if PDL:  # counts and mail, too, are earlier launches'
        tl.extra.cuda.gdc_wait()
    epoch = tl.load(epochs + row) + 1
    left = tl.where(tl.load(failed) != 0, 0, tries)
    mine = tl.load(x + row.to(tl.int64) * WORDS + words, mask=known, other=0)
    _send(mine, slots, row, words, known, epoch, RANK, WAYS, ROWS, ROOM)
    at = row.to(tl.int64) * (WORDS * EACH) + columns
    # what does not depend on the peers is loaded while their words travel
    if NORMS:
        kept = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        if PRODUCT_BIAS:
            kept += offset.to(tl.float32)
    sums = tl.zeros((PADDED * EACH,), tl.float32)
    for source in tl.static_range(WAYS):
        got = mine
        if source != RANK:
            got = _awaited(
                slots, row, words, known, epoch, failed, left, RANK, WAYS, ROWS, ROOM, source
            )
        sums += _numbers(got, TYPE, EACH)
    if NORMS:
        y = (kept + sums).to(total.dtype.element_ty)
        tl.store(total + at, y, mask=inside)
        y = y.to(tl.float32)
        if CENTRED:
            y = tl.where(inside, y - tl.sum(y, 0) / (WORDS * EACH), 0.0)
        y = y * tl.rsqrt(tl.sum(y * y, 0) / (WORDS * EACH) + eps) * factor.to(tl.float32)
        if BIAS:
            y += shift.to(tl.float32)
        tl.store(normed + at, y.to(normed.dtype.element_ty), mask=inside)
    else:
        tl.store(total + at, sums.to(total.dtype.element_ty), mask=inside)
    tl.store(epochs + row, epoch)


@triton.jit  # type: ignore[untyped-decorator]
def _gather(
    x,
    slots,
    epochs,
    failed,
    tries,
    out,
    count,
    RANK: tl.constexpr,
    WAYS: tl.constexpr,
    ROWS: tl.constexpr,
    ROOM: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """A block of words."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    block = tl.program_id(0)
    words = tl.arange(0, ROOM)
    at = block * ROOM + words
    inside = at < count
    epoch = tl.load(epochs + block) + 1
    left = tl.where(tl.load(failed) != 0, 0, tries)
    mine = tl.load(x + at, mask=inside, other=0)
    _send(mine, slots, block, words, inside, epoch, RANK, WAYS, ROWS, ROOM)
    for source in tl.static_range(WAYS):
        got = mine
        if source != RANK:
            got = _awaited(
                slots, block, words, inside, epoch, failed, left, RANK, WAYS, ROWS, ROOM, source
            )
        tl.store(out + source * count + at, got, mask=inside)
    tl.store(epochs + block, epoch)
