"""Decisions that rounding could turn are recorded, each kind of them, and no answer turns without
a record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from search_rows import CPU

from ftjob.comm import Solo
from ftjob.config.groups import DecodeConfig
from ftjob.decode.search import SearchRow, make_search
from ftjob.tasks.base import NEAR_TIE, Generated

END, V = 0, 300
Probabilities = dict[int, float]
GAPS = pytest.mark.parametrize("gap", [5e-5, 2e-4])


def logits_of(lanes: Sequence[Probabilities]) -> torch.Tensor:
    """Log-probabilities [W, V]: those given, the rest spread over ids that are out of the race."""
    rows = []
    for given in lanes:
        rest = (1 - sum(given.values())) / (V - len(given))
        rows.append([math.log(given.get(i, rest)) for i in range(V)])
    return torch.tensor(rows)


def answer(
    steps: Sequence[Sequence[Probabilities]], ends: tuple[int, ...] = (END,), **decode: Any
) -> Generated:
    """The answer to a row of that many steps at most, its logits at each step by lane."""
    config = DecodeConfig(beams=len(steps[0]), **decode)
    search = make_search(config, ends, 1, V, CPU)
    search.enter(0, [SearchRow(len(steps), options=config)])
    for lanes in steps:
        if bool(search.advance(logits_of(lanes), Solo()).finished[0]):
            break
    return search.harvest([0])()[0]


def recorded(found: Generated, position: int, gap: float) -> bool:
    """Whether this tie is recorded where it must be, and nothing else is."""
    if gap >= NEAR_TIE:
        return found.near_ties == []
    ((at, size),) = found.near_ties
    return at == position and size == pytest.approx(gap, abs=1e-6)


# a last step of two lanes that decides nothing closely
PLAIN: list[Probabilities] = [{1: 0.8}, {1: 0.8}]


def start(tokens: Probabilities) -> list[Probabilities]:
    return [tokens, tokens]


@GAPS
def test_greedy_records_the_two_highest(gap: float) -> None:
    close = 0.3 * math.exp(-gap)
    for second, third in (({5: 0.3, 9: close}, {4: 0.6}), ({9: 0.3, END: close}, {END: 0.6})):
        found = answer([[{3: 0.5}], [second], [third]])
        assert recorded(found, 1, gap)
        assert len(found.hypotheses[0].ids) == 3


@GAPS
def test_kept_or_dropped_beam(gap: float) -> None:
    close = 0.2 * math.exp(-gap)
    assert recorded(answer([start({1: 0.4, 2: 0.2, 3: close}), PLAIN]), 0, gap)
    # in the middle, and between candidates of two lanes
    lanes: list[Probabilities] = [{1: 0.5, 2: 0.15}, {1: 0.3 * math.exp(-gap)}]
    steps = [start({1: 0.4, 2: 0.2}), lanes, PLAIN]
    assert recorded(answer(steps), 1, gap)


@GAPS
def test_order_of_kept_beams_is_no_decision(gap: float) -> None:
    tokens = {1: 0.4, 2: 0.4 * math.exp(-gap)}
    assert answer([start(tokens), [{1: 0.8}, {1: 0.5}]]).near_ties == []


@GAPS
@pytest.mark.parametrize("higher", [END, 2])
def test_candidate_that_ends_at_the_edge_of_the_first(gap: float, higher: int) -> None:
    lower = 2 - higher
    tokens = {1: 0.4, higher: 0.2, lower: 0.2 * math.exp(-gap), 3: 0.05}
    found = answer([start(tokens), PLAIN], length_penalty=0.0, n_best=2)
    assert recorded(found, 0, gap)
    assert ([END] in [h.ids for h in found.hypotheses]) == (higher == END)


@GAPS
def test_candidate_that_ends_before_two_others(gap: float) -> None:
    """It is not the last of the first W, yet both that follow could pass it."""
    uneven: list[Probabilities] = [{1: 0.8}, {1: 0.5}]
    for first, seen in ((0.2 * math.exp(-gap / 2), True), (0.19, False)):
        tokens = {END: 0.2, 1: first, 2: first * math.exp(-gap / 2), 3: 0.05}
        found = answer([start(tokens), uneven], length_penalty=0.0)
        assert recorded(found, 0, gap) if seen else found.near_ties == []


def test_candidate_that_ends_behind_those_looked_at() -> None:
    """It shares its lane with so many others as high that it is not seen. Were it one of the first
    two, it would take the place of the first step's hypothesis."""
    first = start({1: 0.9, END: 0.05, 2: 0.02})
    for end, ends, others, each in ((END, (END,), 4, 0.19), (9, (END, 9), 5, 0.16)):
        crowd = dict.fromkeys(range(1, 1 + others), each) | {end: each * math.exp(-2e-5)}
        steps = [first, [{END: 0.5}, crowd], PLAIN]
        found = answer(steps, ends, early_stopping=True, n_best=2)
        assert [h.ids for h in found.hypotheses] == [[1, END], [END]]
        assert [at for at, _ in found.near_ties] == [1]
        crowd[end] = each * math.exp(2e-5)
        found = answer(steps, ends, early_stopping=True, n_best=2)
        assert [h.ids for h in found.hypotheses] == [[1, END], [2, end]]


# a row with hypotheses of 0.3 and 0.12 in its pool after two steps, its beams at 0.2 and 0.08
FIRST = start({END: 0.3, 1: 0.4, 2: 0.1})
FULL: list[Probabilities] = [{END: 0.3, 1: 0.5}, {1: 0.8}]


@GAPS
@pytest.mark.parametrize("sign", [1, -1])
def test_candidate_at_the_edge_of_the_pool(gap: float, sign: int) -> None:
    for ending in (1, END):
        third: list[Probabilities] = [{ending: 0.6 * math.exp(sign * gap)}, {1: 0.8}]
        found = answer([FIRST, FULL, third], length_penalty=0.0)
        assert recorded(found, 2, gap)
        assert found.hypotheses[0].ids == [END]


@GAPS
@pytest.mark.parametrize("sign", [1, -1])
def test_row_that_nearly_stopped_or_went_on(gap: float, sign: int) -> None:
    second: list[Probabilities] = [{END: 0.3, 1: 0.3 * math.exp(sign * gap)}, {1: 0.8}]
    third: list[Probabilities] = [{1: 0.8, 2: 0.1}, {1: 0.8, 2: 0.1}]
    for stop in (False, "never"):
        found = answer([FIRST, second, third], length_penalty=0.0, early_stopping=stop)
        assert recorded(found, 1, gap)
    # a full pool ends the row, whatever could still come
    found = answer([FIRST, second, third], length_penalty=0.0, early_stopping=True)
    assert found.near_ties == []


@GAPS
@pytest.mark.parametrize("sign", [1, -1])
def test_never_asks_for_the_score_at_the_limit(gap: float, sign: int) -> None:
    """The pool's worst is ln(0.3 ** 2) / 2; a beam of 0.3 ** 3 hopes for the same at length 3."""
    first = start({END: 0.4, 1: 0.3, 2: 0.05})
    second: list[Probabilities] = [{END: 0.3, 1: 0.09 * math.exp(sign * gap * 3)}, {1: 0.1}]
    third: list[Probabilities] = [{1: 0.8, 2: 0.1}, {1: 0.8, 2: 0.1}]
    found = answer([first, second, third], early_stopping="never")
    assert recorded(found, 1, gap)
    # by the present length the beam is far from it
    assert answer([first, second, third]).near_ties == []


def test_never_with_a_negative_penalty_asks_for_the_present_score() -> None:
    """At the limit of 10 the beam would score less than the pool's worst, at length 3 it wins."""
    second: list[Probabilities] = [{END: 0.1, 1: 0.85}, {1: 0.8}]
    third: list[Probabilities] = [{END: 0.9}, {1: 0.8}]
    steps = [start({END: 0.3, 1: 0.6, 2: 0.05}), second, third, *[PLAIN] * 7]
    found = answer(steps, early_stopping="never", length_penalty=-1.0, n_best=2)
    assert [h.ids for h in found.hypotheses] == [[END], [1, 1, END]]


@GAPS
def test_order_of_the_answer(gap: float) -> None:
    tokens = {1: 0.4, 2: 0.4 * math.exp(-gap), 3: 0.1}
    for n_best in (1, 2):
        assert recorded(answer([start(tokens)], n_best=n_best), 0, gap)
    edge = {1: 0.4, 2: 0.2, 3: 0.2 * math.exp(-gap)}
    assert recorded(answer([start(edge)]), 0, gap)  # the limit lets the first two in


@GAPS
def test_a_negative_length_penalty_does_not_hide_a_tie(gap: float) -> None:
    """At length 2 and penalty -1 the scores are twice the sums: so are their distances."""
    first = start({1: 0.5, 2: 0.2})
    second: list[Probabilities] = [{1: 0.4, 2: 0.4 * math.exp(-gap), 3: 0.1}, {1: 0.3}]
    found = answer([first, second], length_penalty=-1.0)
    assert recorded(found, 1, gap)
    # with a penalty above 0 the distance of the scores counts, even if the sums' is larger
    longer = answer([first, second], length_penalty=1.0)
    assert longer.near_ties == [[1, pytest.approx(gap / 2, abs=1e-6)]] or gap > NEAR_TIE
    # the edge of the pool, at length 3: a sum of 0.144 stays out
    first = start({END: 0.3, 1: 0.4, 2: 0.2})
    third: list[Probabilities] = [{1: 0.45 * math.exp(gap)}, {1: 0.9}]
    assert recorded(answer([first, PLAIN, third], length_penalty=-1.0), 2, gap)


@pytest.mark.parametrize(("edge", "kept"), [(3e-5, 5e-5), (6e-5, 2e-5)])
def test_the_smallest_gap_of_a_position_is_kept(edge: float, kept: float) -> None:
    """A candidate that ends at the edge of the first two, and a beam dropped, in one step."""
    tokens = {1: 0.4, END: 0.2, 2: 0.2 * math.exp(-edge), 3: 0.2 * math.exp(-edge - kept)}
    assert recorded(answer([start(tokens), PLAIN], length_penalty=0.0), 0, min(edge, kept))
    # the order of the answer, and the edge at the limit
    tokens = {1: 0.2, 2: 0.2 * math.exp(-edge), 3: 0.2 * math.exp(-edge - kept)}
    assert recorded(answer([start(tokens)]), 0, min(edge, kept))


class Table:
    """Rows whose logits depend on their last token only. Most are powers of a half, in an order of
    their own: sums and scores of many paths are equal, and rounding decides."""

    def __init__(self, rows: int, vocab: int, seed: int) -> None:
        self.rows, self.vocab = rows, vocab
        generator = torch.Generator().manual_seed(seed)
        shape = (rows, vocab + 1, vocab)  # after each token, and at first
        halves = -math.log(2) * torch.arange(1.0, vocab + 1)
        order = torch.rand(shape, generator=generator).argsort(2)
        own = torch.randn(shape, generator=generator) * 2
        even = torch.rand(shape[:2], generator=generator) < 0.5
        self.logits = torch.where(even.unsqueeze(2), halves[order], own)
        self.noise = torch.randn(shape, generator=generator) * 3e-6

    def run(
        self, decode: DecodeConfig, ends: tuple[int, ...], limit: int, noise: float
    ) -> tuple[list[Generated], list[list[Any]]]:
        """Each row's answer, and after each step its open beams and whether it is finished."""
        search = make_search(decode, ends, self.rows, self.vocab, CPU)
        search.enter(0, [SearchRow(limit, options=decode)] * self.rows)
        logits = self.logits + noise * self.noise
        place = torch.arange(self.rows).unsqueeze(1)
        last = torch.full((self.rows, search.beams), self.vocab)
        paths: list[list[list[int]]] = [[[]] * search.beams for _ in range(self.rows)]
        traces: list[list[Any]] = [[] for _ in range(self.rows)]
        for _ in range(limit):
            chosen = search.advance(logits[place, last].flatten(0, 1), Solo())
            last = chosen.ids
            followed = zip(chosen.ids.tolist(), chosen.parents.tolist(), strict=True)
            for row, (ids, parents) in enumerate(followed):
                beams = zip(ids, parents, strict=True)
                paths[row] = [[*paths[row][p], t] for t, p in beams]
                finished = bool(chosen.finished[row])
                traces[row].append(finished or sorted(paths[row]))
        return search.harvest(range(self.rows))(), traces


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize("stop", [False, True, "never"])
def test_nothing_turns_before_a_record(beams: int, stop: Any) -> None:
    turned = clean = 0
    for seed, penalty in enumerate((0.0, 1.0, 0.5, -1.0)):
        for ends in ((), (0,), (0, 1)):
            decode = DecodeConfig(
                beams=beams, early_stopping=stop, length_penalty=penalty, n_best=(beams + 1) // 2
            )
            table = Table(150, 9, seed)
            ours, traces = table.run(decode, ends, 7, 0.0)
            theirs, others = table.run(decode, ends, 7, 1.0)
            for a, b, trace, other in zip(ours, theirs, traces, others, strict=True):
                ids_a, ids_b = ([h.ids for h in g.hypotheses] for g in (a, b))
                clean += not a.near_ties
                turned += ids_a != ids_b
                for ties in (a.near_ties, b.near_ties):
                    first = int(ties[0][0]) if ties else len(trace)
                    assert trace[:first] == other[:first]
                    assert ties or ids_a == ids_b
    assert turned > 20 or beams == 1
    assert clean > 100
