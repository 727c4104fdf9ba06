"""Which row is in which slot: the pure book-keeping of a decoding micro-batch.

Every device of a replica keeps the same books from the same chunks and the same finished flags, so
all make the same decisions without asking. `loop` does to tensors what is decided here. Standard
library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ftjob.batching import Chunk, widest
from ftjob.tasks.base import GenerateRequest


@dataclass
class Slot:
    """A row at work. `prefix` are its prompt's columns in the cache, `source` its source's, `steps`
    the tokens made so far."""

    sequence: int
    request: GenerateRequest
    prefix: int
    source: int
    steps: int = 0


@dataclass(frozen=True)
class Left:
    """Rows that leave, with the slot of each, and the (source, target) moves that then close the
    gaps, in order."""

    rows: list[tuple[int, Slot]]
    moves: list[tuple[int, int]]


class SlotTable:
    """The slots of one micro-batch: `rows` are at work in the first slots, `entering` ones behind
    them join at the next turn."""

    def __init__(self, slots: int, beams: int, cells: int, seq2seq: bool) -> None:
        self._slots, self._beams, self._cells, self._seq2seq = slots, beams, cells, seq2seq
        self.rows: list[Slot] = []
        self.entering: list[Slot] = []

    @property
    def free(self) -> int:
        """Slots without a row."""
        return self._slots - len(self.rows) - len(self.entering)

    @property
    def idle(self) -> bool:
        """Whether there is no row."""
        return not self.rows and not self.entering

    def fits(self, chunk: Chunk) -> bool:
        """Whether a chunk may enter now: there are slots, and all rows together cannot outgrow the
        cache, in which every slot is as wide as the widest."""
        if self.free < len(chunk.requests):
            return False
        held = [*self.rows, *self.entering]
        requests = [s.request for s in held] + list(chunk.requests)
        return not held or len(requests) * widest(requests, self._beams) <= self._cells

    def enter(self, chunk: Chunk) -> int:
        """Give the chunk's rows the slots behind all others, longest first; returns the first."""
        first = len(self.rows)
        for request in sorted(chunk.requests, key=lambda r: -len(r.ids)):
            assert isinstance(request, GenerateRequest)
            tokens = len(request.ids)
            prefix, source = (0, tokens) if self._seq2seq else (tokens - 1, 0)
            self.entering.append(Slot(chunk.sequence, request, prefix, source))
        return first

    def activate(self) -> None:
        """The entering rows go to work."""
        self.rows += self.entering
        self.entering = []

    def advance(self, count: int) -> None:
        """The first `count` rows have made a token."""
        for row in self.rows[:count]:
            row.steps += 1

    def leave(self, finished: Sequence[bool]) -> Left:
        """Take the finished ones of the first rows out, and close the gaps from the end."""
        gone = [i for i, over in enumerate(finished) if over]
        left = [(i, self.rows[i]) for i in gone]
        moves: list[tuple[int, int]] = []
        stay = set(range(len(self.rows))) - set(gone)
        for target in gone:
            if target >= len(stay):
                break
            source = max(stay)
            moves.append((source, target))
            self.rows[target] = self.rows[source]
            stay = stay - {source} | {target}
        del self.rows[len(stay) :]
        return Left(left, moves)

    @property
    def keys(self) -> int:
        """Columns of the cache that the next step sees."""
        return max(s.prefix + self._beams * (s.steps + 1) for s in self.rows)

    @property
    def source(self) -> int:
        """Columns of the longest source."""
        return max(s.source for s in self.rows)

    @property
    def room(self) -> tuple[int, int, int]:
        """Slots in use and the columns that they need of keys, the next step's included, and of
        the source; those of entering rows too."""
        every = [*self.rows, *self.entering]
        keys = max((self.keys if self.rows else 0), *(s.prefix for s in every))
        return len(every), keys, max(s.source for s in every)
