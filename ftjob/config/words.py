"""Words that a row must not hold, or that end it: as ids, texts, or FasterTransformer's lists.

`options` declares where they may stand, `tasks.options` reads a row's own. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Word: TypeAlias = int | tuple[int, ...] | str
Words: TypeAlias = tuple[Word, ...] | str | None


def word_ids(words: Words) -> tuple[tuple[int, ...], ...]:
    """The ids of words that went through `tokenised`."""
    if words is None:
        return ()
    assert all(isinstance(word, tuple) for word in words), words
    return tuple(word for word in words if isinstance(word, tuple))


def tokenised(
    words: tuple[Word, ...] | str, encode: Callable[[Sequence[str]], list[list[int]]], name: str
) -> tuple[tuple[int, ...], ...]:
    """The words of option `name` as ids: each text is tokenised as it is.

    Raises:
        ValueError: for a word without tokens, and for text that is no row of CSV.
    """
    found: list[tuple[int, ...]] = []
    for word in csv_words(words, f"{name}: ") if isinstance(words, str) else words:
        if isinstance(word, str):
            (ids,) = encode([word])
        else:
            ids = [word] if isinstance(word, int) else list(word)
        if not ids:
            raise ValueError(f"{name}: the word {word!r} has no tokens")
        found.append(tuple(ids))
    return tuple(found)


def csv_words(text: str, prefix: str = "") -> tuple[str, ...]:
    """The words of FasterTransformer's word-list text: a CSV row, each field as it is.

    Raises:
        ValueError: where it is no CSV row, or holds no word.
    """
    import csv

    try:
        words = tuple(word for row in csv.reader([text], strict=True) for word in row if word)
    except csv.Error as error:
        raise ValueError(
            f"{prefix}{text!r:.60} is no row of CSV ({error}); give a list of texts"
        ) from None
    if text and not words:
        raise ValueError(
            f"{prefix}{text!r:.60} is a row of CSV without a word; give a list of texts"
        )
    return words


def list_words(value: Any) -> tuple[tuple[int, ...], ...]:
    """The words of FasterTransformer's word-list array [2, n] or [1, 2, n]: the ids of all words,
    then where each ends, counted from 1; unused places hold -1. [[0], [-1]] is no word.

    Raises:
        ValueError: where it is no such array.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        (value,) = value
    shaped = (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(row, (list, tuple)) for row in value)
        and len(value[0]) == len(value[1])
        and all(type(v) is int for row in value for v in row)
    )
    if not shaped:
        raise ValueError("must be two equally long lists of whole numbers: ids, and word ends")
    ids, ends = value
    words: list[tuple[int, ...]] = []
    start = 0
    for end in ends:
        if end == -1:
            continue
        if not start < end <= len(ids):
            raise ValueError(f"word end {end} must be above {start} and at most {len(ids)}")
        words.append(tuple(ids[start:end]))
        start = end
    return tuple(words)
