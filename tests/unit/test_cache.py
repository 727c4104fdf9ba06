"""The cache of a cohort, against a model that keeps every beam's path as a list.

A lane must see its prompt and its ancestors, nothing else, wherever its row moves. To know what is
seen rather than where, each key holds a number of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from ftjob.batching import Chunk
from ftjob.decode.cache import COLUMNS, Cache
from ftjob.decode.cohorts import Books, Cohort
from ftjob.decode.steps import StepView
from ftjob.model.arch import Arch
from ftjob.plan_generation import Generation
from ftjob.tasks.base import GenerateRequest, Row

SIZE, LAYERS = 2, 2


def arch(seq2seq: bool, positions: int | None = None) -> Arch:
    encoder = 1 if seq2seq else 0
    return Arch("any", LAYERS, 1, SIZE, 4, 4, 9, positions, 1e-5, "relu", True, encoder)


@contextmanager
def dirty_memory() -> Iterator[None]:
    """Whatever is not written before it is seen is not a number."""
    settings = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


@dataclass
class Path:
    """A row: the numbers its prompt's keys hold, those of its source's, and each lane's own."""

    prompt: list[float]
    source: list[float]
    lanes: list[list[float]]


@dataclass
class Model:
    """A cohort as it should be. Numbers are given out once."""

    seq2seq: bool
    beams: int
    made: random.Random
    lengths: list[int]
    new: int
    positions: int | None = None
    rows: list[Path] = field(default_factory=list)
    last: float = 0.0

    def __post_init__(self) -> None:
        """Enter: prompts or sources are put into every layer."""
        self.books = Books(Generation(99, self.beams, 99, 1 << 30, 1, 0), self.seq2seq)
        extra = 0 if self.seq2seq else 1  # the first step's
        requests = tuple(
            GenerateRequest(Row(i, i + 1, b"", ""), str(i), [0] * (n + extra), self.new)
            for i, n in enumerate(self.lengths)
        )
        self.cohort: Cohort = self.books.enter(Chunk(0, requests))
        self.books.activate()
        model = arch(self.seq2seq, self.positions)
        with dirty_memory():
            self.cache = Cache(model, LAYERS, 1, self.cohort, (torch.float32, torch.device("cpu")))
        for at, length in enumerate(sorted(self.lengths, reverse=True)):
            held = self.numbers(length)
            prompt, source = ([], held) if self.seq2seq else (held, [])
            self.rows.append(Path(prompt, source, [[] for _ in range(self.beams)]))
            slots, columns = torch.full((length,), at), torch.arange(length)
            numbers = torch.tensor(held).unsqueeze(1).expand(-1, SIZE)
            for kept in self.cache.sources if self.seq2seq else self.cache.kept:
                kept.put(slots, columns, torch.cat([numbers, -numbers], dim=1))

    def numbers(self, count: int) -> list[float]:
        self.last += count
        return [self.last - i for i in range(count)]

    def step(self) -> StepView:
        """A step of all rows, checked; then each lane goes on from a parent drawn at random."""
        view, lanes = self.cache.view(), self.cohort.lanes
        new = torch.tensor([self.numbers(lanes) for _ in self.rows])
        both = torch.stack([new, -new], dim=2).reshape(-1, 2, 1).expand(-1, -1, SIZE)
        for kept in self.cache.kept:
            kept.put_step(view, both.reshape(-1, 2 * SIZE))
        for row, own in zip(self.rows, new.tolist(), strict=True):
            every = own if lanes == self.beams else own * self.beams
            row.lanes = [[*lane, key] for lane, key in zip(row.lanes, every, strict=True)]
        self.check(view, lanes)
        parents = [[self.made.randrange(self.beams) for _ in range(self.beams)] for _ in self.rows]
        self.cache.follow(torch.tensor(parents))
        for row, chosen in zip(self.rows, parents, strict=True):
            row.lanes = [list(row.lanes[parent]) for parent in chosen]
        self.books.advance(1)
        return view

    def check(self, view: StepView, lanes: int) -> None:
        steps = self.cohort.steps
        assert (view.rows, view.lanes) == (len(self.rows), lanes)
        full = torch.zeros(view.rows, 1, lanes, view.keys)
        mask = full if view.mask is None else view.mask.expand_as(full)
        assert bool(((mask == 0) | (mask == -torch.inf)).all())
        if self.positions is not None:
            assert view.positions is not None
            assert view.positions.view(-1, lanes).tolist() == [
                [min(len(row.prompt) + steps, self.positions - 1)] * lanes for row in self.rows
            ]
        for at, row in enumerate(self.rows):
            for lane in range(lanes):
                seen = mask[at, 0, lane] == 0
                expected = [*row.prompt, *row.lanes[lane]]
                for kept in self.cache.kept:
                    keys, values = kept.both[:, at, 0, : view.keys]
                    assert keys.isfinite().all(), "a hidden value is multiplied by zero"
                    assert values.isfinite().all()
                    assert keys[seen].tolist() == [[k] * SIZE for k in expected]
                    assert values[seen].eq(-keys[seen]).all()
                if view.distances is not None:
                    assert view.distances[seen].tolist() == list(range(steps, -1, -1))
            if self.seq2seq:
                width = view.across[0].both.shape[3]
                hidden = torch.zeros(view.rows, 1, 1, width)
                hidden = hidden if view.sources is None else view.sources
                for kept in self.cache.sources:
                    found = kept.both[0, at, 0]
                    assert found.isfinite().all()
                    assert found[hidden[at, 0, 0] == 0].tolist() == [[k] * SIZE for k in row.source]
        assert (view.distances is not None) == self.seq2seq

    def leave(self) -> None:
        """Some rows leave; the last ones fill their places."""
        gone = [self.made.random() < 0.3 for _ in self.rows]
        if all(gone):
            gone[0] = False
        for source, target in self.books.leave(gone).moves[0]:
            self.cache.move(source, target)
            self.rows[target] = self.rows[source]
        del self.rows[len(self.cohort.rows) :]


@pytest.mark.parametrize("seq2seq", [False, True], ids=["decoder", "seq2seq"])
@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_a_lane_sees_its_ancestors(seed: int, beams: int, seq2seq: bool) -> None:
    """Rows of all lengths, or of one, step and leave at random."""
    made = random.Random(seed)
    lengths = [made.randint(1, 12) for _ in range(7)] if seed % 3 else [5] * 7
    model = Model(seq2seq, beams, made, lengths, COLUMNS + 3)
    for _ in range(COLUMNS + 3):
        model.step()
        model.leave()
    assert len(model.rows) < 7


def test_a_cache_has_not_many_more_columns_than_are_written() -> None:
    """It grows by half, up to all that its rows may come to have, for rows that are still there."""
    model = Model(False, 1, random.Random(1), [4] * 8, 3 * COLUMNS)
    sizes = []
    for step in range(3 * COLUMNS):
        model.step()
        sizes.append(tuple(model.cache.kept[0].both.shape[i] for i in (1, 3)))
        if step == 2:
            model.leave()
    rows = len(model.rows)
    assert 0 < rows < 8
    first, every = 4 + COLUMNS, model.cohort.cells
    grown = [first * 3 // 2, first * 9 // 4, every]
    assert list(dict.fromkeys(sizes)) == [(8, first), *((rows, columns) for columns in grown)]


def test_prompts_of_one_token_leave_nothing_to_read() -> None:
    """The token is the first step's; beside it a longer prompt."""
    model = Model(False, 3, random.Random(1), [5, 0], 12)
    for _ in range(12):
        model.step()
    assert [len(row.lanes[0]) for row in model.rows] == [12, 12]
    alone = Model(False, 1, random.Random(1), [0, 0], 3)
    assert alone.step().mask is None


@pytest.mark.parametrize(
    ("seq2seq", "beams", "lengths", "masked"),
    [(True, 1, [4, 2], False), (False, 1, [4, 4], False), (False, 1, [4, 2], True)],
)
def test_where_all_see_all_there_is_no_mask(
    seq2seq: bool, beams: int, lengths: list[int], masked: bool
) -> None:
    view = Model(seq2seq, beams, random.Random(1), lengths, 3).step()
    assert (view.mask is not None) == masked
    assert (view.sources is not None) == (seq2seq and lengths[0] != lengths[1])


def test_a_finished_row_may_pass_the_last_position() -> None:
    """Until somebody looks it goes on; what it makes there is dropped, but must not fail."""
    model = Model(False, 2, random.Random(1), [4, 1], 4, positions=6)
    views = [model.step() for _ in range(4)]
    assert [v.positions.tolist() for v in views if v.positions is not None] == [
        *([4, 1], [5, 5, 2, 2], [5, 5, 3, 3], [5, 5, 4, 4])
    ]
