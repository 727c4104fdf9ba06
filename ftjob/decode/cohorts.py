"""Which rows decode together: the pure book-keeping of a decoding micro-batch.

Rows that enter together stay together, all at the same step: a cohort. Every device of a replica
keeps the same books from the same chunks and the same finished flags, so all make the same
decisions without asking. `loop` does to tensors what is decided here. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ftjob.batching import Chunk, widest
from ftjob.plan_generation import Generation
from ftjob.tasks.base import GenerateRequest, Request


@dataclass
class Cohort:
    """A chunk at work. `rows` are its requests in their order now, `entered` of them at first. In
    the cache each has `prefix` columns for the longest prompt, `source` ones for the longest
    source, and `cells` columns in all. `steps` tokens have been made of each row, and `_bounds`
    are the steps at which the first and the last row is spent."""

    sequence: int
    beams: int
    rows: list[GenerateRequest]
    entered: int
    prefix: int
    source: int
    cells: int
    steps: int = 0
    _bounds: tuple[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.hold(self.rows)

    def hold(self, rows: list[GenerateRequest]) -> None:
        """From now on these are the rows."""
        self.rows = rows
        limits = [row.max_new_tokens for row in rows]
        self._bounds = min(limits, default=0), max(limits, default=0)

    @property
    def spent(self) -> list[bool]:
        """Which rows have all the tokens they may get. In most steps none has or all have, and
        then no row is looked at."""
        first, last = self._bounds
        if not first <= self.steps < last:
            return [self.steps >= last] * len(self.rows)
        return [row.max_new_tokens <= self.steps for row in self.rows]

    @property
    def lanes(self) -> int:
        """Lanes of a row in the next step: the beams of a row part after their first one."""
        return self.beams if self.steps else 1

    @property
    def column(self) -> int:
        """The column of the cache that the first lane of the next step writes."""
        return self.prefix + (1 + self.beams * (self.steps - 1) if self.steps else 0)

    @property
    def keys(self) -> int:
        """Columns that the next step sees, its own included."""
        return self.column + self.lanes


def entering(chunk: Chunk) -> list[GenerateRequest]:
    """The rows of a chunk in the order in which they enter, longest first."""
    rows = [r for r in chunk.requests if isinstance(r, GenerateRequest)]
    return sorted(rows, key=lambda r: -len(r.ids))


@dataclass(frozen=True)
class Left:
    """Rows that leave, each with its place among all rows. `moves` are those (source, target)
    which then close the gaps of each cohort, in order, and `stays` says which cohorts still have
    rows; `order` lists the places of the rows that stay in their new order."""

    rows: list[tuple[int, Cohort, GenerateRequest]]
    moves: list[list[tuple[int, int]]]
    stays: list[bool]
    order: list[int]

    @property
    def moved(self) -> list[tuple[int, int]]:
        """Old and new place of the rows whose place changes."""
        return [(old, new) for new, old in enumerate(self.order) if old != new]


class Books:
    """The rows of one micro-batch: `cohorts` at work, their rows one after the other, and the one
    that is `entering` and joins behind them at the next turn."""

    def __init__(self, room: Generation, seq2seq: bool) -> None:
        self._room, self._seq2seq = room, seq2seq
        self.cohorts: list[Cohort] = []
        self.entering: Cohort | None = None

    @property
    def rows(self) -> int:
        """Rows at work."""
        return sum(len(c.rows) for c in self.cohorts)

    @property
    def free(self) -> int:
        """Rows that may still enter, as far as their number goes."""
        return self._room.slots - sum(len(c.rows) for c in self._held)

    @property
    def idle(self) -> bool:
        """Whether there is no row."""
        return not self._held

    @property
    def _held(self) -> list[Cohort]:
        return self.cohorts if self.entering is None else [*self.cohorts, self.entering]

    def fits(self, chunk: Chunk) -> bool:
        """Whether a chunk may enter now: its rows are not too many, and there is memory. A cohort
        has that of all rows it had at first until the last one leaves."""
        if self.free < len(chunk.requests):
            return False
        used = sum(c.entered * c.cells for c in self._held)
        wanted = len(chunk.requests) * self._columns(chunk.requests)
        every = self._room.cells + self._room.slots * self._room.overrun
        return not used or used + wanted <= every

    def _columns(self, rows: Sequence[Request]) -> int:
        return widest(rows, self._room.beams) + self._room.overrun

    def enter(self, chunk: Chunk) -> Cohort:
        """Make a cohort of the chunk, longest rows first."""
        assert self.entering is None
        rows = entering(chunk)
        longest = len(rows[0].ids)
        prefix, source = (0, longest) if self._seq2seq else (longest - 1, 0)
        beams, cells = self._room.beams, self._columns(rows)
        self.entering = Cohort(chunk.sequence, beams, rows, len(rows), prefix, source, cells)
        return self.entering

    def withdraw(self) -> None:
        """The entering cohort does not enter after all."""
        self.entering = None

    def activate(self) -> None:
        """The entering cohort goes to work."""
        if self.entering is not None:
            self.cohorts.append(self.entering)
            self.entering = None

    def advance(self, count: int) -> None:
        """The first `count` cohorts have made a token of each row."""
        for cohort in self.cohorts[:count]:
            cohort.steps += 1

    @property
    def spent(self) -> list[bool]:
        """Which rows at work have all the tokens they may get."""
        found: list[bool] = []
        for cohort in self.cohorts:
            found += cohort.spent
        return found

    def leave(self, finished: Sequence[bool]) -> Left:
        """Take the finished ones of the first rows out. In each cohort the last rows fill the gaps;
        one without rows ends."""
        left = Left([], [], [], [])
        first = 0
        for cohort in self.cohorts:
            flags = finished[first : first + len(cohort.rows)]
            gone = [i for i, over in enumerate(flags) if over]
            left.rows.extend((first + i, cohort, cohort.rows[i]) for i in gone)
            out = set(gone)
            stay = [i for i in range(len(cohort.rows)) if i not in out]
            gaps = [i for i in gone if i < len(stay)]
            moves = list(zip(stay[len(stay) - len(gaps) :], gaps, strict=True))
            left.moves.append(moves)
            left.stays.append(bool(stay))
            origin = {target: source for source, target in moves}
            places = [origin.get(i, i) for i in range(len(stay))]
            left.order.extend(first + i for i in places)
            first += len(cohort.rows)
            cohort.hold([cohort.rows[i] for i in places])
        self.cohorts = [c for c in self.cohorts if c.rows]
        return left
