"""The cache of decode steps, against a model that keeps every beam's path as a list.

A lane must see its prompt and its ancestors, nothing else, wherever its row moves and however the
cache grows. To know what is seen rather than where, each key holds a number of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch

from ftjob.decode.cache import Cache
from ftjob.model.arch import Arch
from ftjob.model.attention import StepView

CPU = (torch.float32, torch.device("cpu"))
SIZE, LAYERS = 2, 2
CELLS = 1 << 20  # more than any test takes


def arch(seq2seq: bool, positions: int | None = None) -> Arch:
    encoder = 1 if seq2seq else 0
    return Arch("any", LAYERS, 1, SIZE, 4, 4, 9, positions, 1e-5, "relu", True, encoder)


@dataclass
class Path:
    """A row: the numbers its prompt's keys hold, those of its source's, and each lane's own."""

    prompt: list[float]
    source: list[float]
    lanes: list[list[float]]
    steps: int = 0


@dataclass
class Model:
    """What the cache should be: the rows in their slots. Numbers are given out once."""

    cache: Cache
    seq2seq: bool
    made: random.Random
    rows: list[Path] = field(default_factory=list)
    last: float = 0.0

    def numbers(self, count: int) -> list[float]:
        self.last += count
        return [self.last - i for i in range(count)]

    @property
    def keys(self) -> int:
        return max(len(r.prompt) + self.cache.beams * (r.steps + 1) for r in self.rows)

    @property
    def source(self) -> int:
        return max(len(r.source) for r in self.rows)

    def enter(self, lengths: list[int]) -> None:
        """New rows behind the others, their prompts or sources put into every layer."""
        first, cache = len(self.rows), self.cache
        longest = max(lengths)
        keys, source = (0, longest) if self.seq2seq else (longest, 0)
        if self.rows:
            keys, source = max(keys, self.keys), max(source, self.source)
        cache.reserve(first + len(lengths), keys, source)
        cache.enter(first, lengths)
        for slot, length in enumerate(lengths, first):
            held = self.numbers(length)
            prompt, source = ([], held) if self.seq2seq else (held, [])
            self.rows.append(Path(prompt, source, [[] for _ in range(cache.beams)]))
            for kept in cache.sources if self.seq2seq else cache.kept:
                kept.keys[slot, 0, :length] = torch.tensor(held).unsqueeze(1)
                kept.values[slot, 0, :length] = -torch.tensor(held).unsqueeze(1)

    def step(self) -> None:
        """A step of all rows, checked; then each lane goes on from a parent drawn at random."""
        n, beams, keys = len(self.rows), self.cache.beams, self.keys
        self.cache.reserve(n, keys, self.source)
        view = self.cache.view(n, keys, self.source)
        new = torch.tensor([self.numbers(beams) for _ in self.rows])
        for kept in self.cache.kept:
            both = torch.stack([new, -new], dim=2).reshape(n * beams, 2, 1).expand(-1, -1, SIZE)
            kept.put(view.slots, view.columns, both.reshape(n * beams, 2 * SIZE))
        for row, own in zip(self.rows, new.tolist(), strict=True):
            row.lanes = [[*lane, key] for lane, key in zip(row.lanes, own, strict=True)]
        self.check(view, n, keys)
        parents = [[self.made.randrange(beams) for _ in range(beams)] for _ in self.rows]
        self.cache.follow(torch.tensor(parents), keys)
        for row, chosen in zip(self.rows, parents, strict=True):
            row.lanes = [list(row.lanes[parent]) for parent in chosen]
            row.steps += 1

    def check(self, view: StepView, n: int, keys: int) -> None:
        beams = self.cache.beams
        assert (view.rows, view.beams) == (n, beams)
        assert view.mask.shape == (n, 1, beams, keys)
        assert bool(((view.mask == 0) | (view.mask == -torch.inf)).all())
        assert view.positions.view(n, beams).tolist() == [
            [len(row.prompt) + row.steps] * beams for row in self.rows
        ]
        for slot, row in enumerate(self.rows):
            for lane in range(beams):
                seen = view.mask[slot, 0, lane] == 0
                expected = [*row.prompt, *row.lanes[lane]]
                for kept in self.cache.kept:
                    assert kept.keys[slot, 0, :keys][seen].tolist() == [
                        [k] * SIZE for k in expected
                    ]
                    assert (
                        kept.values[slot, 0, :keys][seen].eq(-kept.keys[slot, 0, :keys][seen]).all()
                    )
                back = view.distances[slot][seen].tolist()[len(row.prompt) :]
                assert back == list(range(row.steps, -1, -1))
            if view.sources is not None:
                assert view.sources.shape[1:3] == (1, 1)
                seen = view.sources[slot, 0, 0] == 0
                for kept in self.cache.sources:
                    found = kept.keys[slot, 0, : len(seen)][seen]
                    assert found.tolist() == [[k] * SIZE for k in row.source]
        assert (view.sources is not None) == self.seq2seq

    def leave(self, gone: int) -> None:
        """A row leaves; the last one fills its slot."""
        last = len(self.rows) - 1
        if gone != last:
            self.cache.move(last, gone, self.keys)
            self.rows[gone] = self.rows[last]
        self.rows.pop()


@pytest.mark.parametrize("seq2seq", [False, True], ids=["decoder", "seq2seq"])
@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_a_lane_sees_its_ancestors(seed: int, beams: int, seq2seq: bool) -> None:
    """Rows enter, step, move and leave at random; the cache starts with no columns at all."""
    made, slots = random.Random(seed), 5
    cache = Cache(arch(seq2seq), LAYERS, 1, slots, beams, CELLS, CPU)
    model = Model(cache, seq2seq, made)
    entered = moved = 0
    for _ in range(60):
        free = slots - len(model.rows)
        if free and (not model.rows or made.random() < 0.3):
            lengths = [made.randint(1, 12) for _ in range(made.randint(1, free))]
            model.enter(lengths)
            entered += len(lengths)
        model.step()
        while model.rows and made.random() < 0.15:
            gone = made.randrange(len(model.rows))
            moved += gone < len(model.rows) - 1
            model.leave(gone)
    assert entered > slots
    assert moved > 2


def test_prompts_of_one_token_leave_nothing_to_read() -> None:
    """The token is the first step's; beside it a longer prompt."""
    model = Model(Cache(arch(False), LAYERS, 1, 4, 3, CELLS, CPU), False, random.Random(1))
    model.enter([5, 0])
    for _ in range(12):
        model.step()
    assert [len(row.lanes[0]) for row in model.rows] == [12, 12]


def test_a_longer_source_leaves_the_others_alone() -> None:
    """It makes the cache grow while rows are at work in it."""
    model = Model(Cache(arch(True), LAYERS, 1, 4, 2, CELLS, CPU), True, random.Random(1))
    model.enter([3, 2])
    model.step()
    model.enter([9])
    model.step()
    model.leave(0)
    model.enter([20])
    model.step()
    assert [len(row.source) for row in model.rows] == [9, 2, 20]


@pytest.mark.parametrize("seq2seq", [False, True], ids=["decoder", "seq2seq"])
def test_what_nobody_sees_is_finite(seq2seq: bool) -> None:
    """A hidden value is still multiplied by a weight of zero: new memory must hold no nan."""
    cache = Cache(arch(seq2seq), LAYERS, 1, 4, 3, CELLS, CPU)
    for columns in (1, 7, 40, 41, 400):
        cache.reserve(4, columns, columns if seq2seq else 0)
        for kept in (*cache.kept, *cache.sources):
            assert kept.keys.shape[2] >= columns
            assert kept.keys.isfinite().all()
            assert kept.values.isfinite().all()


def test_the_cache_grows_by_more_than_a_step() -> None:
    """Else every step would copy all of it."""
    cache = Cache(arch(False), LAYERS, 1, 2, 3, CELLS, CPU)
    copies, held = 0, cache.kept[0]
    for step in range(200):
        cache.reserve(2, 3 * (step + 1), 0)
        copies += cache.kept[0] is not held
        held = cache.kept[0]
    assert copies < 12


def test_a_finished_row_may_pass_the_last_position() -> None:
    """Until somebody looks it goes on; what it makes there is dropped, but must not fail."""
    cache = Cache(arch(False, positions=6), LAYERS, 1, 2, 2, CELLS, CPU)
    cache.reserve(2, 4, 0)
    cache.enter(0, [4, 1])
    seen = []
    for step in range(4):
        cache.reserve(2, 4 + 2 * (step + 1), 0)
        seen.append(cache.view(2, 4 + 2 * (step + 1), 0).positions.tolist())
        cache.follow(torch.zeros(2, 2, dtype=torch.int64), 4 + 2 * (step + 1))
    assert seen == [[4, 4, 1, 1], [5, 5, 2, 2], [5, 5, 3, 3], [5, 5, 4, 4]]
