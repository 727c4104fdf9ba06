"""The edits of scores that options ask for, each vectorised over the rows that ask for it.

Scores are logits, or under `hf` beams log-probabilities, over this device's part of the vocabulary:
each device of a tensor group edits its own columns, and all of them see the same history, so they
need not talk. `processors` puts them in the order of a convention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ftjob.decode.history import History

# In a table of words: a place that any token fits, and a word that none does.
_ANY, _NEVER = -2, -3
# what FasterTransformer adds to a temperature
FT_EPSILON = 1e-6


@dataclass(frozen=True)
class Scores:
    """One edit's view of a step: the scores [R, W, V/T] of its rows, to be changed in place, with
    the id of their first column, the slots [R] and the history."""

    values: torch.Tensor
    start: int
    rows: torch.Tensor
    history: History

    def local(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The columns of ids, and which of them this device holds; the others' are 0."""
        columns = ids - self.start
        held = (ids >= 0) & (columns >= 0) & (columns < self.values.shape[2])
        return columns.where(held, 0), held

    def ban(self, ids: torch.Tensor, where: torch.Tensor | None = None) -> None:
        """-inf at ids [R, W, C], as far as they are ids, and `where`."""
        columns, held = self.local(ids)
        if where is not None:
            held = held & where
        # added, because an id that is not held here adds nothing to column 0
        low = torch.zeros_like(columns, dtype=self.values.dtype).masked_fill_(held, -torch.inf)
        self.values.scatter_add_(2, columns, low)


Edit = Callable[[Scores], None]


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """A number a row, [R, 1, 1]."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def scale(factors: Sequence[float], device: torch.device) -> Edit:
    """Scores times a factor a row: one over the temperature."""
    factor = _column(factors, device)

    def edit(scores: Scores) -> None:
        scores.values.mul_(factor)

    return edit


def _once_a_token(
    scores: Scores, seen: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Change the scores of the tokens of the history that are `seen` [R, W, C], once each."""
    columns, held = scores.local(scores.history.ids[scores.rows])
    held = held & seen
    # All others point at one that is held: the same change lands there more than once.
    some = held.any(dim=2, keepdim=True)
    one = columns.gather(2, held.to(torch.int8).argmax(dim=2, keepdim=True))
    columns = columns.where(held, one)
    values = scores.values.gather(2, columns)
    scores.values.scatter_(2, columns, change(values).where(some, values))


def _new_tokens(scores: Scores) -> torch.Tensor:
    """Which places of the history hold new tokens, [R, 1, C]."""
    places = torch.arange(scores.history.ids.shape[2], device=scores.rows.device)
    return (places >= scores.history.context[scores.rows].unsqueeze(1)).unsqueeze(1)


def repetition(penalties: Sequence[float], device: torch.device) -> Edit:
    """Scores of tokens seen before are divided by the penalty, negative ones multiplied (Keskar et
    al. 2019, CTRL)."""
    penalty = _column(penalties, device)

    def edit(scores: Scores) -> None:
        seen = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
        _once_a_token(scores, seen, lambda v: torch.where(v < 0, v * penalty, v / penalty))

    return edit


def presence(penalties: Sequence[float], of_prompt: bool, device: torch.device) -> Edit:
    """The penalty off the scores of tokens seen before, in the new ones or `of_prompt` too."""
    penalty = _column(penalties, device)

    def edit(scores: Scores) -> None:
        seen = _new_tokens(scores)
        if of_prompt:
            seen = torch.ones_like(seen)
        _once_a_token(scores, seen, lambda v: v - penalty)

    return edit


def frequency(penalties: Sequence[float], device: torch.device) -> Edit:
    """The penalty off the scores of new tokens, as often as they came."""
    penalty = _column(penalties, device)

    def edit(scores: Scores) -> None:
        columns, held = scores.local(scores.history.ids[scores.rows])
        held = held & _new_tokens(scores)
        scores.values.scatter_add_(2, columns, -penalty * held)

    return edit


def min_length(least: Sequence[int], ends: torch.Tensor, device: torch.device) -> Edit:
    """No end id, of `ends` [slots, E], before so many new tokens."""
    lengths = torch.tensor(least, device=device)

    def edit(scores: Scores) -> None:
        rows, history = scores.rows, scores.history
        early = history.length[rows] - history.context[rows] < lengths  # [R]
        width = scores.values.shape[1]
        ids = ends[rows].unsqueeze(1).expand(-1, width, -1)
        scores.ban(ids, early.view(-1, 1, 1).expand_as(ids))

    return edit


class WordTable:
    """Words of several rows as one tensor [R, N, L], their last tokens in one column."""

    def __init__(
        self, words: Sequence[Sequence[Sequence[int]]], device: torch.device, length: int = 1
    ) -> None:
        longest = max((len(w) for row in words for w in row), default=0)
        self.length = max(longest, length)
        most = max(1, *(len(row) for row in words))
        never = [_NEVER] * self.length
        table = [
            [*([_ANY] * (self.length - len(w)) + list(w) for w in row)]
            + [never] * (most - len(row))
            for row in words
        ]
        self.ids = torch.tensor(table, dtype=torch.int64, device=device)

    def fit(self, tail: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Which words [R, W, N] of ids [R, N, l] the last l tokens [R, W, l] are."""
        table = ids.unsqueeze(1)
        return ((table == _ANY) | (table == tail.unsqueeze(2))).all(dim=3)


def bad_words(words: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Edit:
    """The last token of a word is banned where the ones before it have come."""
    table = WordTable(words, device)

    def edit(scores: Scores) -> None:
        tail = scores.history.tail(scores.rows, table.length - 1)
        fits = table.fit(tail, table.ids[:, :, :-1])  # [R, W, N]
        last = table.ids[:, :, -1].unsqueeze(1).expand_as(fits)
        scores.ban(last, fits)

    return edit


def no_repeat_ngram(size: int, device: torch.device) -> Edit:
    """No `size` tokens in a row come twice: whatever has followed the last size - 1 is banned."""

    def edit(scores: Scores) -> None:
        ids = scores.history.ids[scores.rows]  # [R, W, C]
        if ids.shape[2] < size:
            return
        windows = ids.unfold(2, size, 1)  # [R, W, C - size + 1, size]
        tail = scores.history.tail(scores.rows, size - 1).unsqueeze(2)
        again = (windows[..., :-1] == tail).all(dim=3)
        scores.ban(windows[..., -1], again)

    return edit


class StopWords:
    """Whether tokens are the last of one of their row's stop words."""

    def __init__(self, words: Sequence[Sequence[Sequence[int]]], device: torch.device) -> None:
        self._table = WordTable(words, device)

    def __call__(
        self,
        rows: torch.Tensor,
        history: History,
        ids: torch.Tensor,
        parents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """For tokens ids [R, C] of slots `rows` [R], each behind the history of the lane `parents`
        [R, C], or else of its own: bool [R, C]."""
        before = history.tail(rows, self._table.length - 1)  # [R, W, L - 1]
        if parents is not None:
            before = before.gather(1, parents.unsqueeze(2).expand(-1, -1, before.shape[2]))
        tail = torch.cat((before, ids.unsqueeze(2)), dim=2)
        return self._table.fit(tail, self._table.ids).any(dim=2)
