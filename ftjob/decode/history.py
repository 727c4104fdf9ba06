"""The tokens behind each lane: what penalties count, and words and n-grams are matched with.

A lane's tokens are its row's context, which its lanes share, then its own new ones. `edits` read
it; `processors` keeps it, for runs in which a row asks for such an option.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ftjob.decode.search import SearchRow

# No id: a place without a token.
NONE = -1


class History:
    """The tokens of `slots` rows of `width` lanes each."""

    def __init__(self, slots: int, width: int, device: torch.device) -> None:
        self.ids = torch.full((slots, width, 1), NONE, dtype=torch.int64, device=device)
        self.length = torch.zeros(slots, dtype=torch.int64, device=device)  # context and new
        self.context = torch.zeros_like(self.length)
        self._slots = torch.arange(slots, device=device)

    def enter(self, first: int, rows: Sequence[SearchRow]) -> None:
        """The contexts of new rows, into slots `first`.."""
        # one column more, where a finished row's steps go to waste
        columns = max(len(row.context) + row.limit for row in rows) + 1
        if columns > self.ids.shape[2]:
            larger = self.ids.new_full((*self.ids.shape[:2], columns), NONE)
            larger[:, :, : self.ids.shape[2]] = self.ids
            self.ids = larger
        slots = slice(first, first + len(rows))
        self.ids[slots] = NONE
        sizes = [len(row.context) for row in rows]
        most = max(sizes)
        padded = [[*row.context, *[NONE] * (most - len(row.context))] for row in rows]
        held = torch.tensor(padded, dtype=torch.int64, device=self.ids.device)
        self.ids[slots, :, :most] = held.unsqueeze(1)
        self.context[slots] = self.length[slots] = torch.tensor(sizes, device=self.ids.device)

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy slots [M] over others [M]."""
        for state in (self.ids, self.length, self.context):
            state[targets] = state[sources]

    def append(self, ids: torch.Tensor, parents: torch.Tensor | None) -> None:
        """A token more for each lane of the first n slots: ids [n, W], behind what the lane
        `parents` [n, W] holds, or its own."""
        n, width = ids.shape
        held = self.ids[:n]
        if parents is not None and width > 1:
            self.ids[:n] = held.gather(1, parents.unsqueeze(2).expand_as(held))
        at = self.length[:n].clamp(max=self.ids.shape[2] - 1)
        self.ids[self._slots[:n], :, at] = ids
        self.length[:n] += 1

    def tail(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """The last `count` tokens of the lanes of slots `rows` [R]: [R, W, count], `NONE` where
        there are fewer."""
        ends = self.length[rows]
        at = ends.unsqueeze(1) - count + torch.arange(count, device=rows.device)  # [R, count]
        at = at.unsqueeze(1).expand(-1, self.ids.shape[1], -1)
        found = self.ids[rows].gather(2, at.clamp(min=0, max=self.ids.shape[2] - 1))
        return found.masked_fill(at < 0, NONE)
