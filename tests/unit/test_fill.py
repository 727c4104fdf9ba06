"""Sizes of passes on a GPU: few, known before where rows are, and little wasted."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from test_plan import config, plan

from ftjob.model.arch import Arch
from ftjob.model.fill import Fill, padded, step_of
from ftjob.model.packing import QUERIES, block_table
from ftjob.plan import Machine


def test_few_sizes_that_waste_little() -> None:
    sizes = {padded(n) for n in range(1, 16385)}
    assert len(sizes) < 90
    assert padded(0) == 0
    for n in range(1, 16385):
        assert n <= padded(n) < n + max(16, min(256, n / 4))
        assert padded(padded(n)) == padded(n)


def test_sizes_that_are_known_before() -> None:
    """Every pass has one of them, wastes less than a step or as much as it has, and its programs
    have room."""
    fill = Fill(step=448, rows=9)
    sizes = fill.sizes(3500)
    assert sizes == [256, 448, 896, 1344, 1792, 2240, 2688, 3136, 3584]
    made = random.Random(1)
    for n in range(1, 3501):
        size = fill.tokens(n)
        assert size in sizes
        assert n <= size <= max(256, n + 447)
        assert size < 2 * n or size == 256
        lengths = [n // 9] * 9 if n % 9 == 0 else [n]
        if n % 50 == 0 and n > 100:
            cuts = sorted(made.sample(range(1, n), 8))
            lengths = [b - a for a, b in pairwise([0, *cuts, n])]
        assert len(block_table(lengths, lengths, size, fill)) == size // QUERIES + 10
        unknown = Fill(rows=9)  # of a model too large for steps
        whole = unknown.tokens(n)
        assert len(block_table(lengths, lengths, whole, unknown)) == whole // QUERIES + 10
    assert fill.tokens(0) == 0
    assert Fill().sizes(3500) == []
    assert Fill().tokens(3500) == padded(3500)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 319, 512])
def test_programs_of_any_number_of_rows_are_of_few_sizes(count: int) -> None:
    programs = Fill(step=2048).programs(4096, count, QUERIES)
    assert count <= programs < 2 * count
    assert programs & (programs - 1) == 0
    assert Fill(step=2048).programs(4096, 0, QUERIES) == 0


@pytest.mark.parametrize(
    ("layers", "hidden", "ways", "max_tokens", "step"),
    [
        (24, 1024, 1, 16384, 2048),  # GPT-345M
        (24, 1024, 1, 3000, 384),
        (24, 1024, 1, 64, 256),
        (24, 1024, 1, 65536, 0),  # an eighth takes longer than its launches
        (24, 1024, 4, 65536, 8192),
        (32, 4096, 1, 16384, 0),
        (32, 4096, 8, 16384, 0),
        (32, 4096, 8, 4096, 512),
    ],
)
def test_passes_have_few_sizes_where_launches_take_longer(
    layers: int, hidden: int, ways: int, max_tokens: int, step: int
) -> None:
    shape = Arch(
        "gpt2", layers, 16, hidden // 16, hidden, 4 * hidden, 50257, 1024, 1e-5, "relu", True
    )
    assert step_of(shape, ways, max_tokens) == step


def test_a_cpu_fills_nothing_up() -> None:
    small = config(1, 1, model={"checkpoint": "PATH"}, batch={"max_tokens": 2048})
    for device, step in (("cpu", 0), ("cuda", 256)):
        assert plan(small, Machine((1,), device, 10**9, "test")).pass_step == step
