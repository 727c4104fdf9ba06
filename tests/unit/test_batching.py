"""Chunks: within their token budget, longest first within a window, windows in order, and every
request in exactly one chunk.
"""

from __future__ import annotations

import pytest

from ftjob.batching import Chunk, chunks, windows
from ftjob.tasks.base import Row, ScoreRequest

LENGTHS = [3, 9, 1, 12, 5, 5, 40, 2, 7, 1, 1, 30, 8, 6, 11]


def requests(lengths: list[int]) -> list[ScoreRequest]:
    """Rows of which so many tokens are read: the last one of each is only scored."""
    return [
        ScoreRequest(Row(i, i + 1, b"", ""), f"k{i}", [0] * (n + 1), 1, 1)
        for i, n in enumerate(lengths)
    ]


def read(chunk: Chunk) -> int:
    return chunk.tokens - len(chunk.requests)


def formed(window: int, max_tokens: int, by_length: bool = True) -> list[Chunk]:
    return list(
        chunks(requests(LENGTHS), window=window, max_tokens=max_tokens, by_length=by_length)
    )


def indices(chunk: Chunk) -> list[int]:
    return [r.row.index for r in chunk.requests]


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("window", [1, 2, 4, 15, 100])
@pytest.mark.parametrize("max_tokens", [1, 7, 12, 40, 1000])
def test_nothing_is_lost_and_the_budget_holds(
    window: int, max_tokens: int, by_length: bool
) -> None:
    made = formed(window, max_tokens, by_length)
    assert sorted(i for c in made for i in indices(c)) == list(range(len(LENGTHS)))
    assert [c.sequence for c in made] == list(range(len(made)))
    for chunk in made:
        assert read(chunk) == sum(LENGTHS[i] for i in indices(chunk))
        assert read(chunk) <= max_tokens or len(chunk.requests) == 1


def test_rows_run_longest_first_within_a_window() -> None:
    assert [indices(c) for c in formed(5, 14)] == [
        *([3], [1, 4], [0, 2]),
        *([6], [8, 5, 7], [9]),
        *([11], [14], [12, 13], [10]),
    ]


def test_equal_lengths_keep_their_order() -> None:
    (chunk,) = chunks(requests([2, 2, 3, 2]), window=9, max_tokens=99, by_length=True)
    assert indices(chunk) == [2, 0, 1, 3]


def test_dataset_order_is_kept_on_request() -> None:
    made = formed(100, 14, by_length=False)
    assert [i for c in made for i in indices(c)] == list(range(len(LENGTHS)))
    assert [indices(c) for c in made[:3]] == [[0, 1, 2], [3], [4, 5]]


def test_chunks_do_not_cross_windows() -> None:
    for chunk in formed(4, 1000):
        assert len({i // 4 for i in indices(chunk)}) == 1
    assert len(formed(4, 1000)) == 4


def test_budget_is_filled_to_the_token() -> None:
    (exact,) = chunks(requests([5, 4, 3]), window=9, max_tokens=12, by_length=True)
    assert read(exact) == 12
    over = list(chunks(requests([5, 4, 3]), window=9, max_tokens=11, by_length=True))
    assert [read(c) for c in over] == [9, 3]


def test_longer_row_is_a_chunk_of_its_own() -> None:
    made = list(chunks(requests([2, 50, 2]), window=9, max_tokens=10, by_length=False))
    assert [indices(c) for c in made] == [[0], [1], [2]]


def test_windows_stream() -> None:
    stream = iter(requests([1] * 7))
    first = next(windows(stream, 3))
    assert [r.row.index for r in first] == [0, 1, 2]
    assert next(stream).row.index == 3  # nothing was read ahead
    assert [len(w) for w in windows(requests([1] * 7), 3)] == [3, 3, 1]
    assert list(windows([], 3)) == []
    assert list(chunks([], window=3, max_tokens=3, by_length=True)) == []
