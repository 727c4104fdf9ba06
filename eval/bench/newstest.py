"""newstest2017, English to German, as lengths alone: what a speed run needs of it.

`newstest2017.txt` has a line a sentence: the pieces of source and reference by T5's vocabulary. The
texts are not ours to ship, and with random weights their words do not matter.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

LENGTHS = Path(__file__).with_name("newstest2017.txt")
# "translate English to German: " and the end token of a source; the end token of an answer
SOURCE_MORE, TARGET_MORE = 5, 1


@dataclass(frozen=True)
class Pair:
    """Tokens of a source and of the answer that is forced, end tokens included."""

    source: int
    target: int


def read_pairs(file: Path = LENGTHS) -> list[Pair]:
    """The sentences of a file of lengths.

    Raises:
        ValueError: with file and line, where a line is not two whole numbers.
    """
    found = []
    for number, line in enumerate(file.read_text(encoding="ascii").splitlines(), 1):
        words = line.split()
        if len(words) != 2 or not all(word.isdigit() for word in words):
            raise ValueError(f"{file.name}:{number}: {line!r} is not two numbers of pieces")
        found.append(Pair(int(words[0]) + SOURCE_MORE, int(words[1]) + TARGET_MORE))
    return found


def random_ids(pairs: list[Pair], vocab: int, seed: int = 0) -> list[list[int]]:
    """A source of random ids for each pair."""
    drawn = random.Random(seed)
    return [drawn.choices(range(3, vocab), k=pair.source) for pair in pairs]
