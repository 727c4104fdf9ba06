"""How rows of different lengths lie behind each other in one axis, without padding.

`Packing` is for causal rows and says which positions are wanted at the end, `SourcePacking` for
the rows of an encoder. Both see rows of similar length as groups, inside of which attention alone
pads, or on a GPU all rows as blocks, without any. `attention` runs over them; `decode` makes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ftjob import kernels
from ftjob.model.arrays import Arena, Array, to_device
from ftjob.model.fill import Fill

# Rows share a group while the shortest has at least this share of the longest one's tokens.
FILL = 0.8
# Queries of a block, at most.
QUERIES = 64


@dataclass(frozen=True)
class Blocks:
    """What each program of the GPU's kernel does: int32 [programs, 5], its first query, how many
    queries, the place of the first in its row, the row's first key, and how many keys it has.
    `queries` counts them all; those that only fill up have no key, and get zeros."""

    table: torch.Tensor
    queries: int

    @staticmethod
    def of(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Blocks:
        """Rows behind each other with so many queries and keys each; queries are a row's last
        positions, at most as many as keys."""
        (table,) = to_device([block_table(queries, keys)], device)
        return Blocks(table, sum(queries))


def block_table(
    queries: Sequence[int], keys: Sequence[int], total: int = 0, fill: Fill | None = None
) -> Array:
    """The table of `Blocks.of`, with queries without keys behind them up to `total`; with `fill`
    also programs that do nothing, so that tables have few sizes."""
    counts, lengths = np.asarray(queries, np.int64), np.asarray(keys, np.int64)
    filling = total - int(counts.sum())
    if filling > 0:
        counts, lengths = np.append(counts, filling), np.append(lengths, 0)
    programs = -(-counts // QUERIES)
    row = np.repeat(np.arange(len(counts)), programs)
    within = np.arange(len(row)) - np.repeat(programs.cumsum() - programs, programs)
    done = within * QUERIES
    first_query, first_key = counts.cumsum() - counts, lengths.cumsum() - lengths
    columns = (
        first_query[row] + done,
        np.minimum(QUERIES, counts[row] - done),
        np.where(lengths[row] > 0, lengths[row] - counts[row] + done, 0),
        first_key[row],
        lengths[row],
    )
    table = np.stack(columns, axis=1).astype(np.int32)
    if fill is None:
        return table
    wanted = fill.programs(max(total, int(counts.sum())), len(table), QUERIES)
    return np.pad(table, ((0, wanted - len(table)), (0, 0)))


@dataclass(frozen=True)
class Group:
    """`rows` rows from packed position `start` to `stop`, seen as [rows, width].

    Rows shorter than `width` are padded on the right, inside attention only: a causal mask hides
    the padding from every true query. `spread` [rows * width] takes packed -> padded, `keep`
    takes padded -> packed; both are None where all rows are `width` long.
    For the wanted positions: `queries` [rows * most wanted] are their places in the group, padded
    likewise, `query_keep` takes padded -> wanted, `mask` is [rows, 1, most wanted, width].
    """

    start: int
    stop: int
    rows: int
    width: int
    spread: torch.Tensor | None
    keep: torch.Tensor | None
    queries: torch.Tensor
    query_keep: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Packing:
    """Rows behind each other in one axis of N tokens, longest first; M of the N are wanted.

    On a GPU there are no groups but blocks, of all positions and of those that are wanted. N and M
    may be filled up there (`fill.Fill`): behind the rows come tokens at position 0 that see
    nothing. Packings of one `place` are the same tensors, filled anew."""

    positions: torch.Tensor
    wanted: torch.Tensor
    groups: tuple[Group, ...]
    blocks: Blocks | None = None
    wanted_blocks: Blocks | None = None
    place: Hashable | None = None

    @staticmethod
    def of(lengths: Sequence[int], wanted_from: Sequence[int], device: torch.device) -> Packing:
        """Rows of the given lengths, in falling order; each wants positions wanted_from..end.

        Raises:
            ValueError: where lengths are not in falling order or a row wants nothing.
        """
        return Packing.beside([], lengths, wanted_from, device, fill=False)[0]

    @staticmethod
    def beside(
        arrays: Sequence[Array],
        lengths: Sequence[int],
        wanted_from: Sequence[int],
        device: torch.device,
        *,
        fill: bool,
        arena: Arena | None = None,
    ) -> tuple[Packing, list[torch.Tensor]]:
        """The same, and other arrays [N] or [M] of the host, all on the device in one copy, which
        may go to an `arena`. `fill` pads N and M there, with zeros, where the GPU's kernels are
        used. Without any `wanted_from` no position is wanted.

        Raises:
            ValueError: as `of`.
        """
        _check_order(lengths)
        none = not wanted_from
        if any(not 0 <= w < n for w, n in zip(wanted_from, lengths, strict=not none)):
            raise ValueError("every row must want at least one of its positions")
        sizes = np.asarray(lengths, np.int64)
        firsts = sizes if none else np.asarray(wanted_from, np.int64)
        positions = places(sizes)
        wanted = np.zeros(0, np.int64)
        if not none:
            (wanted,) = np.nonzero(positions >= np.repeat(firsts, sizes))
        if not kernels.used(device):
            there = to_device([positions, wanted, *arrays], device)
            alike = _alike(lengths)
            groups = [
                _group(lengths[a:b], firsts[a:b].tolist(), start, device) for a, b, start in alike
            ]
            return Packing(there[0], there[1], tuple(groups)), there[2:]
        arena = arena or Arena(device, 0)
        n, m = (arena.fill.tokens(len(x)) if fill else len(x) for x in (positions, wanted))
        every = block_table(lengths, lengths, n, arena.fill)
        last = block_table((sizes - firsts).tolist(), lengths, m, arena.fill)
        whole = {len(positions): n, len(wanted): m}
        filled = [np.pad(x, (0, whole[len(x)] - len(x))) for x in (positions, wanted, *arrays)]
        held, place = arena.send([every, last, *filled])
        first, second, *there = held
        packing = Packing(there[0], there[1], (), Blocks(first, n), Blocks(second, m), place)
        return packing, there[2:]


def places(sizes: Array) -> Array:
    """The place of each packed token in its row."""
    found: Array = np.arange(int(sizes.sum())) - np.repeat(sizes.cumsum() - sizes, sizes)
    return found


def _check_order(lengths: Sequence[int]) -> None:
    if any(a < b for a, b in itertools.pairwise(lengths)):
        raise ValueError("rows must be packed longest first")


def _alike(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Rows of similar length: the first, the one after the last, the first token."""
    row = start = 0
    while row < len(lengths):
        end = row
        while end < len(lengths) and lengths[end] >= FILL * lengths[row]:
            end += 1
        yield row, end, start
        start += sum(lengths[row:end])
        row = end


def _group(
    lengths: Sequence[int], wanted_from: Sequence[int], start: int, device: torch.device
) -> Group:
    sizes = torch.tensor(lengths)
    first = torch.tensor(wanted_from)
    width = int(sizes.max())
    spread, keep = _padding(sizes, width, 0 * sizes)
    queries, query_keep = _padding(sizes, int((sizes - first).max()), first)
    at = first.unsqueeze(1) + torch.arange(len(queries) // len(lengths))  # [rows, queries]
    mask = torch.arange(width) <= at.unsqueeze(2)  # [rows, queries, width]
    equal = bool((sizes == width).all())
    return Group(
        start,
        start + int(sizes.sum()),
        len(lengths),
        width,
        None if equal else spread.to(device),
        None if equal else keep.to(device),
        queries.to(device),
        query_keep.to(device),
        mask.unsqueeze(1).to(device),
    )


def _padding(
    sizes: torch.Tensor, width: int, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index packed -> [rows * width] of each row's positions from `first` on (padding repeats the
    row's last), and the way back."""
    starts = sizes.cumsum(0) - sizes
    columns = first.unsqueeze(1) + torch.arange(width)
    spread = starts.unsqueeze(1) + torch.minimum(columns, (sizes - 1).unsqueeze(1))
    keep = (columns < sizes.unsqueeze(1)).flatten().nonzero().squeeze(1)
    return spread.flatten(), keep


@dataclass(frozen=True)
class SourceGroup:
    """`rows` rows of `width` tokens each from packed position `start` to `stop`. A source is read
    once for many steps, so a call more for each length costs less than to pad and to cut."""

    start: int
    stop: int
    rows: int
    width: int


@dataclass(frozen=True)
class SourcePacking:
    """Rows that see all of themselves, longest first. `positions` [N] has the place of each token
    in its row. On a GPU there are no groups but blocks, and N is filled up; `place` as in
    `Packing`."""

    positions: torch.Tensor
    groups: tuple[SourceGroup, ...]
    blocks: Blocks | None = None
    place: Hashable | None = None

    @staticmethod
    def beside(
        ids: Array, lengths: Sequence[int], device: torch.device, arena: Arena | None = None
    ) -> tuple[SourcePacking, torch.Tensor]:
        """Rows of the given lengths, in falling order, and their ids [N].

        Raises:
            ValueError: where lengths are not in falling order.
        """
        _check_order(lengths)
        sizes = np.asarray(lengths, np.int64)
        held = places(sizes)
        if kernels.used(device):
            arena = arena or Arena(device, 0)
            count = arena.fill.tokens(len(held))
            filled = [np.pad(x, (0, count - len(held))) for x in (held, ids)]
            table = block_table(lengths, lengths, count, arena.fill)
            (first, *there), place = arena.send([table, *filled])
            return SourcePacking(there[0], (), Blocks(first, count), place), there[1]
        positions, there_ids = to_device([held, ids], device)
        groups: list[SourceGroup] = []
        for width, rows in itertools.groupby(lengths):
            count, start = len(list(rows)), groups[-1].stop if groups else 0
            groups.append(SourceGroup(start, start + count * width, count, width))
        return SourcePacking(positions, tuple(groups)), there_ids
