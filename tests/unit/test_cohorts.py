"""The books of cohorts: gaps close without a row lost, nothing enters that would not fit."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ftjob.batching import Chunk
from ftjob.decode.cohorts import Books
from ftjob.plan_generation import Generation
from ftjob.tasks.base import GenerateRequest, Row

AMPLE = 10**9


def request(index: int, tokens: int, new: int) -> GenerateRequest:
    return GenerateRequest(Row(index, index + 1, b"", ""), f"k{index}", [0] * tokens, new)


def chunk(sequence: int, *sizes: tuple[int, int]) -> Chunk:
    """A chunk of rows of these (tokens, new tokens)."""
    rows = [request(100 * sequence + i, tokens, new) for i, (tokens, new) in enumerate(sizes)]
    return Chunk(sequence, tuple(rows))


def books_of(slots: int, beams: int, cells: int, seq2seq: bool, stop_every: int = 1) -> Books:
    return Books(Generation(slots, beams, slots, cells, stop_every, 0), seq2seq)


def keys_of(books: Books) -> list[str]:
    return [request.key for cohort in books.cohorts for request in cohort.rows]


@pytest.mark.parametrize("seed", range(40))
def test_moves_close_every_gap(seed: int) -> None:
    """Each cohort has a memory that only its moves change, and all rows stand in one line that only
    the order changes: after each turn both hold just the rows that the books say."""
    made = random.Random(seed)
    slots = made.randint(1, 12)
    books = books_of(slots, 2, AMPLE, seq2seq=bool(seed % 2))
    memory: dict[int, list[str]] = {}
    line: list[str] = []
    waiting, left = 60, []
    entered: list[str] = []
    for sequence in range(10**6):
        if not waiting and books.idle:
            break
        stepped = books.rows  # those who enter now have not been looked at
        if waiting and books.free and made.random() < 0.7:
            count = min(waiting, made.randint(1, books.free))
            new = chunk(sequence, *[(made.randint(1, 9), 5) for _ in range(count)])
            assert books.fits(new)
            free = books.free
            cohort = books.enter(new)
            assert books.free == free - count
            assert books.rows == stepped
            memory[sequence] = [r.key for r in cohort.rows]
            line += memory[sequence]
            entered += memory[sequence]
            waiting -= count
            books.activate()
            assert books.entering is None
        chance = made.choice([0.1, 0.5, 1.0])
        finished = [made.random() < chance for _ in range(stepped)]
        before, cohorts = keys_of(books), books.cohorts
        assert line == before
        gone = books.leave(finished)
        assert [(at, row.key) for at, _, row in gone.rows] == [
            (i, before[i]) for i, over in enumerate(finished) if over
        ]
        left += [row.key for _, _, row in gone.rows]
        line = [before[old] for old in gone.order]
        assert line == keys_of(books)
        for cohort, moves in zip(cohorts, gone.moves, strict=True):
            held = memory[cohort.sequence]
            for source, target in moves:
                held[target] = held[source]
            assert held[: len(cohort.rows)] == [r.key for r in cohort.rows]
            out = [at for at, own, _ in gone.rows if own is cohort]
            assert len(moves) <= len(out), "each gap is filled once"
        assert all(c.rows for c in books.cohorts)
    assert sorted(left) == sorted(entered)
    assert len(left) == 60


def test_the_last_rows_of_a_cohort_fill_its_gaps() -> None:
    books = books_of(9, 1, AMPLE, seq2seq=True)
    for sequence in range(2):
        books.enter(chunk(sequence, *[(3, 5)] * 4))
        books.activate()
    left = books.leave([True, False, True, False, False, True])
    assert left.moves == [[(3, 0)], [(3, 1)]]
    assert left.order == [3, 1, 4, 7, 6]
    assert keys_of(books) == ["k3", "k1", "k100", "k103", "k102"]


def test_longest_rows_enter_first_and_equal_ones_in_order() -> None:
    books = books_of(8, 1, AMPLE, seq2seq=False)
    cohort = books.enter(chunk(0, (2, 1), (7, 1), (2, 1), (9, 1)))
    assert [r.key for r in cohort.rows] == ["k3", "k1", "k0", "k2"]
    assert (cohort.sequence, cohort.steps, cohort.entered) == (0, 0, 4)
    assert (books.free, books.idle, books.cohorts) == (4, False, [])
    books.activate()
    assert (books.rows, books.cohorts) == (4, [cohort])


@pytest.mark.parametrize("seq2seq", [False, True])
def test_what_a_step_sees(seq2seq: bool) -> None:
    """A prompt's last token is fed as the first step, a source is read whole by the encoder. The
    first step has one lane a row, and writes one column; then there are as many as beams."""
    books = books_of(4, 3, AMPLE, seq2seq)
    cohort = books.enter(chunk(0, (9, 20), (4, 20)))
    assert (cohort.prefix, cohort.source) == ((0, 9) if seq2seq else (8, 0))
    books.activate()
    prefix, seen = cohort.prefix, []
    for _ in range(3):
        seen.append((cohort.lanes, cohort.column - prefix, cohort.keys - prefix))
        books.advance(1)
    assert seen == [(1, 0, 1), (3, 1, 4), (3, 4, 7)]
    books.enter(chunk(1, (1, 20)))
    books.activate()
    books.advance(1)  # who has just entered has not made a token
    assert [c.steps for c in books.cohorts] == [4, 0]


def test_a_chunk_enters_where_there_are_slots_for_all_of_it() -> None:
    books = books_of(3, 1, AMPLE, seq2seq=True)
    assert books.fits(chunk(0, (1, 1), (1, 1), (1, 1)))
    assert not books.fits(chunk(0, *[(1, 1)] * 4))
    books.enter(chunk(0, (1, 1)))
    assert books.fits(chunk(1, (1, 1), (1, 1)))
    assert not books.fits(chunk(1, (1, 1), (1, 1), (1, 1)))  # entering rows count
    books.activate()
    assert not books.fits(chunk(1, (1, 1), (1, 1), (1, 1)))


@pytest.mark.parametrize("active", [True, False])
def test_a_cohort_has_its_memory_until_its_last_row_leaves(active: bool) -> None:
    """6 + 2 * 7 = 20 columns for each of its rows at first, and 2 * (3 + 2 * 4) for those to come:
    each cohort is as wide as its own widest row."""
    for cells, fits in ((62, True), (61, False)):
        books = books_of(8, 2, cells, seq2seq=True)
        books.enter(chunk(0, (6, 7), (5, 2)))
        new = chunk(1, (3, 4), (1, 1))
        if active:
            books.activate()
            books.leave([True, False])
        assert books.fits(new) == fits
        if active:
            books.leave([True])
            assert books.fits(new)


def test_an_empty_book_takes_any_chunk() -> None:
    """Whether it may be answered at all was asked before; here it must not wait for ever."""
    assert books_of(2, 1, 10, seq2seq=True).fits(chunk(0, (50, 50)))


@pytest.mark.parametrize("seed", range(20))
def test_the_cache_is_never_outgrown(seed: int) -> None:
    """Whatever enters by `fits` and works to its end, one look a step."""
    made = random.Random(seed)
    beams, cells, slots = made.choice([1, 2, 4]), made.randint(60, 200), made.randint(1, 8)
    books = books_of(slots, beams, cells, seq2seq=False)
    fullest = rows = 0
    for sequence in range(300):
        size = made.randint(1, 20), made.randint(1, 9)
        alone = cells // (size[0] + beams * size[1])  # a chunk of more is never formed
        new = chunk(sequence, *[size] * max(1, min(alone, made.randint(1, 3))))
        if books.fits(new):
            books.enter(new)
            books.activate()
            rows += len(new.requests)
        if not books.rows:
            continue
        assert books.rows <= slots
        for cohort in books.cohorts:
            assert cohort.keys <= cohort.cells
        if len(books.cohorts) > 1:
            assert sum(c.entered * c.cells for c in books.cohorts) <= cells
        fullest = max(fullest, books.rows)
        books.advance(len(books.cohorts))
        books.leave([c.steps == r.max_new_tokens for c in books.cohorts for r in c.rows])
    assert rows > 50 or slots == 1
    assert fullest > 1 or slots == 1


@pytest.mark.parametrize("seed", range(20))
def test_spent_rows_are_those_with_all_their_tokens(seed: int) -> None:
    """At every step, whoever has entered and left before; cohorts may step and leave apart."""
    made = random.Random(seed)
    books = books_of(12, 2, AMPLE, seq2seq=bool(seed % 2))
    met = set()
    for sequence in range(200):
        if books.free and made.random() < 0.3:
            count = made.randint(1, books.free)
            same = made.random() < 0.5
            sizes = [(made.randint(1, 9), 4 if same else made.randint(1, 9)) for _ in range(count)]
            books.enter(chunk(sequence, *sizes))
            books.activate()
        books.advance(made.randint(0, len(books.cohorts)))
        plain = [r.max_new_tokens <= c.steps for c in books.cohorts for r in c.rows]
        assert books.spent == plain
        met |= set(plain)
        if made.random() < 0.5:
            ended = [made.random() < 0.1 for _ in plain]
            books.leave([a or b for a, b in zip(plain, ended, strict=True)])
    assert met == {False, True}


def test_a_step_at_which_no_row_is_spent_looks_at_none() -> None:
    looked = []

    class Watched(GenerateRequest):
        def __getattribute__(self, name: str) -> Any:
            looked.append(name)
            return super().__getattribute__(name)

    rows = [Watched(Row(i, i + 1, b"", ""), f"k{i}", [0], new) for i, new in enumerate((3, 5, 5))]
    books = books_of(4, 1, AMPLE, seq2seq=True)
    books.enter(Chunk(0, tuple(rows)))
    books.activate()
    expected = [[False] * 3] * 2 + [[True, False, False]]
    for number, spent in enumerate(expected):
        looked.clear()
        books.advance(1)
        assert books.spent == spent
        assert bool(looked) == (number == 2)
    books.leave([True, False, False])
    looked.clear()
    assert books.spent == [False, False]
    books.advance(2)
    books.advance(1)
    assert books.spent == [True, True]
    assert not looked
