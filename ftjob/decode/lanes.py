"""The lanes of one micro-batch on one device: their tokens, and what they see of their rows.

The generate loop lets rows enter and leave by its books, feeds a step, and tells what was chosen.
On a CPU a cohort has a cache of its own; on a GPU all rows share one (`pool`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import torch

from ftjob.batching import Chunk
from ftjob.decode.cache import Cache
from ftjob.decode.cohorts import Books, Cohort, Left
from ftjob.decode.search import Advance
from ftjob.decode.steps import CohortsSight
from ftjob.model.arch import Arch
from ftjob.model.arrays import Arena
from ftjob.model.attention import Keep, Sight
from ftjob.model.residual import Kind
from ftjob.plan_generation import Generation


class Lanes(Protocol):
    """Lanes of the rows of the books, which are in step with them."""

    def fits(self, chunk: Chunk) -> bool:
        """Whether there is memory for the rows of a chunk now."""

    def enter(self, cohort: Cohort, arena: Arena) -> tuple[Keep, Hashable | None]:
        """Make room for an entering cohort; gives what takes that which is read of it, and the
        place of the arena that it goes by."""

    def withdraw(self, cohort: Cohort) -> None:
        """The entering cohort does not enter after all."""

    def activate(self, begins: Sequence[int]) -> None:
        """The entering rows go to work, behind the others; `begins` are their first tokens."""

    @property
    def rows(self) -> int:
        """How many rows a step has: those at work, or more."""

    @property
    def kind(self) -> Hashable:
        """While it stays the same, a step does the same to the same tensors; None where it never
        does."""

    def fed(self) -> torch.Tensor:
        """The ids [N] of all lanes of the next step."""

    def sight(self) -> Sight:
        """What they see."""

    def spread(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [N, V/T] as those of W lanes a row, [rows * W, V/T]."""

    def settle(self, chosen: Advance) -> None:
        """The step is over: take over what was chosen for all rows at work."""

    def leave(self, left: Left) -> None:
        """Rows leave, and the others close their gaps."""


class CohortLanes:
    """Lanes of which each cohort has a cache, from its entering to its end. In a row's first step
    there is one lane, for all would be alike."""

    def __init__(
        self, arch: Arch, layers: int, ways: int, books: Books, slots: int, width: int, kind: Kind
    ) -> None:
        self._shape = (arch, layers, ways)
        self._books, self._kind = books, kind
        self._caches: list[Cache] = []
        self._tokens = torch.zeros(slots, width, dtype=torch.int64, device=kind[1])

    def fits(self, chunk: Chunk) -> bool:
        """Whether there is memory for the rows of a chunk now: the books have counted it."""
        return True

    def enter(self, cohort: Cohort, arena: Arena) -> tuple[Keep, None]:
        """See `Lanes`."""
        cache = Cache(*self._shape, cohort, self._kind)
        self._caches.append(cache)
        return cache.keep, None

    def withdraw(self, cohort: Cohort) -> None:
        """See `Lanes`."""
        self._caches.pop()

    def activate(self, begins: Sequence[int]) -> None:
        """See `Lanes`."""
        first = self._books.rows
        ids = torch.tensor(begins)
        self._tokens[first : first + len(begins)] = ids.unsqueeze(1)

    @property
    def rows(self) -> int:
        """See `Lanes`."""
        return self._books.rows

    @property
    def kind(self) -> Hashable:
        """See `Lanes`."""
        return None

    def fed(self) -> torch.Tensor:
        """See `Lanes`."""
        counts = [len(c.rows) for c in self._books.cohorts]
        own = torch.split(self._tokens[: sum(counts)], counts)
        each = zip(own, self._books.cohorts, strict=True)
        parts = [tokens[:, : cohort.lanes].flatten() for tokens, cohort in each]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def sight(self) -> Sight:
        """See `Lanes`."""
        return CohortsSight([cache.view() for cache, _ in self._working()])

    def spread(self, logits: torch.Tensor) -> torch.Tensor:
        """See `Lanes`."""
        cohorts = self._books.cohorts
        if all(c.lanes == c.beams for c in cohorts):
            return logits
        parts = list(torch.split(logits, [len(c.rows) * c.lanes for c in cohorts]))
        for i, cohort in enumerate(cohorts):
            if cohort.lanes < cohort.beams:
                parts[i] = parts[i].repeat_interleave(cohort.beams // cohort.lanes, dim=0)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def settle(self, chosen: Advance) -> None:
        """See `Lanes`."""
        first = 0
        for cache, cohort in self._working():
            cache.follow(chosen.parents[first : first + len(cohort.rows)])
            first += len(cohort.rows)
        self._tokens[:first] = chosen.ids

    def leave(self, left: Left) -> None:
        """See `Lanes`."""
        held = list(zip(self._caches, left.moves, left.stays, strict=True))
        for cache, moves, _ in held:
            for source, target in moves:
                cache.move(source, target)
        self._caches = [cache for cache, _, stays in held if stays]
        if moved := left.moved:
            at, to = torch.tensor(moved, device=self._kind[1]).unbind(1)
            self._tokens[to] = self._tokens[at]

    def _working(self) -> list[tuple[Cache, Cohort]]:
        return list(zip(self._caches, self._books.cohorts, strict=False))


def make_lanes(
    arch: Arch,
    layers: int,
    ways: int,
    books: Books,
    room: Generation,
    kind: Kind,
    steps: int = 1,
) -> Lanes:
    """The lanes of a micro-batch of `books` for `layers` layers cut `ways` ways. Rows come to so
    many `steps`, as far as is known."""
    if kind[1].type == "cpu":
        return CohortLanes(arch, layers, ways, books, room.slots, room.beams, kind)
    # imported here because a machine without a GPU may be without triton
    from ftjob.decode.pool import PoolLanes

    return PoolLanes(arch, layers, ways, books, room, kind, steps)
