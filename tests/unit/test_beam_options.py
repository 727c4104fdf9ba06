"""Beams and greedy search with options of rows: transformers' answers under `hf`; under `ft` those
of FasterTransformer's rules, written out step by step over lists.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from search_rows import CPU, Line, Oracle, lines, run_slots

from ftjob.comm import Solo
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.decode.competing import CompetingBeams
from ftjob.decode.search import SearchRow, make_search
from ftjob.tasks.base import Generated

KINDS = pytest.mark.parametrize("kind", ["gpt2", "t5"])
ENDS = (7, 11)
OPTIONS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram": 2},
    {"bad_words": ((3,), (7,), (12, 5), (20,), (31,))},
    {"min_length": 5},
    {"stop_words": ((30,), (22, 9), (4,), (13,), (25, 3, 3))},
    {"repetition_penalty": 0.7, "min_length": 3, "no_repeat_ngram": 3, "stop_words": ((4,), (13,))},
]


def answers(oracle: Oracle, line: Line, decode: DecodeConfig) -> Generated:
    return run_slots(oracle, [line], decode)[0]


@KINDS
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o))
def test_options_are_those_of_transformers(kind: str, beams: int, options: dict[str, Any]) -> None:
    changed, reasons = 0, set()
    for seed in range(4):
        oracle = Oracle(kind, ENDS, 1.5, seed)
        decode = DecodeConfig(beams=beams, n_best=beams, length_penalty=0.7, **options)
        plain = DecodeConfig(beams=beams, n_best=beams, length_penalty=0.7)
        for line in lines([4, 9], [12, 9], seed):
            ours, wanted = answers(oracle, line, decode), oracle.generate(line, decode)
            assert [h.ids for h in ours.hypotheses] == [ids for ids, _ in wanted]
            for found, (_, score) in zip(ours.hypotheses, wanted, strict=True):
                reasons.add(found.finish_reason)
                if score is not None:
                    assert found.score == pytest.approx(score, abs=1e-4)
            changed += ours.hypotheses != answers(oracle, line, plain).hypotheses
    assert changed >= 2
    assert ("stop" in reasons) == ("stop_words" in options)


def mixed(beams: int, **more: Any) -> list[Line]:
    return [
        dataclasses.replace(
            line, options=RowOptions(n_best=beams, token_logprobs=True, **own, **more)
        )
        for line, own in zip(
            lines([3, 5, 4, 9, 2, 6, 7], [9, 12, 4, 15, 7, 9, 11]),
            [*OPTIONS, {"length_penalty": 2.0, "end_id": (1, 2, 3, 5, 8, 13)}],
            strict=True,
        )
    ]


@KINDS
@pytest.mark.parametrize("convention", ["hf", "ft"])
def test_rows_of_different_options_give_the_same_alone(kind: str, convention: Any) -> None:
    rows = mixed(3)
    if convention == "ft":
        rows = [
            dataclasses.replace(
                row,
                options=dataclasses.replace(
                    row.options or RowOptions(), beam_search_diversity_rate=0.3 * (i % 3)
                ),
            )
            for i, row in enumerate(rows)
        ]
    decode = DecodeConfig(beams=3, n_best=3, convention=convention)
    oracle = Oracle(kind, ENDS, 1.0)
    alone = [answers(oracle, row, decode) for row in rows]
    assert len({len(a.hypotheses[0].ids) for a in alone}) > 3
    for slots, look_every in ((3, 2), (7, 3)):
        together = run_slots(oracle, rows, decode, slots=slots, look_every=look_every)
        for found, wanted in zip(together, alone, strict=True):
            same(found, wanted)


def same(found: Generated, wanted: Generated) -> None:
    assert len(found.hypotheses) == len(wanted.hypotheses)
    for a, b in zip(found.hypotheses, wanted.hypotheses, strict=True):
        assert (a.ids, a.finish_reason) == (b.ids, b.finish_reason)
        assert (a.score, a.cum_logprob) == pytest.approx((b.score, b.cum_logprob), abs=1e-4)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


Path = tuple[float, list[int], float]  # cum_logprob, new tokens, score


class ByRule:
    """FasterTransformer's beam search of one row, as its rules are written down."""

    def __init__(self, oracle: Oracle, line: Line, decode: DecodeConfig) -> None:
        self.oracle, self.line, self.decode = oracle, line, decode
        self.width = decode.beams
        sign = 1 if decode.diversity_sign == "ft" else -1
        self.rate = sign * decode.beam_search_diversity_rate

    def likeliest(self, ids: list[int]) -> list[tuple[float, int]]:
        """The 2 W likeliest tokens behind a beam: repetition penalty on logits, then softmax."""
        logits = self.oracle.logits(self.line, [ids])[0]
        seen = {0, *ids} if self.oracle.seq2seq else {*self.line.ids, *ids}
        for token in seen:
            penalty = self.decode.repetition_penalty
            logits[token] = (
                logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
            )
        logprobs = logits.log_softmax(0)
        order = logprobs.sort(descending=True, stable=True).indices[: 2 * self.width].tolist()
        return [(float(logprobs[t]), t) for t in order]

    def score(self, cum: float, length: int, rank: int | None = None) -> float:
        bonus = 0.0 if rank is None else self.rate * (rank % self.width)
        return cum / length**self.decode.length_penalty + bonus

    def competing(self) -> list[Path]:
        """Without an encoder: a finished beam competes, its length stays."""
        prompt, ends = len(self.line.ids), self.oracle.ends
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(self.line.max_new_tokens):
            found = []
            for cum, ids in beams:
                if ids and ids[-1] in ends:
                    found.append((self.score(cum, prompt + len(ids), 0), cum, ids))
                    continue
                for rank, (logprob, token) in enumerate(self.likeliest(ids)):
                    now = cum + logprob
                    key = self.score(now, prompt + len(ids) + 1, rank)
                    found.append((key, now, [*ids, token]))
            found.sort(key=lambda c: -c[0])
            beams = [(cum, ids) for _, cum, ids in found[: self.width]]
            if all(ids[-1] in ends for _, ids in beams):
                break
        return [(cum, ids, self.score(cum, prompt + len(ids))) for cum, ids in beams]

    def pooled(self) -> list[Path]:
        """With an encoder: W finished paths, and at the limit the live ones."""
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        pool: list[tuple[float, float, list[int]]] = []
        for step in range(1, self.line.max_new_tokens + 1):
            found = [
                (self.score(cum + logprob, step, rank), cum + logprob, [*ids, token])
                for cum, ids in beams
                for rank, (logprob, token) in enumerate(self.likeliest(ids))
            ]
            found.sort(key=lambda c: -c[0])
            ended = [c for c in found[: self.width] if c[2][-1] in self.oracle.ends]
            beams = [(c[1], c[2]) for c in found if c[2][-1] not in self.oracle.ends][: self.width]
            pool = sorted([*pool, *ended], key=lambda c: -c[0])[: self.width]
            if len(pool) == self.width:
                break
        else:
            live = [(self.score(cum, step), cum, ids) for cum, ids in beams]
            pool = sorted([*pool, *live], key=lambda c: -c[0])[: self.width]
        return [(cum, ids, score) for score, cum, ids in pool]

    def paths(self) -> list[Path]:
        return self.pooled() if self.oracle.seq2seq else self.competing()


@KINDS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_penalty": 0.0},
        {"length_penalty": 2.5},
        {"repetition_penalty": 1.6},
        {"beam_search_diversity_rate": 0.4},
        {"beam_search_diversity_rate": 0.4, "diversity_sign": "paper"},
        {"beam_search_diversity_rate": -0.3, "length_penalty": 0.0, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_beams_by_fastertransformers_rules(kind: str, options: dict[str, Any]) -> None:
    ended = 0
    for beams, bias in ((2, 2.0), (4, 3.0), (3, 0.0)):
        decode = DecodeConfig(convention="ft", beams=beams, n_best=beams, **options)
        for seed in range(3):
            oracle = Oracle(kind, (7,), bias, seed)
            for line in lines([5, 9], [12, 7], seed):
                wanted = ByRule(oracle, line, decode).paths()
                ours = answers(oracle, line, decode)
                assert [h.ids for h in ours.hypotheses] == [ids for _, ids, _ in wanted]
                for found, (cum, ids, score) in zip(ours.hypotheses, wanted, strict=True):
                    assert found.cum_logprob == pytest.approx(cum, abs=1e-4)
                    assert found.score == pytest.approx(score, abs=1e-4)
                    assert found.finish_reason == ("eos" if ids[-1] == 7 else "length")
                    ended += ids[-1] == 7
    assert ended > 0


def test_every_rule_makes_a_difference() -> None:
    """So that the comparison above could fail for each of them."""
    found: dict[str, list[Any]] = {}
    settings: list[dict[str, Any]] = [
        {"convention": "hf", "early_stopping": True},
        {"convention": "ft"},
        {"convention": "ft", "length_penalty": 0.0},
        {"convention": "ft", "beam_search_diversity_rate": 0.4},
        {"convention": "ft", "beam_search_diversity_rate": 0.4, "diversity_sign": "paper"},
    ]
    for kind in ("gpt2", "t5"):
        for setting in settings:
            if kind == "t5" and setting == {"convention": "ft"}:
                continue  # where nothing else is asked for it is the first
            decode = DecodeConfig(beams=4, n_best=4, **setting)
            for seed in range(3):
                oracle = Oracle(kind, (7,), 3.0, seed)
                for line in lines([5, 9], [12, 7], seed):
                    ids = [h.ids for h in answers(oracle, line, decode).hypotheses]
                    found.setdefault(f"{kind} {setting}", []).append(ids)
    assert len({str(ids) for ids in found.values()}) == len(found) == 9


def test_the_paper_takes_off_what_fastertransformer_adds() -> None:
    oracle, (line,) = Oracle("gpt2", (7,), 2.0), lines([5], [9])
    decode = DecodeConfig(convention="ft", beams=3, n_best=3, beam_search_diversity_rate=0.4)
    paper = dataclasses.replace(decode, diversity_sign="paper", beam_search_diversity_rate=-0.4)
    same(answers(oracle, line, decode), answers(oracle, line, paper))


def test_fastertransformers_score_counts_a_rows_own_prompt() -> None:
    """6 prompt tokens and 2 new ones, whatever its neighbours' are."""
    decode = DecodeConfig(convention="ft", beams=2, length_penalty=2.0)
    search = make_search(decode, (1,), 2, 5, CPU)
    assert isinstance(search, CompetingBeams)
    rows = [SearchRow(2, [3] * 6, decode), SearchRow(2, [3] * 60, decode)]
    search.enter(0, rows)
    logits = torch.tensor([0.0, 1.0, 4.0, 0.0, 0.0]).repeat(4, 1)
    for _ in range(2):
        search.advance(logits.clone(), Solo())
    (best,) = search.harvest([0])()[0].hypotheses
    assert best.ids == [2, 2]
    assert best.score == pytest.approx(best.cum_logprob / 64)


def test_near_ties_of_competing_beams() -> None:
    """Scores that rounding moves give another answer where a near tie is recorded alone."""
    generator = torch.Generator().manual_seed(4)
    rows, vocab, turned = 400, 6, 0
    for rate in (0.0, 0.2):
        decode = DecodeConfig(convention="ft", beams=2, n_best=2, beam_search_diversity_rate=rate)
        # by row and the token before
        table = torch.randn(rows, vocab, vocab, generator=generator).mul(50).round() / 50
        place = torch.arange(rows).unsqueeze(1)
        found = []
        for noise in (0.0, 3e-6):
            search = make_search(decode, (1,), rows, vocab, CPU)
            search.enter(0, [SearchRow(5, [2, 3], decode)] * rows)
            moved = table + noise * torch.randn(table.shape, generator=generator)
            last = torch.full((rows, 2), 3)
            for _ in range(5):
                last = search.advance(moved[place, last].flatten(0, 1), Solo()).ids
            found.append(search.harvest(range(rows))())
        for a, b in zip(*found, strict=True):
            if [h.ids for h in a.hypotheses] != [h.ids for h in b.hypotheses]:
                turned += 1
                assert a.near_ties
                assert b.near_ties
        assert sum(bool(a.near_ties) for a in found[0]) < rows / 2
    assert turned > 0


@pytest.mark.parametrize("convention", ["hf", "ft"])
def test_a_step_with_options_waits_for_no_device(convention: Any) -> None:
    meta = torch.device("meta")
    decode = DecodeConfig(beams=3, convention=convention)
    for seq2seq in (False, True):
        search = make_search(decode, ENDS, 7, 5000, meta, seq2seq)
        rate = 0.2 if convention == "ft" else 0.0
        some = [row.options for row in mixed(3, beam_search_diversity_rate=rate)]
        search.enter(0, [SearchRow(9, [1, 2], options or decode) for options in some])
        for n in (7, 3):
            chosen = search.advance(torch.empty(n * 3, 5000, device=meta), Solo())
            assert chosen.ids.shape == chosen.parents.shape == (n, 3)
        search.move([3], [0])
