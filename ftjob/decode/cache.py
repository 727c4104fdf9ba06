"""The keys and values of the rows of a cohort: a prefix each row's beams share, and a tail.

A row's columns are its prompt's, one for the first step, then W for each step, one a beam. All rows
of a cohort are at the same step, so a step writes the same columns in each. A mask says which of
them a lane may see: exactly those of its own ancestors. So when beams change their order, only rows
of the mask move, never keys. `loop` fills and follows it; the stage's attention reads it.
"""

from __future__ import annotations

import torch

from ftjob.decode.cohorts import Cohort
from ftjob.decode.steps import Kept, StepView
from ftjob.model.arch import Arch
from ftjob.model.attention import Keep
from ftjob.model.residual import Kind

# Columns for new tokens at first.
COLUMNS = 16


class Cache:
    """The cache of one cohort on one device, for `layers` layers, for its whole life.

    It has not many more columns than are written, and grows: a step that reads a few columns out of
    many waits for memory at every row. Columns are written before they are seen, so memory is not
    cleared; only behind the ends of shorter prompts and sources it is, because what a mask hides is
    still multiplied by a weight of zero.
    """

    def __init__(self, arch: Arch, layers: int, ways: int, cohort: Cohort, kind: Kind) -> None:
        dtype, device = kind
        self._cohort, self._positions, self._device = cohort, arch.positions, device
        rows, beams = cohort.entered, cohort.beams
        heads, size = arch.heads // ways, arch.head_size
        read = [len(r.ids) - (0 if arch.seq2seq else 1) for r in cohort.rows]
        ragged = read[-1] < read[0]
        self._columns = cohort.cells - cohort.source  # that a row may come to have
        self._held = min(self._columns, cohort.prefix + COLUMNS)  # that it has room for

        own = (layers, 2, rows, heads, self._held, size)
        across = (layers if arch.seq2seq else 0, 2, rows, heads, cohort.source, size)
        self._across = torch.empty(across, dtype=dtype, device=device)
        self.kept = [Kept(torch.empty(own[1:], dtype=dtype, device=device)) for _ in range(layers)]
        self.sources = [Kept(across) for across in self._across]
        if ragged:
            for kept in self.sources if arch.seq2seq else self.kept:
                kept.both[..., read[-1] : read[0], :].zero_()
        lengths = torch.tensor(read, device=device).unsqueeze(1)
        self._read = read
        self._prefix = None if arch.positions is None else lengths
        hidden = _hidden(torch.arange(read[0], device=device) >= lengths) if ragged else None
        self._source_mask = hidden if arch.seq2seq else None  # [rows, source]
        # [rows, W, columns], 0 where a lane sees and else -inf; None where all see all
        self._mask: torch.Tensor | None = None
        if beams > 1 or (ragged and not arch.seq2seq):
            self._mask = torch.full((rows, beams, self._columns), -torch.inf, device=device)
            self._mask[:, :, : cohort.prefix + 1] = 0.0
            if hidden is not None and not arch.seq2seq:
                self._mask[:, :, : cohort.prefix] = hidden.unsqueeze(1)

    @property
    def keep(self) -> Keep:
        """Takes what is read when the rows enter, of all their tokens: prompts or sources."""
        rows = torch.arange(len(self._read)).repeat_interleave(torch.tensor(self._read))
        columns = torch.cat([torch.arange(n) for n in self._read])
        at = rows.to(self._device), columns.to(self._device)
        into = self.sources or self.kept
        return lambda layer, kv: into[layer].put(*at, kv)

    def move(self, source: int, target: int) -> None:
        """Copy a row over another one that has left."""
        used = self._cohort.keys
        for kept in self.kept:
            kept.both[:, target, :, :used] = kept.both[:, source, :, :used]
        self._across[:, :, target] = self._across[:, :, source]
        for state in (self._mask, self._source_mask, self._prefix):
            if state is not None:
                state[target] = state[source]

    def follow(self, parents: torch.Tensor) -> None:
        """The rows go on: each lane with what its parent saw in the step. `parents` is [n, W]."""
        n, keys = len(parents), self._cohort.keys
        if self._cohort.lanes > 1:
            assert self._mask is not None
            seen = self._mask[:n, :, :keys]
            seen.copy_(seen.gather(1, parents.unsqueeze(2).expand(seen.shape)))

    def view(self) -> StepView:
        """What the cohort's next step sees."""
        cohort, n = self._cohort, len(self._cohort.rows)
        lanes, column, keys = cohort.lanes, cohort.column, cohort.keys
        self._grow(keys)
        mask = None
        if self._mask is not None:
            mask = self._mask[:n, :lanes, :keys]
            mask[:, :, column:].diagonal(dim1=1, dim2=2).fill_(0.0)
        positions = None
        if self._prefix is not None:
            assert self._positions is not None
            positions = (self._prefix[:n] + cohort.steps).expand(n, lanes)
            # a row that is finished but not yet seen to be may pass the last one
            positions = positions.reshape(-1).clamp(max=self._positions - 1)
        return StepView(
            n,
            lanes,
            column,
            keys,
            positions,
            None if mask is None else mask.unsqueeze(1),
            self._distances() if self.sources else None,
            None if self._source_mask is None else self._source_mask[:n, None, None],
            self.kept,
            self.sources,
        )

    def _grow(self, keys: int) -> None:
        """Make room for so many columns, by half at least, for the rows that are still there."""
        if keys <= self._held:
            return
        n, used = len(self._cohort.rows), self._cohort.column
        self._held = min(self._columns, max(keys, self._held + self._held // 2))
        for layer, kept in enumerate(self.kept):
            before = kept.both
            larger = before.new_empty((2, n, before.shape[2], self._held, before.shape[4]))
            larger[:, :, :, :used] = before[:, :n, :, :used]
            self.kept[layer] = Kept(larger)

    def _distances(self) -> torch.Tensor:
        """Steps back to each column: [keys], behind an encoder, where there is no prompt."""
        cohort = self._cohort
        if cohort.beams == 1:
            return torch.arange(cohort.steps, -1, -1, device=self._device)
        places = torch.arange(cohort.keys, device=self._device)
        step = (places + (cohort.beams - 1)).div(cohort.beams, rounding_mode="floor")
        return cohort.steps - step


def _hidden(padding: torch.Tensor) -> torch.Tensor:
    """-inf where true, else 0."""
    return torch.zeros(padding.shape, device=padding.device).masked_fill_(padding, -torch.inf)
