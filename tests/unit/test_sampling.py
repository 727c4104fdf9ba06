"""Sampling: the distribution after top_k and top_p is transformers', or FasterTransformer's; draws
follow it, and depend on seed, content, occurrence and position alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from search_rows import CPU, VOCAB, Line, Oracle, lines, run_slots
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from ftjob.comm import Solo
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.decode.choose import (
    Candidates,
    Draws,
    all_candidates,
    nucleus_candidates,
    top_k_candidates,
)
from ftjob.decode.draws import philox, uniform
from ftjob.decode.sampling import Sampling
from ftjob.decode.search import SearchRow, make_search
from ftjob.tasks.base import Generated, GenerateRequest, KeyMaker, Row

COLUMNS = 3000


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([v]) for v in values)


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0,) * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_random_words_are_philox(counter: Any, key: Any, wanted: str) -> None:
    """The known answers that the authors of Random123 publish."""
    found = philox(words(*counter), words(*key))
    assert " ".join(f"{int(word):08x}" for word in found) == wanted


def test_random_numbers_are_uniform_in_every_argument() -> None:
    """Above 0, at most 1, and no two alike, whichever argument runs."""
    fixed, run = torch.full((4096,), -7), torch.arange(4096)
    for place in range(4):
        arguments = [fixed] * 4
        arguments[place] = run
        u = uniform(*arguments)
        assert 0 < float(u.min()) <= float(u.max()) <= 1
        assert len(u.unique()) == 4096
        counts = torch.bincount((u * 64).long().clamp(max=63), minlength=64)
        assert chi_square(counts, torch.full((64,), 1 / 64)) < 4


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """How many standard deviations the statistic lies above its mean, by the approximation of
    Wilson and Hilferty; over the cells that are expected often enough."""
    total = int(counts.sum())
    often = probs * total >= 5
    rest = (counts[~often].sum().double(), probs[~often].sum().double() * total)
    cells = [(float(c), float(p) * total) for c, p in zip(counts[often], probs[often], strict=True)]
    if rest[1] >= 5:
        cells.append((float(rest[0]), float(rest[1])))
    else:
        assert float(rest[0]) <= 20
    statistic = sum((c - e) ** 2 / e for c, e in cells)
    degrees = len(cells) - 1
    width = 2 / (9 * degrees)
    return float(((statistic / degrees) ** (1 / 3) - (1 - width)) / math.sqrt(width))


def dense(found: Candidates, columns: int) -> torch.Tensor:
    """The distribution over the whole vocabulary [M, V]."""
    out = torch.zeros(len(found.ids), columns).scatter_(1, found.ids, found.weights)
    return out / out.sum(dim=1, keepdim=True)


def logits_of(rows: int, columns: int = COLUMNS, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)) * spread


def by_transformers(row: torch.Tensor, k: int, p: float) -> torch.Tensor:
    none, scores = torch.zeros(1, 0, dtype=torch.int64), row.unsqueeze(0)
    if k:
        scores = TopKLogitsWarper(k)(none, scores)
    if 0 < p < 1:
        scores = TopPLogitsWarper(p)(none, scores)
    return scores.softmax(1)[0]


def by_fastertransformer(row: torch.Tensor, k: int, p: float) -> torch.Tensor:
    """Of the k likeliest, their mass made 1, each token its part of what lies below p."""
    order = sorted(range(len(row)), key=lambda i: -float(row[i]))[: k or None]
    probs = row[order].double().softmax(0).tolist()
    out, mass = torch.zeros(len(row), dtype=torch.float64), 0.0
    for token, prob in zip(order, probs, strict=True):
        out[token] = max(0.0, min(prob, (p or 1.0) - mass)) / (p or 1.0)
        mass += prob
    return out.float()


BY = {"hf": by_transformers, "ft": by_fastertransformer}
CONVENTIONS = pytest.mark.parametrize("convention", ["hf", "ft"])


def draws(k: list[int], p: list[float], u: torch.Tensor | None = None) -> Draws:
    if u is None:
        u = torch.full((len(k),), 0.5, dtype=torch.float64)
    return Draws(torch.tensor(k), torch.tensor(p), u)


@CONVENTIONS
def test_top_k_and_top_p_of_rows_in_one_batch(convention: str) -> None:
    pairs = [(k, p) for k in (2, 5, 50, 1024) for p in (1.0, 0.9, 0.5, 0.01)]
    logits = logits_of(len(pairs))
    asked = draws([k for k, _ in pairs], [p for _, p in pairs])
    found = top_k_candidates(logits, asked, 1024, COLUMNS, convention == "ft", Solo())
    for row, (k, p), ours in zip(logits, pairs, dense(found, COLUMNS), strict=True):
        torch.testing.assert_close(ours, BY[convention](row, k, p), rtol=0, atol=1e-5)


@CONVENTIONS
@pytest.mark.parametrize("few", [64, 1024, None])
def test_top_p_alone(convention: str, few: int | None) -> None:
    shares = [0.95, 0.9, 0.5, 0.05, 1e-4, 1.0]
    logits = logits_of(len(shares), spread=4.0)
    p = torch.tensor(shares)
    found, enough = nucleus_candidates(logits, p, few, convention == "ft", Solo())
    assert enough.tolist()[2:5] == [True] * 3
    for row, share, ours, whole in zip(
        logits, shares, dense(found, COLUMNS), enough.tolist(), strict=True
    ):
        if whole:
            wanted = BY[convention](row, 0, share)
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


def test_the_whole_vocabulary() -> None:
    logits = logits_of(3)
    torch.testing.assert_close(dense(all_candidates(logits, Solo()), COLUMNS), logits.softmax(1))


@pytest.mark.parametrize("k", [1, 3])
def test_more_candidates_than_tokens(k: int) -> None:
    logits = logits_of(2, 5)
    found = top_k_candidates(logits, draws([k, 900], [1.0, 0.8]), 900, 5, False, Solo())
    torch.testing.assert_close(dense(found, 5)[0], by_transformers(logits[0], k, 1.0))
    torch.testing.assert_close(dense(found, 5)[1], by_transformers(logits[1], 0, 0.8))


@CONVENTIONS
@pytest.mark.parametrize(("k", "p"), [(7, 0.0), (12, 0.6), (0, 0.7), (0, 1.0), (0, 0.02)])
def test_draws_follow_the_distribution(convention: Any, k: int, p: float) -> None:
    """40 drawn answers of each of 250 seeds, by the search as a whole."""
    options = RowOptions(top_k=k, top_p=p, num_return_sequences=40)
    decode = DecodeConfig(convention=convention, top_k=2, num_return_sequences=40)
    row = logits_of(1, VOCAB, spread=1.5)
    search = make_search(decode, (), 250, VOCAB, CPU)
    rows = [SearchRow(1, [1], dataclasses.replace(options, seed=s), 99) for s in range(250)]
    search.enter(0, rows)
    search.advance(row.repeat(250 * 40, 1), Solo())
    found = search.harvest(range(250))()
    ids = torch.tensor([h.ids[0] for one in found for h in one.hypotheses])
    assert len(ids) == 10_000
    wanted = BY[convention](row[0], k, p)
    assert not (torch.bincount(ids, minlength=VOCAB)[wanted == 0]).any()
    if int((wanted > 0).sum()) > 1:
        assert chi_square(torch.bincount(ids, minlength=VOCAB), wanted) < 4


MIXED = [
    RowOptions(),
    RowOptions(top_k=4, num_return_sequences=3),
    RowOptions(top_p=0.8, seed=5),
    RowOptions(top_p=1.0, temperature=1.4, num_return_sequences=2),
    RowOptions(top_k=9, top_p=0.7, temperature=0.6, repetition_penalty=1.3),
    RowOptions(top_p=0.9, top_p_decay=0.5, top_p_min=0.1, top_p_reset=3),
    RowOptions(bad_words=((4,), (5, 6)), no_repeat_ngram=2),
    RowOptions(top_k=3, stop_words=((9,), (2, 3)), min_length=4, token_logprobs=True),
]


def mixed(limits: int = 9) -> list[Line]:
    return [
        dataclasses.replace(line, options=options, draw=1000 + i)
        for i, (line, options) in enumerate(
            zip(lines([3, 5, 4, 9, 2, 6, 7, 3], [limits] * 8), MIXED, strict=True)
        )
    ]


DECODE = DecodeConfig(top_k=2, num_return_sequences=3)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_slots_neighbours_and_order_do_not_show(kind: str) -> None:
    """The same draws alone, in any company, in any order, however late finished rows leave."""
    oracle, rows = Oracle(kind, (7, 11), 1.0), mixed()
    alone = [run_slots(oracle, [row], DECODE)[0] for row in rows]
    assert [len(a.hypotheses) for a in alone] == [1, 3, 1, 2, 1, 1, 1, 1]
    for slots, look_every in ((3, 2), (8, 3), (5, 1)):
        together = run_slots(oracle, rows, DECODE, slots=slots, look_every=look_every)
        backwards = run_slots(oracle, rows[::-1], DECODE, slots=slots, look_every=look_every)
        assert [ids(a) for a in together] == [ids(a) for a in alone]
        assert [ids(a) for a in backwards[::-1]] == [ids(a) for a in alone]
        for found, wanted in zip(together, alone, strict=True):
            close(found, wanted)


def ids(answer: Generated) -> list[list[int]]:
    return [h.ids for h in answer.hypotheses]


def close(found: Generated, wanted: Generated) -> None:
    for a, b in zip(found.hypotheses, wanted.hypotheses, strict=True):
        assert (a.ids, a.finish_reason) == (b.ids, b.finish_reason)
        assert a.cum_logprob == pytest.approx(b.cum_logprob, abs=1e-4)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_a_rows_sum_is_the_same_to_the_last_bit_whatever_rows_leave_with_it() -> None:
    """Rows of 150 and of 40 tokens, harvested at once and one by one; a resumed run has other
    company. Token by token nothing is left of what is small beside the first one; added in any
    other order, something is."""
    options = RowOptions(token_logprobs=True)
    limits = [150, 40, 149]
    search = make_search(DecodeConfig(max_new_tokens=150), (), len(limits), VOCAB, CPU)
    assert isinstance(search, Sampling)
    search.enter(0, [SearchRow(limit, [1], options) for limit in limits])
    generator = torch.Generator().manual_seed(3)
    for _ in range(max(limits)):
        search.advance(torch.randn(len(limits), VOCAB, generator=generator), Solo())
    for hypothesis in (answer.hypotheses[0] for answer in search.harvest(range(len(limits)))()):
        assert hypothesis.logprobs is not None
        assert len(hypothesis.ids) == len(hypothesis.logprobs)
        assert hypothesis.cum_logprob == pytest.approx(math.fsum(hypothesis.logprobs), rel=1e-12)
    search._figures[:, 0, :, :2] = -(2.0**60)
    search._figures[:, 1:, :, :2] = -100.0
    together = search.harvest(range(len(limits)))()
    for slot, (limit, answer) in enumerate(zip(limits, together, strict=True)):
        assert search.harvest([slot])() == [answer]
        assert len(answer.hypotheses[0].ids) == limit
        assert answer.hypotheses[0].cum_logprob == -(2.0**60)


def test_draws_depend_on_seed_content_occurrence_and_position() -> None:
    oracle = Oracle("gpt2", (), 0.0)
    (line,) = lines([4], [12])
    options = RowOptions(top_p=1.0, num_return_sequences=2)

    def drawn(seed: int = 0, draw: int = 1) -> list[list[int]]:
        own = dataclasses.replace(line, options=dataclasses.replace(options, seed=seed), draw=draw)
        return ids(run_slots(oracle, [own], DECODE)[0])

    first = drawn()
    assert first == drawn()
    assert first[0] != first[1]
    different = [first, drawn(seed=1), drawn(seed=1 << 62), drawn(draw=2), drawn(draw=-1)]
    assert len({str(d) for d in different}) == 5
    assert len({d[0][i] for d in different for i in range(12)}) > 8


def test_what_a_rows_draws_depend_on() -> None:
    """Content and occurrence; neither where it stands, nor what the run is."""
    keys = KeyMaker("a"), KeyMaker("b")
    contents = [b"x", b"y", b"x", b"x"]
    found = []
    for maker in keys:
        for index, content in enumerate(contents):
            row, key = maker.keyed(Row(index, index + 1, content, "x"))
            found.append(GenerateRequest(row, key, [1], 1).draw)
    assert found[:4] == found[4:]
    assert len(set(found[:4])) == 4
    moved, _ = KeyMaker("a").keyed(Row(77, 78, b"x", "x", id="own"))
    assert GenerateRequest(moved, "", [5, 6], 9).draw == found[0]
    assert all(-(2**63) <= draw < 2**63 for draw in found)


def test_figures_of_a_draw() -> None:
    """Log-probabilities after temperature and penalties, over the whole vocabulary; what
    FasterTransformer shows is among the top_k."""
    row = logits_of(1, VOCAB)
    options = RowOptions(top_k=5, temperature=0.5, token_logprobs=True)
    for convention in ("hf", "ft"):
        decode = DecodeConfig(convention=convention, top_k=2)  # type: ignore[arg-type]
        search = make_search(decode, (), 1, VOCAB, CPU)
        search.enter(0, [SearchRow(1, [1], options, 5)])
        search.advance(row.clone(), Solo())
        (best,) = search.harvest([0])()[0].hypotheses
        scores = row[0] / (0.5 if convention == "hf" else 0.5 + 1e-6)
        among = scores if convention == "hf" else scores.topk(5).values
        assert best.cum_logprob == pytest.approx(
            float(scores.log_softmax(0)[best.ids[0]]), abs=1e-5
        )
        shown = float(scores[best.ids[0]] - among.logsumexp(0))
        assert best.logprobs == pytest.approx([shown], abs=1e-5)


def test_top_p_decays_to_its_least_and_is_reset() -> None:
    """p := max(p * decay, least) after each token, and p at first after the id of reset."""
    options = RowOptions(top_p=0.8, top_p_decay=0.5, top_p_min=0.15, top_p_reset=6)
    other = RowOptions(top_p=0.8)
    search = make_search(DecodeConfig(), (), 2, VOCAB, CPU)
    search.enter(0, [SearchRow(9, [1], options), SearchRow(9, [1], other)])
    shares: list[float] = []
    for step in range(6):
        shares.append(round(float(search._p[0, 0]), 6))  # type: ignore[attr-defined]
        assert float(search._p[1, 0]) == pytest.approx(0.8)  # type: ignore[attr-defined]
        logits = torch.full((2, VOCAB), -50.0)
        logits[:, 6 if step == 3 else 2] = 50.0
        search.advance(logits, Solo())
    assert shares == [0.8, 0.4, 0.2, 0.15, 0.8, 0.4]


def test_a_step_waits_for_no_device() -> None:
    """Tensors without data: whatever asks for a value, as a wait for a GPU would, is an error."""
    meta = torch.device("meta")
    search = make_search(DECODE, (7, 11), len(MIXED), 5000, meta)
    search.enter(0, [SearchRow(4, [1, 2], o) for o in MIXED])
    for n in (len(MIXED), 3):
        chosen = search.advance(torch.empty(n * 3, 5000, device=meta), Solo())
        assert chosen.ids.shape == chosen.parents.shape == (n, 3)
        assert chosen.finished.shape == (n,)
    search.move([3], [0])
