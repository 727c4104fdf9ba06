"""Which draws rounding could turn: they are recorded as near ties."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from search_rows import CPU, VOCAB
from test_sampling import COLUMNS, MIXED, draws, ids, logits_of

from ftjob.comm import Solo
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.decode.choose import (
    nucleus_candidates,
    of_nucleus,
    top_k_candidates,
)
from ftjob.decode.search import SearchRow, make_search
from ftjob.tasks.base import NEAR_TIE


@pytest.mark.parametrize("options", MIXED[1:6])
def test_near_ties_tell_which_draws_rounding_could_turn(options: RowOptions) -> None:
    """Scores that differ by as much as two layouts' give another token at a near tie alone."""
    generator = torch.Generator().manual_seed(1)
    ties, width = 0, 2000
    one = dataclasses.replace(options, num_return_sequences=1, top_p_decay=1.0)
    for _ in range(5):
        logits = torch.randn(1, VOCAB, generator=generator).repeat(width, 1) * 2
        moved = logits + 4e-5 * (torch.rand(logits.shape, generator=generator) - 0.5)
        answers = []
        for scores in (logits, moved):
            search = make_search(DecodeConfig(), (), width, VOCAB, CPU)
            search.enter(0, [SearchRow(1, [1], one, i) for i in range(width)])
            search.advance(scores.clone(), Solo())
            answers.append(search.harvest(range(width))())
        for a, b in zip(*answers, strict=True):
            ties += bool(a.near_ties)
            if ids(a) != ids(b):
                assert a.near_ties
                assert b.near_ties
    assert ties < 5 * width * 0.2
    assert NEAR_TIE == 1e-4


@pytest.mark.parametrize("gap", [5e-5, 2e-4])
def test_logits_on_both_sides_of_top_k_are_a_near_tie(gap: float) -> None:
    row = torch.tensor([[0.0, 3.0, 1.0 - gap, 2.0, 1.0, -1.0]])
    found = top_k_candidates(row, draws([3], [1.0]), 3, 6, False, Solo())
    assert float(found.close) == pytest.approx(gap, abs=1e-6)
    wide = top_k_candidates(row, draws([2], [1.0]), 5, 6, False, Solo())
    assert float(wide.close) == pytest.approx(1.0)
    assert float(top_k_candidates(row, draws([6], [1.0]), 6, 6, False, Solo()).close) == math.inf


def test_tokens_that_are_about_as_likely_are_not_swapped_by_rounding() -> None:
    """Their shares lie in the order of their ids, whichever is ahead by a hair."""
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    chosen = []
    for sign in (1, -1):
        row = torch.full((50, VOCAB), -9.0)
        row[:, 5], row[:, 30] = 1.0 + sign * 1e-6, 1.0
        asked = draws([2] * 50, [1.0] * 50)
        drawn = top_k_candidates(row, asked, 2, VOCAB, False, Solo()).drawn(u)
        chosen.append(drawn.ids.tolist())
    assert chosen[0] == chosen[1] == [5] * 25 + [30] * 25


def test_near_ties_of_a_nucleus_are_found_with_few_candidates() -> None:
    logits, p = logits_of(4), [0.3, 0.9, 0.999, 1.0]
    u = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    some = of_nucleus(logits, draws([0] * 4, p, u), COLUMNS, False, Solo())
    every = nucleus_candidates(logits, torch.tensor(p), None, False, Solo())[0].drawn(u)
    assert some.ids.tolist() == every.ids.tolist()
    torch.testing.assert_close(some.figures, every.figures, rtol=1e-4, atol=1e-6)
