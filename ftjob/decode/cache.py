"""The keys and values of the rows in decode: a prefix each row's beams share, and a tail.

A slot's columns are its prompt's, then W for each step, one a beam. A mask says which of them a
lane may see: exactly those of its own ancestors. So when beams change their order, only rows of
the mask move, never keys. `loop` fills and follows it; the stage's attention reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ftjob.model.arch import Arch
from ftjob.model.attention import Kept, StepView
from ftjob.model.layers import Kind


class Cache:
    """The cache of one micro-batch on one device, for `layers` layers. Grows as rows need it; new
    memory is zero, because what a mask hides is still multiplied by a weight of zero."""

    def __init__(
        self, arch: Arch, layers: int, ways: int, slots: int, beams: int, cells: int, kind: Kind
    ) -> None:
        dtype, device = kind
        self.beams, self._seq2seq, self._positions = beams, arch.seq2seq, arch.positions
        self._cells = cells
        empty = torch.zeros(0, arch.heads // ways, 0, arch.head_size, dtype=dtype, device=device)
        self.kept = [Kept(empty, empty) for _ in range(layers)]
        self.sources = [Kept(empty, empty) for _ in range(layers if arch.seq2seq else 0)]
        self._room = (0, 0, 0)  # slots, columns of keys and of the source that there is memory for
        self._mask = torch.zeros(slots, beams, 0, device=device)  # 0 where a lane sees, else -inf
        self._source_mask = torch.zeros(slots, 0, device=device)
        self._prefix = torch.zeros(slots, dtype=torch.int64, device=device)
        self._steps = torch.zeros_like(self._prefix)
        self._slots = torch.arange(slots, device=device)
        self._lanes = torch.arange(beams, device=device)

    def reserve(self, rows: int, keys: int, source: int) -> None:
        """Make room for the first `rows` slots, with that many columns of keys each, and of the
        source. More than that is taken ahead only within the `cells` of the plan: where rows are
        wide there is memory for few slots."""
        slots, columns, width = self._room
        if rows <= slots and keys <= columns and source <= width:
            return
        most = self._cells // rows
        if keys > columns:
            columns = max(keys + 8 * self.beams, columns * 3 // 2)
        width = max(source, min(width, most - keys))
        columns = max(keys, min(columns, most - width))
        slots = max(rows, min(len(self._slots), self._cells // max(1, columns + width)))
        self._room = (slots, columns, width)
        for every, wide in ((self.kept, columns), (self.sources, width)):
            for i, kept in enumerate(every):  # one by one, so that little is held twice
                every[i] = Kept(*(_resized(t, slots, wide) for t in (kept.keys, kept.values)))
        if columns > self._mask.shape[2]:
            larger = self._mask.new_full((*self._mask.shape[:2], columns), -torch.inf)
            larger[:, :, : self._mask.shape[2]] = self._mask
            self._mask = larger
        if width > self._source_mask.shape[1]:
            wider = self._source_mask.new_full((len(self._slots), width), -torch.inf)
            wider[:, : self._source_mask.shape[1]] = self._source_mask
            self._source_mask = wider

    def enter(self, first: int, lengths: Sequence[int]) -> None:
        """New rows in slots `first`..: so many tokens of prompt in the cache, or of source."""
        slots = slice(first, first + len(lengths))
        sizes = torch.tensor(lengths, device=self._prefix.device).unsqueeze(1)
        self._steps[slots] = 0
        self._mask[slots] = -torch.inf
        if self._seq2seq:
            places = torch.arange(self._source_mask.shape[1], device=sizes.device)
            self._source_mask[slots] = _hidden(places >= sizes)
        else:
            self._prefix[slots] = sizes.squeeze(1)
            places = torch.arange(self._mask.shape[2], device=sizes.device)
            self._mask[slots] = _hidden(places >= sizes).unsqueeze(1)

    def move(self, source: int, target: int, keys: int) -> None:
        """Copy a slot over another one; `keys` are the columns in use."""
        for kept in self.kept:
            for state in (kept.keys, kept.values):
                state[target, :, :keys] = state[source, :, :keys]
        for kept in self.sources:
            for state in (kept.keys, kept.values):
                state[target] = state[source]
        for state in (self._mask, self._source_mask, self._prefix, self._steps):
            state[target] = state[source]

    def follow(self, parents: torch.Tensor, keys: int) -> None:
        """The first n slots go on: each lane with what its parent saw. `parents` is [n, W]."""
        n = len(parents)
        if self.beams > 1:
            seen = self._mask[:n, :, :keys]
            self._mask[:n, :, :keys] = seen.gather(1, parents.unsqueeze(2).expand(seen.shape))
        self._steps[:n] += 1

    def view(self, n: int, keys: int, source: int) -> StepView:
        """What the next step of the first n slots sees: `keys` columns at most, its own included,
        and `source` of the source."""
        prefix, steps = self._prefix[:n, None], self._steps[:n, None]
        columns = prefix + steps * self.beams + self._lanes  # [n, W]
        slots = self._slots[:n, None].expand(columns.shape)
        self._mask[slots, self._lanes, columns] = 0.0
        positions = (prefix + steps).expand(columns.shape)
        if self._positions is not None:  # a row that is finished but not yet seen to be may pass
            positions = positions.clamp(max=self._positions - 1)
        places = torch.arange(keys, device=columns.device)
        back = steps - (places - prefix).div(self.beams, rounding_mode="floor")  # [n, keys]
        return StepView(
            n,
            self.beams,
            slots.reshape(-1),
            columns.reshape(-1),
            positions.reshape(-1),
            self._mask[:n, None, :, :keys],
            back.clamp(min=0),
            self._source_mask[:n, None, None, :source] if self._seq2seq else None,
        )


def _hidden(padding: torch.Tensor) -> torch.Tensor:
    """-inf where true, else 0."""
    return torch.zeros(padding.shape, device=padding.device).masked_fill_(padding, -torch.inf)


def _resized(state: torch.Tensor, slots: int, columns: int) -> torch.Tensor:
    """Keys or values [slot, heads, column, size] with as many slots and columns as asked for."""
    other = state.new_zeros((slots, state.shape[1], columns, state.shape[3]))
    slots, columns = min(slots, state.shape[0]), min(columns, state.shape[2])
    other[:slots, :, :columns] = state[:slots, :, :columns]
    return other
