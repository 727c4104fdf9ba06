"""Of how many tokens passes over rows are on a GPU: rows that do nothing fill them up to few sizes.

`packing` and `decode/pool` fill up what they make of a batch's rows, `warm` knows the sizes before
the first batch comes. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

# The smallest size that is filled up to where sizes are few, in tokens.
LEAST = 256


def padded(count: int) -> int:
    """So many rows a GPU's products have for `count` rows: at least as many, of few sizes.

    cuBLAS chooses an algorithm for every new size, which takes as long as a hundred products of
    it, and torch's allocator finds blocks of a known size at once. From 2048 rows on a multiple
    of 256, below four sizes an octave: more would be wasted there, but small products wait for
    their weights anyway.
    """
    step = 256 if count > 2048 else max(16, (1 << (count - 1).bit_length()) // 8)
    return -(-count // step) * step


@dataclass(frozen=True)
class Fill:
    """How far a pass over rows is filled up on a GPU. A `step` of 0 fills up to what is `padded`;
    another one, of `LEAST` at least, to multiples of it and below it to powers of two: so few sizes
    that all of them can be captured before the first row comes. A pass has at most `rows` rows
    then."""

    step: int = 0
    rows: int = 0

    def tokens(self, count: int) -> int:
        """Tokens of a pass that has `count`."""
        if not self.step:
            return padded(count)
        if count > self.step:
            return -(-count // self.step) * self.step
        return min(self.step, max(LEAST, 1 << (count - 1).bit_length())) if count else 0

    def programs(self, tokens: int, count: int, queries: int) -> int:
        """Programs of so many queries each that a pass of `tokens` has, of which `count` do
        something: rows and what fills up begin with a program each."""
        return tokens // queries + self.rows + 1 if self.step else padded(count)

    def sizes(self, most: int) -> list[int]:
        """Every number of tokens that passes of up to `most` may have; none where they are too
        many to be known."""
        if not self.step:
            return []
        small = [LEAST << i for i in range(20) if LEAST << i < self.step]
        return [*small, *range(self.step, self.tokens(most) + 1, self.step)]


# What is filled up to `padded` sizes.
PADDED = Fill()
