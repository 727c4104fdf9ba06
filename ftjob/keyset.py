"""Sets of many keys in few bytes: of millions of rows a Python set takes hundreds of megabytes.

Keys count by 64 bits of a hash. Of two million keys any two have the same in one of ten million
runs; then a row too many would be answered, or none would notice that equal rows are. `journal`
and `feed` know by it which rows are done, `tasks.base` which contents came before.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable

# Of the places of a table this share is filled at most.
FULLEST = 0.6


class KeySet:
    """Keys that are known from the beginning: 9 bytes each. `take` marks them."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = array("q", sorted({hash(key) for key in keys}))
        self._taken = bytearray(len(self._hashes))
        self.left = len(self._hashes)

    @classmethod
    def of_hashes(cls, hashes: array[int]) -> KeySet:
        """The set of keys with these hashes: rising, no two alike. The array is kept."""
        made = cls()
        made._hashes, made._taken, made.left = hashes, bytearray(len(hashes)), len(hashes)
        return made

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, key: str) -> bool:
        return self._place(key) is not None

    def take(self, key: str) -> bool:
        """Whether the key is there and was not taken; then it is."""
        place = self._place(key)
        if place is None or self._taken[place]:
            return False
        self._taken[place] = 1
        self.left -= 1
        return True

    def _place(self, key: str) -> int | None:
        wanted = hash(key)
        place = bisect_left(self._hashes, wanted)
        found = place < len(self._hashes) and self._hashes[place] == wanted
        return place if found else None


class Occurrences:
    """Counts equal digests as they come: some 20 bytes each, and those that come again a little
    more. Open addressing, by the digest's own bits."""

    def __init__(self) -> None:
        self._places = array("Q", bytes(8 << 10))
        self._filled = 0
        self._again: dict[int, int] = {}

    def count(self, digest: bytes) -> int:
        """How often a digest of at least 8 bytes came before."""
        value = int.from_bytes(digest[:8], "little") or 1  # 0 is an empty place
        if self._put(value):
            self._filled += 1
            if self._filled > FULLEST * len(self._places):
                self._grow()
            return 0
        before = self._again.get(value, 1)
        self._again[value] = before + 1
        return before

    def _put(self, value: int) -> bool:
        """Put a value into its place; False where it is there."""
        places = self._places
        last = len(places) - 1
        at = value & last
        while places[at]:
            if places[at] == value:
                return False
            at = (at + 1) & last
        places[at] = value
        return True

    def _grow(self) -> None:
        old = self._places
        self._places = array("Q", bytes(16 * len(old)))
        for value in old:
            if value:
                self._put(value)
