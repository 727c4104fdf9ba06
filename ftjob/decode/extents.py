"""Which cells of a pool are taken: extents of any size, the first gap that is wide enough.

Every device of a replica takes and gives back in the same order, so all have the same extents.
`pool` keeps the rows' keys and values there. Standard library only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Extents:
    """The free cells of `size`, as gaps (start, end) in order that do not touch."""

    def __init__(self, size: int) -> None:
        self._gaps: list[tuple[int, int]] = [(0, size)] if size else []

    def take(self, sizes: Sequence[int]) -> list[int] | None:
        """The first cell of an extent for each size, or None where not all have room."""
        before = list(self._gaps)
        starts = []
        for size in sizes:
            for at, (start, end) in enumerate(self._gaps):
                if end - start >= size:
                    self._gaps[at : at + 1] = [(start + size, end)] if start + size < end else []
                    starts.append(start)
                    break
            else:
                self._gaps = before
                return None
        return starts

    def fits(self, sizes: Sequence[int]) -> bool:
        """Whether `take` would give all of them now."""
        total = sum(sizes)
        if any(end - start >= total for start, end in self._gaps):
            return True  # whatever other gaps take leaves room enough there
        starts = self.take(sizes)
        for start, size in zip(starts or [], sizes, strict=starts is not None):
            self.give(start, size)
        return starts is not None

    def give(self, start: int, size: int) -> None:
        """An extent is free again."""
        at = bisect_left(self._gaps, (start, start))
        end = start + size
        if at < len(self._gaps) and self._gaps[at][0] == end:
            end = self._gaps.pop(at)[1]
        if at and self._gaps[at - 1][1] == start:
            at -= 1
            start = self._gaps.pop(at)[0]
        self._gaps.insert(at, (start, end))
