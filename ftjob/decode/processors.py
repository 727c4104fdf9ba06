"""The options of the rows in a search's slots, and which edits of scores they make, in what order.

A search tells it who enters and moves, has it edit the scores of each step, and tells it what was
chosen. The host knows each slot's options, so an edit is for the rows that ask for it alone, and a
step without any costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from ftjob.comm import Comm
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.decode import edits
from ftjob.decode.history import History
from ftjob.decode.logits import log_norm
from ftjob.decode.search import SearchRow, ends_among
from ftjob.model.arrays import sent
from ftjob.tasks.base import FinishReason

# An end id that no token is.
NO_END = -1
# What a slot without a row holds.
NOBODY = SearchRow(0)


@dataclass(frozen=True)
class _Rows:
    """The slots that one edit is for: [R]; `every` where these are all at work."""

    index: torch.Tensor
    every: bool


@dataclass(frozen=True)
class _Step:
    """What a step over so many slots does."""

    order: list[tuple[edits.Edit, _Rows]]
    touched: _Rows | None
    bans: _Rows | None
    stops: tuple[edits.StopWords, _Rows] | None
    follows: bool


class Processors:
    """Edits scores [n * W, V/T] by the options of slots 0..n-1.

    Order, by `decode.convention` (what is banned stays banned, so bans may come anywhere):
    - hf: repetition, presence and frequency penalty, bans, temperature of drawn rows. Under beams
      the scores are log-probabilities then, which are not made to sum to 1 again.
    - ft: temperature, repetition or presence penalty, bans.

    A lane of which all tokens are banned is left as it was: it must go on with one of them.
    """

    def __init__(
        self, decode: DecodeConfig, ends: tuple[int, ...], slots: int, device: torch.device
    ) -> None:
        self._ft = decode.convention == "ft"
        self._beams = decode.beams > 1
        self._default, self._width, self._device = ends, decode.lanes, device
        self.rows = [NOBODY] * slots
        self.ends = torch.full((slots, max(1, len(ends))), NO_END, device=device)
        self._history = History(slots, self._width, device)
        # by how many slots
        self._steps: dict[int, _Step] = {}
        self._distinct: dict[int, list[RowOptions]] = {}

    def ends_of(self, row: SearchRow) -> tuple[int, ...]:
        """The ids that end a row."""
        own = row.options.ends
        return self._default if own is None else own

    def enter(self, first: int, rows: Sequence[SearchRow]) -> None:
        """New rows into slots `first`..."""
        self._forget()
        slots = slice(first, first + len(rows))
        self.rows[slots] = rows
        every = [self.ends_of(row) for row in rows]
        most = max(map(len, every))
        if most > self.ends.shape[1]:
            larger = self.ends.new_full((len(self.rows), most), NO_END)
            larger[:, : self.ends.shape[1]] = self.ends
            self.ends = larger
        padded = [[*ids, *[NO_END] * (self.ends.shape[1] - len(ids))] for ids in every]
        self.ends[slots] = sent(padded, self._device, torch.int64)
        if any(_remembers(row.options) for row in rows):
            self._history.enter(first, rows)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what is kept of slots over others, all at once."""
        self._forget()
        moved = [self.rows[slot] for slot in sources]
        for slot, row in zip(targets, moved, strict=True):
            self.rows[slot] = row
        at, to = (sent(slots, self._device, torch.int64) for slots in (sources, targets))
        self.ends[to] = self.ends[at]
        if any(_remembers(row.options) for row in moved):
            self._history.move(at, to)

    def clear(self, first: int, stop: int) -> None:
        """The slots hold no rows any more."""
        self._forget()
        self.rows[first:stop] = [NOBODY] * (stop - first)

    def kind(self, n: int) -> Hashable | None:
        """What a step over n slots does as long as this stays the same, beside the tensors; None
        where rows ask for edits, which differ from step to step."""
        step = self._step(n)
        plain = not step.order and step.stops is None and not step.follows
        return self.ends.shape[1] if plain else None

    def apply(self, logits: torch.Tensor, group: Comm) -> torch.Tensor | None:
        """Edit f32 logits [n * W, V/T] in place. Under beams with `hf` those of the lanes given
        back, bool [n * W], are edited log-probabilities now."""
        n = len(logits) // self._width
        step = self._step(n)
        scores = logits.view(n, self._width, -1)
        touched = None
        if step.touched is not None:
            rows = step.touched.index
            lanes = scores if step.touched.every else scores[rows]
            flat = lanes.flatten(0, 1)
            flat -= log_norm(flat, group).unsqueeze(1)
            if not step.touched.every:
                scores[rows] = lanes
            touched = torch.zeros(n, dtype=torch.bool, device=self._device)
            touched[rows] = True
            touched = touched.repeat_interleave(self._width)
        before = None if step.bans is None else scores[step.bans.index]
        start = group.rank * logits.shape[1]
        for edit, where in step.order:
            part = scores if where.every else scores[where.index]
            edit(edits.Scores(part, start, where.index, self._history))
            if not where.every:
                scores[where.index] = part
        if before is not None and step.bans is not None:
            part = scores[step.bans.index]
            left = group.all_reduce(part.amax(dim=2), "max") > -torch.inf  # [R, W]
            scores[step.bans.index] = part.where(left.unsqueeze(2), before)
        return touched

    def ending(self, ids: torch.Tensor, parents: torch.Tensor | None = None) -> torch.Tensor:
        """Which tokens ids [n, C] end a row, being end ids or the last of stop words, each behind
        its parent [n, C] or, [n, W], its own lane: bool [n, C]. To be asked before `follow`."""
        n = len(ids)
        ends = ends_among(ids, self.ends[:n])
        step = self._step(n)
        if step.stops is not None:
            words, where = step.stops
            behind = None if parents is None else parents[where.index]
            ends[where.index] |= words(where.index, self._history, ids[where.index], behind)
        return ends

    def follow(self, ids: torch.Tensor, parents: torch.Tensor | None = None) -> None:
        """The lanes go on with ids [n, W], each behind its parent [n, W] or itself."""
        if self._step(len(ids)).follows:
            self._history.append(ids, parents)

    def reason(self, row: SearchRow, ids: Sequence[int]) -> FinishReason:
        """How an answer of a row ended."""
        if ids[-1] in self.ends_of(row):
            return "eos"
        for word in row.options.stops:
            behind = [*row.context[-len(word) :], *ids][-len(word) :]
            if tuple(behind) == word:
                return "stop"
        return "length"

    def _step(self, n: int) -> _Step:
        if n not in self._steps:
            self._steps[n] = self._plan(n)
        return self._steps[n]

    def distinct(self, n: int) -> list[RowOptions]:
        """The options of the rows in slots 0..n-1, those that many rows have once."""
        if n not in self._distinct:
            every = {id(row.options): row.options for row in self.rows[:n]}
            self._distinct[n] = list(every.values())
        return self._distinct[n]

    def _forget(self) -> None:
        """The slots hold other rows now."""
        self._steps.clear()
        self._distinct.clear()

    def _rows(self, n: int, test: Callable[[RowOptions], object]) -> list[int]:
        return [slot for slot in range(n) if test(self.rows[slot].options)]

    def _plan(self, n: int) -> _Step:
        """The edits of a step over n slots, in order."""
        if not any(map(_edits, self.distinct(n))):
            return _Step([], None, None, None, False)
        held, device = [row.options for row in self.rows[:n]], self._device
        found: list[tuple[edits.Edit, list[int]]] = []

        def add(
            test: Callable[[RowOptions], object], make: Callable[[list[RowOptions]], edits.Edit]
        ) -> None:
            if rows := self._rows(n, test):
                found.append((make([held[slot] for slot in rows]), rows))

        if self._ft:
            add(
                lambda o: o.temperature != 1,
                lambda some: edits.scale(
                    [1 / (o.temperature + edits.FT_EPSILON) for o in some], device
                ),
            )
        add(
            lambda o: o.repetition_penalty != 1,
            lambda some: edits.repetition([o.repetition_penalty for o in some], device),
        )
        add(
            lambda o: o.presence_penalty,
            lambda some: edits.presence([o.presence_penalty for o in some], self._ft, device),
        )
        add(
            lambda o: o.frequency_penalty,
            lambda some: edits.frequency([o.frequency_penalty for o in some], device),
        )
        for size in sorted({o.no_repeat_ngram for o in held} - {0}):
            add(
                lambda o, size=size: o.no_repeat_ngram == size,  # type: ignore[misc]
                lambda some, size=size: edits.no_repeat_ngram(size, device),  # type: ignore[misc]
            )
        if rows := self._rows(n, lambda o: o.bad_words):
            found.append((edits.bad_words([self._bad(slot) for slot in rows], device), rows))
        add(
            lambda o: o.min_length,
            lambda some: edits.min_length([o.min_length for o in some], self.ends, device),
        )
        if not self._ft and not self._beams:
            add(
                lambda o: o.drawn and o.temperature != 1,
                lambda some: edits.scale([1 / o.temperature for o in some], device),
            )
        touched = sorted({slot for _, rows in found for slot in rows})
        stops = self._rows(n, lambda o: o.stop_words)
        bans = self._rows(n, lambda o: o.no_repeat_ngram or o.bad_words or o.min_length)
        return _Step(
            [(edit, self._index(n, rows)) for edit, rows in found],
            self._index(n, touched) if touched and self._beams and not self._ft else None,
            self._index(n, bans) if bans else None,
            (edits.StopWords([held[s].stops for s in stops], device), self._index(n, stops))
            if stops
            else None,
            bool(self._rows(n, _remembers)),
        )

    def _index(self, n: int, rows: list[int]) -> _Rows:
        return _Rows(torch.tensor(rows, device=self._device), len(rows) == n)

    def _bad(self, slot: int) -> list[tuple[int, ...]]:
        """A row's bad words, without those that its convention does not ban."""
        ends, words = self.ends_of(self.rows[slot]), self.rows[slot].options.bad
        if self._ft:
            return [word for word in words if word[-1] != 0]
        return [word for word in words if not (len(word) == 1 and word[0] in ends)]


def _edits(options: RowOptions) -> bool:
    """Whether an option asks for an edit, or for words to stop at."""
    return options.temperature != 1 or _remembers(options)


def _remembers(options: RowOptions) -> bool:
    """Whether an option needs to know what has come."""
    o = options
    penalties = o.repetition_penalty != 1 or o.presence_penalty or o.frequency_penalty
    return bool(penalties or o.no_repeat_ngram or o.bad_words or o.stop_words or o.min_length)
