"""The lanes of a micro-batch on a GPU: one pool of keys and values, and a table of where rows lie.

A row has an extent of the pool from its entering to its leaving: its source's cells, its prompt's,
then W for each step, one a lane. What changes from step to step is on the device alone, so that a
step over a rung of rows is the same launches every time, which `graphs` captures. `loop` drives it
as `Lanes`; `kernels/step_attention` reads the table.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence

import numpy as np
import torch

from ftjob import kernels
from ftjob.batching import Chunk
from ftjob.decode.cohorts import Books, Cohort, Left, entering
from ftjob.decode.extents import Extents
from ftjob.decode.search import Advance
from ftjob.kernels.put import put
from ftjob.kernels.step_attention import (
    BASE,
    FIELDS,
    MOST,
    PREFIX,
    SOURCE,
    STEPS,
    Scratch,
    step_attention,
)
from ftjob.model.arch import Arch
from ftjob.model.arrays import Arena, sent, to_device
from ftjob.model.attention import Keep, Sight
from ftjob.model.relative import RelativeBias
from ftjob.model.residual import Kind
from ftjob.plan_generation import Generation, rungs
from ftjob.tasks.base import GenerateRequest


class PoolLanes:
    """`Lanes` in a pool of the cells of `room`, for rows of so many `steps`, and longer ones when
    they come. Places behind the rows at work hold rows that are
    none: they look at and write over cells that nobody has."""

    def __init__(
        self,
        arch: Arch,
        layers: int,
        ways: int,
        books: Books,
        room: Generation,
        kind: Kind,
        steps: int = 1,
    ) -> None:
        dtype, device = kind
        self._seq2seq, self._positions, self._device = arch.seq2seq, arch.positions, device
        self._books, self._width, self._slots = books, room.beams, room.slots
        self._rungs = rungs(room.slots)
        heads, size = arch.heads // ways, arch.head_size
        self._nobody = nobody = room.cells  # the first of the cells for rows that are none
        self._pool = torch.empty(
            layers, 2, heads, nobody + self._width, size, dtype=dtype, device=device
        )
        self._extents = Extents(nobody)
        self._held: dict[str, tuple[int, int]] = {}  # by key: extents at work
        # A row more than places, of no row.
        self._table = torch.zeros(room.slots + 1, FIELDS, dtype=torch.int64, device=device)
        self._table[:, BASE] = nobody
        self._table[:, MOST] = 1
        self._tokens = torch.zeros(room.slots + 1, self._width, dtype=torch.int64, device=device)
        self._identity = torch.arange(self._width, dtype=torch.int32, device=device).view(1, -1, 1)
        self._lineage = self._identity.repeat(room.slots + 1, 1, _lineage_columns(steps))
        self._scratch = Scratch.of(self._width, size, device)
        self._entering: torch.Tensor | None = None

    def fits(self, chunk: Chunk) -> bool:
        """See `Lanes`."""
        # in the order of `enter`: what fits in one order need not in another
        return self._extents.fits([self._size(row) for row in entering(chunk)])

    def _size(self, row: GenerateRequest) -> int:
        return len(row.ids) + self._width * row.max_new_tokens

    def enter(self, cohort: Cohort, arena: Arena) -> tuple[Keep, Hashable | None]:
        """See `Lanes`."""
        sizes = [self._size(row) for row in cohort.rows]
        starts = self._extents.take(sizes)
        assert starts is not None
        for row, start, size in zip(cohort.rows, starts, sizes, strict=True):
            self._held[row.key] = start, size
        most = max(row.max_new_tokens for row in cohort.rows)
        if self._width > 1 and most > self._lineage.shape[2]:
            larger = self._identity.repeat(self._slots + 1, 1, _lineage_columns(most))
            larger[:, :, : self._lineage.shape[2]] = self._lineage
            self._lineage = larger
        read = [len(row.ids) - (0 if self._seq2seq else 1) for row in cohort.rows]
        source = read if self._seq2seq else [0] * len(read)
        prefix = [0] * len(read) if self._seq2seq else read
        news = [row.max_new_tokens for row in cohort.rows]
        fields = {BASE: starts, SOURCE: source, PREFIX: prefix, STEPS: [0] * len(read), MOST: news}
        rows = list(zip(*(fields[i] for i in range(FIELDS)), strict=True))
        counts = np.asarray(read)
        shift = np.repeat(np.asarray(starts) - (counts.cumsum() - counts), counts)
        (self._entering,) = to_device([np.asarray(rows)], self._device)
        own = np.arange(len(shift)) + shift
        # tokens that fill up go where rows are none
        room = arena.fill.tokens(len(own)) if kernels.used(self._device) else len(own)
        filled = np.pad(own, (0, room - len(own)), constant_values=self._nobody)
        (cells,), place = arena.send([filled])
        return lambda layer, kv: put(self._pool[layer], cells, kv), place

    def withdraw(self, cohort: Cohort) -> None:
        """See `Lanes`."""
        for row in cohort.rows:
            self._extents.give(*self._held.pop(row.key))
        self._entering = None

    def activate(self, begins: Sequence[int]) -> None:
        """See `Lanes`."""
        assert self._entering is not None
        first = self._books.rows
        places = slice(first, first + len(begins))
        self._table[places] = self._entering
        ids = sent(begins, self._device, torch.int64)
        self._tokens[places] = ids.unsqueeze(1)
        if self._width > 1:
            self._lineage[places] = self._identity
        self._entering = None

    @property
    def rows(self) -> int:
        """See `Lanes`."""
        return self._rungs[bisect_left(self._rungs, self._books.rows)]

    @property
    def kind(self) -> Hashable:
        """See `Lanes`."""
        return self.rows, self._lineage.shape[2]

    def fed(self) -> torch.Tensor:
        """See `Lanes`."""
        return self._tokens[: self.rows].flatten()

    def sight(self) -> Sight:
        """See `Lanes`."""
        rows, positions = self.rows, None
        table = self._table[:rows]
        if self._positions is not None:
            places = (table[:, PREFIX] + table[:, STEPS]).clamp(max=self._positions - 1)
            positions = places.unsqueeze(1).expand(rows, self._width).flatten()
        lineage = self._lineage if self._width > 1 else None
        return PoolSight(self._pool, self._table, rows, lineage, self._scratch, positions)

    def spread(self, logits: torch.Tensor) -> torch.Tensor:
        """See `Lanes`."""
        return logits

    def settle(self, chosen: Advance) -> None:
        """See `Lanes`."""
        rows = self.rows
        steps = self._table[:rows, STEPS]
        if self._width > 1:
            lineage = self._lineage[:rows]
            followed = lineage.gather(1, chosen.parents.unsqueeze(2).expand(lineage.shape))
            columns = torch.arange(lineage.shape[2], device=self._device)
            made = (columns <= steps.unsqueeze(1)).unsqueeze(1)
            lineage.copy_(followed.where(made, lineage))
        self._tokens[:rows] = chosen.ids
        steps.add_(1)

    def leave(self, left: Left) -> None:
        """See `Lanes`."""
        for _, _, row in left.rows:
            self._extents.give(*self._held.pop(row.key))
        before = len(left.order) + len(left.rows)
        order = [*left.order, *[self._slots] * len(left.rows)]
        at = sent(order, self._device, torch.int64)
        for state in (self._table, self._tokens, *([self._lineage] if self._width > 1 else [])):
            state[:before] = state[at]


def _lineage_columns(steps: int) -> int:
    return 1 << (steps - 1).bit_length()


class PoolSight:
    """The `Sight` of lanes whose rows lie in a pool."""

    def __init__(
        self,
        pool: torch.Tensor,
        table: torch.Tensor,
        rows: int,
        lineage: torch.Tensor | None,
        scratch: Scratch,
        positions: torch.Tensor | None,
        bias: torch.Tensor | None = None,
    ) -> None:
        self._pool, self._table, self._rows = pool, table, rows
        self._lineage, self._scratch, self._bias = lineage, scratch, bias
        self.positions = positions

    def biased(self, bias: RelativeBias) -> PoolSight:
        """See `Sight`."""
        held = (self._pool, self._table, self._rows, self._lineage, self._scratch)
        return PoolSight(*held, self.positions, bias.by_head)

    def own(self, layer: int, qkv: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Sight`."""
        width = qkv.shape[1] // 3
        return step_attention(
            qkv[:, :width],
            self._pool[layer],
            self._table,
            self._rows,
            self._scratch,
            scale=scale,
            new=qkv[:, width:],
            lineage=self._lineage,
            bias=self._bias,
        )

    def source(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Sight`."""
        return step_attention(
            q, self._pool[layer], self._table, self._rows, self._scratch, scale=scale
        )
