"""A search over a vocabulary cut over a tensor group: the same on every rank as over the whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from search_rows import Oracle, lines, own_part, run_slots
from thread_comm import run_group

from ftjob.comm import Comm, Solo
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.decode.logits import top_logprobs
from ftjob.tasks.base import Generated

Top = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
WAYS = pytest.mark.parametrize("ways", [2, 4])


def by_definition(logits: torch.Tensor, k: int) -> Top:
    """What `top_logprobs` promises, by a full stable sort in float64."""
    values, ids = logits.sort(dim=1, descending=True, stable=True)
    return values[:, :k], ids[:, :k], logits.double().logsumexp(1).float()


def check(found: Top, wanted: Top) -> None:
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert found[1].dtype == torch.int64
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-6, atol=1e-6)


def cut_top(logits: torch.Tensor, k: int, ways: int, spare: int) -> Top:
    """`top_logprobs` over a group; every rank must give the very same."""

    def work(group: Comm) -> Top:
        return top_logprobs(own_part(logits, group, spare), k, group)

    first, *others = run_group(ways, work)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    return first


def logits_with(kind: str, columns: int) -> torch.Tensor:
    """Rows without equal values, with many, with nothing else, or with both zeros."""
    logits = torch.randn(24, columns, generator=torch.Generator().manual_seed(columns)) * 3
    if kind == "some":
        logits = (logits * 4).round() / 4
    elif kind == "all":
        logits.zero_()
    elif kind == "zeros":
        logits = -logits.abs() - 1
        logits[:, 3::2] = 0.0
        logits[:, 4::4] = -0.0
    return logits


KINDS = pytest.mark.parametrize("kind", ["none", "some", "all", "zeros"])


@KINDS
@pytest.mark.parametrize("columns", [9, 301, 2500, 5000])
@pytest.mark.parametrize("k", [1, 2, 9])
def test_highest_of_each_row(kind: str, columns: int, k: int) -> None:
    logits = logits_with(kind, columns)
    check(top_logprobs(logits.clone(), k, Solo()), by_definition(logits, k))


@WAYS
@KINDS
@pytest.mark.parametrize(("columns", "k"), [(5, 5), (21, 9), (5001, 2), (9003, 7)])
def test_highest_over_a_group(ways: int, kind: str, columns: int, k: int) -> None:
    """With fewer columns on a rank than asked for, and ranks of nothing but padding."""
    logits = logits_with(kind, columns)
    for spare in (0, 3):
        check(cut_top(logits, k, ways, spare), by_definition(logits, k))


@WAYS
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_answers_over_a_group(ways: int, beams: int) -> None:
    """41 ids over 2 or 4 ranks: the last one has padding."""
    decode = DecodeConfig(
        beams=beams, early_stopping="never", length_penalty=0.6, n_best=beams, token_logprobs=True
    )
    rows = lines([3, 5, 4, 9, 2], [4, 2, 15, 1, 9])
    oracles = [Oracle("gpt2", (7, 11), 3.0) for _ in range(ways)]

    def answers(group: Comm) -> list[Generated]:
        oracle = oracles[group.rank]
        return run_slots(oracle, rows, decode, slots=3, look_every=2, group=group, cut=own_part)

    whole = run_slots(oracles[0], rows, decode, slots=3, look_every=2)
    first, *others = run_group(ways, answers)
    assert all(other == first for other in others)
    for ours, wanted in zip(first, whole, strict=True):
        close(ours, wanted)


@WAYS
@pytest.mark.parametrize("convention", ["hf", "ft"])
def test_draws_over_a_group(ways: int, convention: Any) -> None:
    """Rows that choose in different ways, the same on every rank as over the whole vocabulary."""
    options = [
        RowOptions(token_logprobs=True),
        RowOptions(top_k=4, num_return_sequences=2, token_logprobs=True),
        RowOptions(top_p=0.8, seed=5),
        RowOptions(top_p=1.0, temperature=1.4, presence_penalty=0.3),
        RowOptions(top_k=40, top_p=0.7, repetition_penalty=1.3, no_repeat_ngram=3),
        RowOptions(top_p=0.9, top_p_decay=0.5, bad_words=((4,), (5, 6)), min_length=3),
    ]
    decode = DecodeConfig(convention=convention, top_k=2, num_return_sequences=2)
    rows = [
        dataclasses.replace(line, options=own, draw=line.ids[0])
        for line, own in zip(lines([3, 5, 4, 9, 2, 6], [9] * 6), options, strict=True)
    ]
    oracles = [Oracle("gpt2", (7, 11), 1.0) for _ in range(ways)]

    def answers(group: Comm) -> list[Generated]:
        oracle = oracles[group.rank]
        return run_slots(oracle, rows, decode, slots=4, group=group, cut=own_part)

    whole = run_slots(oracles[0], rows, decode, slots=4)
    first, *others = run_group(ways, answers)
    assert all(other == first for other in others)
    for ours, wanted in zip(first, whole, strict=True):
        close(ours, wanted)


@WAYS
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("convention", ["hf", "ft"])
def test_beams_with_options_over_a_group(ways: int, convention: Any, kind: str) -> None:
    rate = 0.3 if convention == "ft" else 0.0
    options = [
        RowOptions(n_best=3, repetition_penalty=1.4, beam_search_diversity_rate=rate),
        RowOptions(length_penalty=0.3, stop_words=((4,), (13, 5)), no_repeat_ngram=2),
        RowOptions(n_best=2, bad_words=((3,), (7,)), min_length=4),
        RowOptions(n_best=3, token_logprobs=True),
    ]
    decode = DecodeConfig(convention=convention, beams=3)
    rows = [
        dataclasses.replace(line, options=own)
        for line, own in zip(lines([3, 5, 4, 9], [9, 12, 7, 10]), options, strict=True)
    ]
    oracles = [Oracle(kind, (7, 11), 1.0) for _ in range(ways)]

    def answers(group: Comm) -> list[Generated]:
        oracle = oracles[group.rank]
        return run_slots(oracle, rows, decode, slots=3, group=group, cut=own_part)

    whole = run_slots(oracles[0], rows, decode, slots=3)
    first, *others = run_group(ways, answers)
    assert all(other == first for other in others)
    for ours, wanted in zip(first, whole, strict=True):
        close(ours, wanted)


def close(ours: Generated, wanted: Generated) -> None:
    """The same answer but for the rounding of its figures."""
    assert [h.ids for h in ours.hypotheses] == [h.ids for h in wanted.hypotheses]
    assert [at for at, _ in ours.near_ties] == [at for at, _ in wanted.near_ties]
    for a, b in zip(ours.hypotheses, wanted.hypotheses, strict=True):
        assert a.finish_reason == b.finish_reason
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        figures = (b.score, b.cum_logprob)
        assert (a.score, a.cum_logprob) == pytest.approx(figures, abs=2e-5)
