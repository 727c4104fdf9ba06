"""The books of decode slots: gaps close without a row lost, nothing enters that would not fit."""

from __future__ import annotations

import random

import pytest

from ftjob.batching import Chunk
from ftjob.decode.slots import SlotTable
from ftjob.tasks.base import GenerateRequest, Row

AMPLE = 10**9


def request(index: int, tokens: int, new: int) -> GenerateRequest:
    return GenerateRequest(Row(index, index + 1, b"", ""), f"k{index}", [0] * tokens, new)


def chunk(sequence: int, *sizes: tuple[int, int]) -> Chunk:
    """A chunk of rows of these (tokens, new tokens)."""
    rows = [request(100 * sequence + i, tokens, new) for i, (tokens, new) in enumerate(sizes)]
    return Chunk(sequence, tuple(rows))


def keys_of(table: SlotTable) -> list[str]:
    return [slot.request.key for slot in table.rows]


@pytest.mark.parametrize("seed", range(40))
def test_moves_close_every_gap(seed: int) -> None:
    """Rows live in a memory of slots that only the moves change: after each turn the first slots
    hold just the rows that the books say, and no row moved that had no gap before it."""
    made = random.Random(seed)
    slots = made.randint(1, 12)
    table = SlotTable(slots, 2, AMPLE, seq2seq=bool(seed % 2))
    memory: list[str | None] = [None] * slots
    waiting, left = 60, []
    entered: list[str] = []
    for sequence in range(10**6):
        if not waiting and table.idle:
            break
        stepped = len(table.rows)  # those who enter now have not been looked at
        if waiting and table.free and made.random() < 0.7:
            count = min(waiting, made.randint(1, table.free))
            new = chunk(sequence, *[(made.randint(1, 9), 5) for _ in range(count)])
            assert table.fits(new)
            first = table.enter(new)
            assert first == len(table.rows)
            assert table.free == slots - first - count
            for i, slot in enumerate(table.entering):
                memory[first + i] = slot.request.key
                entered.append(slot.request.key)
            waiting -= count
            table.activate()
            assert not table.entering
        chance = made.choice([0.1, 0.5, 1.0])
        finished = [made.random() < chance for _ in range(stepped)]
        before = keys_of(table)
        assert memory[: len(before)] == before
        gone = table.leave(finished)
        assert [(at, slot.request.key) for at, slot in gone.rows] == [
            (i, before[i]) for i, over in enumerate(finished) if over
        ]
        left += [slot.request.key for _, slot in gone.rows]
        for source, target in gone.moves:
            memory[target] = memory[source]
        stay = len(before) - len(gone.rows)
        assert memory[:stay] == keys_of(table)
        assert sorted(keys_of(table)) == sorted(set(before) - {s.request.key for _, s in gone.rows})
        assert len(gone.moves) == sum(at < stay for at, _ in gone.rows), "each gap is filled once"
        for at, key in enumerate(before[:stay]):
            if at >= stepped or not finished[at]:
                assert table.rows[at].request.key == key
        assert table.free == slots - stay
    assert sorted(left) == sorted(entered)
    assert len(left) == 60


def test_longest_rows_enter_first_and_equal_ones_in_order() -> None:
    table = SlotTable(8, 1, AMPLE, seq2seq=False)
    assert table.enter(chunk(0, (2, 1), (7, 1), (2, 1), (9, 1))) == 0
    assert [s.request.key for s in table.entering] == ["k3", "k1", "k0", "k2"]
    assert [(s.sequence, s.steps) for s in table.entering] == [(0, 0)] * 4
    assert (table.free, table.idle, table.rows) == (4, False, [])
    table.activate()
    assert table.enter(chunk(1, (1, 1))) == 4


@pytest.mark.parametrize("seq2seq", [False, True])
def test_what_a_step_sees(seq2seq: bool) -> None:
    """A prompt's last token is fed as the first step, a source is read whole by the encoder."""
    table = SlotTable(4, 3, AMPLE, seq2seq)
    table.enter(chunk(0, (9, 20), (4, 20)))
    table.activate()
    assert [(s.prefix, s.source) for s in table.rows] == (
        [(0, 9), (0, 4)] if seq2seq else [(8, 0), (3, 0)]
    )
    prefix = 0 if seq2seq else 8
    assert (table.keys, table.source) == (prefix + 3, 9 if seq2seq else 0)
    table.advance(2)
    table.advance(2)
    assert table.keys == prefix + 3 * 3
    table.enter(chunk(1, (1, 20)))
    table.activate()
    table.advance(2)  # who has just entered has not made a token
    assert [s.steps for s in table.rows] == [3, 3, 0]
    table.leave([True, True])
    assert (table.keys, table.source) == (3, 1 if seq2seq else 0)


def test_a_chunk_enters_where_there_are_slots_for_all_of_it() -> None:
    table = SlotTable(3, 1, AMPLE, seq2seq=True)
    assert table.fits(chunk(0, (1, 1), (1, 1), (1, 1)))
    assert not table.fits(chunk(0, *[(1, 1)] * 4))
    table.enter(chunk(0, (1, 1)))
    assert table.fits(chunk(1, (1, 1), (1, 1)))
    assert not table.fits(chunk(1, (1, 1), (1, 1), (1, 1)))  # entering rows count
    table.activate()
    assert not table.fits(chunk(1, (1, 1), (1, 1), (1, 1)))


@pytest.mark.parametrize(
    ("cells", "held", "new", "fits"),
    [
        (60, (6, 7), (6, 7), True),  # 6 + 2 * 7 = 20 columns, for each of three rows
        (59, (6, 7), (6, 7), False),
        (59, (6, 6), (6, 7), False),  # the widest counts for all, whether it comes
        (59, (6, 7), (1, 1), False),  # or is there
        (59, (6, 6), (7, 6), True),
    ],
)
@pytest.mark.parametrize("active", [True, False])
def test_all_rows_fit_the_cache_as_wide_as_the_widest(
    cells: int, held: tuple[int, int], new: tuple[int, int], fits: bool, active: bool
) -> None:
    table = SlotTable(8, 2, cells, seq2seq=True)
    table.enter(chunk(0, held))
    if active:
        table.activate()
    assert table.fits(chunk(1, new, (1, 1))) == fits


def test_an_empty_table_takes_any_chunk() -> None:
    """Whether it may be answered at all was asked before; here it must not wait for ever."""
    assert SlotTable(2, 1, 10, seq2seq=True).fits(chunk(0, (50, 50)))


@pytest.mark.parametrize("seed", range(20))
def test_the_cache_is_never_outgrown(seed: int) -> None:
    """Whatever enters by `fits` and works to its end, one look a step."""
    made = random.Random(seed)
    beams, cells, slots = made.choice([1, 2, 4]), made.randint(60, 200), made.randint(1, 8)
    table = SlotTable(slots, beams, cells, seq2seq=False)
    fullest = rows = 0
    for sequence in range(300):
        size = made.randint(1, 20), made.randint(1, 9)
        alone = cells // (size[0] + beams * size[1])  # a chunk of more is never formed
        new = chunk(sequence, *[size] * max(1, min(alone, made.randint(1, 3))))
        if table.fits(new):
            table.enter(new)
            table.activate()
            rows += len(new.requests)
        if not table.rows:
            continue
        assert len(table.rows) <= slots
        if len(table.rows) > 1:
            assert len(table.rows) * table.keys <= cells
        fullest = max(fullest, len(table.rows))
        table.advance(len(table.rows))
        table.leave([s.steps == s.request.max_new_tokens for s in table.rows])
    assert rows > 50 or slots == 1
    assert fullest > 1 or slots == 1
