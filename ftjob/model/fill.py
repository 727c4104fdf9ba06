"""Of how many tokens passes over rows are on a GPU: rows that do nothing fill them up to few sizes.

`plan` asks for the step between sizes, `packing` and `decode/pool` fill up what they make of a
batch's rows, and `warm` knows the sizes before the first batch comes. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from ftjob.model.arch import Arch

# Sizes are so many parts of the largest, in whole tiles. That is for models in which such a part
# takes less time than the host takes to launch a pass that is not captured: operations, which at
# half of an H200's product take 5 ms.
STEPS, TILE, STEP_FLOP = 8, 64, 2e12
# Passes of so many tokens and more, not split over a tensor group, add a layer's products to the
# residual where it lies: a product takes a few us more then, and the norm behind it reads and
# writes half as much (on an H200, 16384 tokens).
IN_PLACE = 4096
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


def step_of(arch: Arch, ways: int, max_tokens: int) -> int:
    """The step between sizes of passes of up to `max_tokens` on GPUs of which so many share the
    layers; 0 where the model is too large for that."""
    mlp = (3 if arch.gated else 2) * arch.hidden * arch.ffn
    read = 4 * arch.hidden * arch.width + mlp  # of a layer that rows go through
    each = (arch.encoder_layers if arch.seq2seq else arch.layers) * read
    if arch.seq2seq:  # keys and values that steps look at
        each += 2 * arch.layers * arch.hidden * arch.width
    step = max(LEAST, -(-max_tokens // (STEPS * TILE)) * TILE)
    return step if 2 * each * step / ways <= STEP_FLOP else 0


@dataclass(frozen=True)
class Fill:
    """How far a pass over rows is filled up on a GPU. A `step` of 0 fills up to what is `padded`;
    another one, of `LEAST` at least, to multiples of it and below it to powers of two: so few sizes
    that they come again soon. Where a pass is known to have at most so many `rows`, all can be
    captured before the first row comes."""

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
        if self.rows:
            return tokens // queries + self.rows + 1
        return (1 << (count - 1).bit_length() if count else 0) if self.step else padded(count)

    def sizes(self, most: int) -> list[int]:
        """Every number of tokens that passes of up to `most` may have; none where they are too
        many to be known."""
        if not self.step:
            return []
        small = [LEAST << i for i in range(20) if LEAST << i < self.step]
        return [*small, *range(self.step, self.tokens(most) + 1, self.step)]


# What is filled up to `padded` sizes.
PADDED = Fill()
