"""The reduction tree: the same additions whatever processes hold the leaves, and the right sum."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from ftjob.comm.tree import Span, halves, reduce_span, whole_spans


def cuts(size: int) -> Iterator[list[Span]]:
    """Every way to cut 0..size-1 into consecutive ranges."""
    for inner in itertools.product((False, True), repeat=size - 1):
        bounds = [0, *(i + 1 for i, cut in enumerate(inner) if cut), size]
        yield list(itertools.pairwise(bounds))


def leaves(size: int) -> dict[Span, torch.Tensor]:
    """Numbers whose sum depends on the order of adding."""
    made = torch.Generator().manual_seed(size)
    x = torch.randn(size, 64, generator=made) * 10 ** torch.randint(-6, 7, (size, 1))
    return {(i, i + 1): x[i] for i in range(size)}


@pytest.mark.parametrize("size", range(1, 9))
def test_any_cut_gives_the_same_bits(size: int) -> None:
    parts = leaves(size)
    whole = reduce_span((0, size), parts, "sum")
    count = 0
    for cut in cuts(size):
        sent: dict[Span, torch.Tensor] = {}
        for held in cut:
            mine = {s: x for s, x in parts.items() if held[0] <= s[0] < held[1]}
            sent |= {s: reduce_span(s, mine, "sum") for s in whole_spans(held, (0, size))}
        assert torch.equal(reduce_span((0, size), sent, "sum"), whole)
        count += 1
    assert count == 2 ** (size - 1)


def test_the_order_matters_for_these_numbers() -> None:
    """Else the test above could not fail."""
    x = list(leaves(8).values())
    in_turn = x[0]
    for other in x[1:]:
        in_turn = in_turn + other
    assert not torch.equal(in_turn, reduce_span((0, 8), leaves(8), "sum"))


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_sum_and_maximum(size: int) -> None:
    parts = {(i, i + 1): torch.tensor([float(i), -float(i)]) for i in range(size)}
    total = size * (size - 1) / 2
    assert reduce_span((0, size), parts, "sum").tolist() == [total, -total]
    assert reduce_span((0, size), parts, "max").tolist() == [size - 1.0, 0.0]


def test_halves() -> None:
    assert halves((0, 2)) == ((0, 1), (1, 2))
    assert halves((0, 3)) == ((0, 2), (2, 3))
    assert halves((0, 8)) == ((0, 4), (4, 8))
    assert halves((0, 6)) == ((0, 4), (4, 6))


def test_whole_spans_are_the_largest() -> None:
    assert whole_spans((0, 4), (0, 8)) == [(0, 4)]
    assert whole_spans((1, 8), (0, 8)) == [(1, 2), (2, 4), (4, 8)]
    assert whole_spans((3, 5), (0, 8)) == [(3, 4), (4, 5)]
    assert whole_spans((0, 8), (0, 8)) == [(0, 8)]


def test_a_missing_rank_is_no_sum() -> None:
    with pytest.raises(KeyError):
        reduce_span((0, 4), {(0, 2): torch.zeros(1), (2, 3): torch.zeros(1)}, "sum")
