"""Keys and contents of rows as numbers of 64 bits: of millions of rows a Python set takes hundreds
of megabytes.

Of two million rows any two have the same number in one of ten million runs; then a row would count
as answered, or as coming again. `results.journal` and `results.seen` know rows by it, `tasks.base`
which contents came before.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping

# Of the places of a table this share is filled at most.
FULLEST = 0.6


def key_number(key: str) -> int:
    """The number of a key of hex digits: its last 16.

    Raises:
        ValueError: for a key of something else.
    """
    return int(key[-16:], 16)


def content_number(digest: bytes) -> int:
    """The number of a content's digest, never 0; the digest has at least 8 bytes."""
    return int.from_bytes(digest[:8], "little") or 1


class Occurrences:
    """Counts equal contents as they come: some 20 bytes each, and those that come again a little
    more. Open addressing, by the numbers' own bits.

    What came before is `known`, rising; of those that came more than once, `again` is how often.
    """

    def __init__(self, known: array[int] | None = None, again: Mapping[int, int] | None = None):
        self._known = known if known is not None else array("Q")
        self._again = dict(again or {})
        self._places = array("Q", bytes(8 << 10))  # 0 is an empty place
        self._filled = 0

    def count(self, number: int) -> int:
        """How often a content came before."""
        if not self._is_known(number) and self._put(number):
            self._filled += 1
            if self._filled > FULLEST * len(self._places):
                self._grow()
            return 0
        before = self._again.get(number, 1)
        self._again[number] = before + 1
        return before

    def _is_known(self, number: int) -> bool:
        place = bisect_left(self._known, number)
        return place < len(self._known) and self._known[place] == number

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
