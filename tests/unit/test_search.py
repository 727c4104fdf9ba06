"""Greedy and beam search give transformers' answers, row by row, for every setting of theirs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from search_rows import CPU, VOCAB, Line, Oracle, lines, run_slots

from ftjob.comm import Solo
from ftjob.config.groups import DecodeConfig
from ftjob.decode.beam import BeamSearch
from ftjob.decode.sampling import Sampling
from ftjob.decode.search import SearchRow, make_search
from ftjob.tasks.base import Generated

KINDS = pytest.mark.parametrize("kind", ["gpt2", "t5"])
STOPS: list[Any] = [False, True, "never"]
PENALTIES = [0.0, 0.6, 1.0, 2.0, -1.0]
# width, end ids, how likely they are: pools that fill at once, slowly, or not at all
WIDTHS: list[tuple[int, tuple[int, ...], float]] = [
    (2, (7,), 3.0),
    (4, (7, 11), 3.5),
    (5, (3,), 4.0),
    (8, (7, 11, 30), 1.5),
]


def check(oracle: Oracle, line: Line, decode: DecodeConfig, ours: Generated) -> Counter[str]:
    """Compare with transformers, near ties or not: both see logits that differ by very little.
    Gives how the hypotheses ended."""
    wanted = oracle.generate(line, decode)
    assert [h.ids for h in ours.hypotheses] == [ids for ids, _ in wanted]
    for found, (ids, score) in zip(ours.hypotheses, wanted, strict=True):
        assert found.finish_reason == ("eos" if ids[-1] in oracle.ends else "length")
        singles = oracle.logprobs(line, ids)
        assert found.cum_logprob == pytest.approx(sum(singles), abs=1e-4)
        assert found.score == pytest.approx(sum(singles) if score is None else score, abs=1e-4)
        if decode.token_logprobs:
            assert found.logprobs == pytest.approx(singles, abs=1e-5)
        else:
            assert found.logprobs is None
    return Counter(h.finish_reason for h in ours.hypotheses)


@KINDS
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_beams_are_those_of_transformers(kind: str, stop: Any, penalty: float) -> None:
    ended: Counter[str] = Counter()
    for beams, ends, bias in WIDTHS:
        oracle = Oracle(kind, ends, bias, seed=beams)
        decode = DecodeConfig(
            beams=beams,
            length_penalty=penalty,
            early_stopping=stop,
            n_best=(beams + 1) // 2,
        )
        for line in lines([5, 9], [14, 9], seed=beams):
            (ours,) = run_slots(oracle, [line], decode)
            ended += check(oracle, line, decode, ours)
    assert ended["eos"] > 0


def test_every_setting_makes_a_difference() -> None:
    """So that the comparison above could fail for each of them."""
    answers: dict[tuple[Any, float], list[Any]] = {}
    for stop in STOPS:
        for penalty in PENALTIES:
            found = answers.setdefault((stop, penalty), [])
            for kind in ("gpt2", "t5"):
                for beams, ends, bias in WIDTHS:
                    oracle = Oracle(kind, ends, bias, seed=beams)
                    decode = DecodeConfig(
                        beams=beams,
                        length_penalty=penalty,
                        early_stopping=stop,
                        n_best=(beams + 1) // 2,
                    )
                    for line in lines([5, 9], [14, 9], seed=beams):
                        (ours,) = run_slots(oracle, [line], decode)
                        found.append([h.ids for h in ours.hypotheses])
    assert answers["never", 2.0] != answers[False, 2.0] != answers[True, 2.0]
    assert answers[False, 1.0] != answers[True, 1.0]
    for stop in STOPS:
        assert len(Counter(str(answers[stop, p]) for p in PENALTIES)) == len(PENALTIES)


@KINDS
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_token_logprobs_and_all_hypotheses(kind: str, beams: int) -> None:
    oracle = Oracle(kind, (7, 11), bias=1.0)
    decode = DecodeConfig(
        beams=beams, early_stopping="never", n_best=beams, token_logprobs=True, length_penalty=0.6
    )
    for line in lines([3, 6, 11], [1, 12, 7]):
        (ours,) = run_slots(oracle, [line], decode)
        check(oracle, line, decode, ours)
        assert len(ours.hypotheses) == beams


@KINDS
@pytest.mark.parametrize(("ends", "bias"), [((), 0.0), ((7,), 3.5), ((5, 7, 11), 3.0)])
def test_greedy_is_that_of_transformers(kind: str, ends: tuple[int, ...], bias: float) -> None:
    decode, ended = DecodeConfig(), Counter[str]()
    for seed in range(3):
        oracle = Oracle(kind, ends, bias, seed)
        for line in lines([2, 5, 9], [1, 12, 20], seed):
            (ours,) = run_slots(oracle, [line], decode)
            ended += check(oracle, line, decode, ours)
    assert ended["length"] > 0
    assert (ended["eos"] > 0) == bool(ends)


@KINDS
@pytest.mark.parametrize("stop", STOPS)
def test_beams_without_an_end_id_run_to_the_limit(kind: str, stop: Any) -> None:
    oracle = Oracle(kind, (), bias=0.0)
    decode = DecodeConfig(beams=3, early_stopping=stop, n_best=3)
    for line in lines([4, 7], [1, 9]):
        (ours,) = run_slots(oracle, [line], decode)
        assert check(oracle, line, decode, ours) == {"length": 3}
        assert [len(h.ids) for h in ours.hypotheses] == [line.max_new_tokens] * 3


def test_wide_beams() -> None:
    oracle = Oracle("gpt2", (7, 11), bias=1.0)
    decode = DecodeConfig(beams=20, early_stopping="never", n_best=20)
    for line in lines([4, 7], [6, 9]):
        (ours,) = run_slots(oracle, [line], decode)
        check(oracle, line, decode, ours)


def test_more_beams_than_tokens_give_each_continuation_once() -> None:
    decode = DecodeConfig(beams=8, n_best=8)
    search = make_search(decode, (2,), 1, 3, CPU)
    search.enter(0, [SearchRow(3, options=decode)])
    logits = torch.tensor([0.5, 0.2, 0.1]).repeat(8, 1)
    while not bool(search.advance(logits.clone(), Solo()).finished[0]):
        pass
    answer = search.harvest([0])()[0]
    found = [tuple(h.ids) for h in answer.hypotheses]
    assert len(set(found)) == len(found) == 8
    assert all(h.cum_logprob > -20 for h in answer.hypotheses)
    search.enter(0, [SearchRow(1, options=decode)])
    search.advance(logits.clone(), Solo())
    assert [h.ids for h in search.harvest([0])()[0].hypotheses] == [[0], [1], [2]]
    assert search.harvest([0])()[0].near_ties == []


@pytest.mark.parametrize("penalty", [-300.0, 300.0])
def test_absurd_length_penalties_still_give_an_answer(penalty: float) -> None:
    oracle = Oracle("gpt2", (7,), bias=1.0)
    decode = DecodeConfig(beams=2, n_best=2, length_penalty=penalty)
    (ours,) = run_slots(oracle, lines([4], [12]), decode)
    assert len(ours.hypotheses) == 2
    assert all(h.cum_logprob > -100 for h in ours.hypotheses)


def test_one_beam_is_greedy() -> None:
    assert isinstance(make_search(DecodeConfig(beams=1), (0,), 2, VOCAB, CPU), Sampling)
    search = make_search(DecodeConfig(beams=3), (0,), 2, VOCAB, CPU)
    assert isinstance(search, BeamSearch)
    assert search.beams == 3
