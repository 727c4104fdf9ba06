"""Rows that share a search give the same answers as alone, whenever they enter, leave and move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from search_rows import CPU, VOCAB, Oracle, lines, run_slots

from ftjob.comm import Solo
from ftjob.config.groups import DecodeConfig
from ftjob.decode.search import SearchRow, make_search

ENDS = (7, 11)
LENGTHS = [3, 5, 4, 9, 2, 6, 7, 3, 8, 5, 4]
LIMITS = [4, 2, 15, 1, 9, 15, 3, 22, 6, 12, 8]


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize(("slots", "look_every"), [(1, 3), (3, 1), (4, 3), (11, 4)])
def test_slots_do_not_show(beams: int, slots: int, look_every: int) -> None:
    for stop, penalty in ((False, 1.0), ("never", 0.6), (True, 0.0)):
        decode = DecodeConfig(
            beams=beams,
            early_stopping=stop,
            length_penalty=penalty,
            n_best=beams,
            token_logprobs=penalty != 0.0,
        )
        oracle, rows = Oracle("gpt2", ENDS, 1.0), lines(LENGTHS, LIMITS)
        alone = [run_slots(oracle, [row], decode)[0] for row in rows]
        assert len({len(a.hypotheses[0].ids) for a in alone}) > 3
        assert run_slots(oracle, rows, decode, slots=slots, look_every=look_every) == alone


@pytest.mark.parametrize("beams", [1, 3])
def test_a_finished_slot_stays_as_it_is(beams: int) -> None:
    """Whatever comes after, and up to whatever step: nothing of it reaches the answer."""
    generator = torch.Generator().manual_seed(5)

    def logits(n: int) -> torch.Tensor:
        return torch.randn(n * beams, VOCAB, generator=generator) * 3

    decode = DecodeConfig(beams=beams, n_best=beams)
    search = make_search(decode, ENDS, 3, VOCAB, CPU)
    search.enter(0, [SearchRow(2, options=decode), SearchRow(6, options=decode)])
    for _ in range(2):
        chosen = search.advance(logits(2), Solo())
    assert chosen.finished.tolist()[0]
    before = search.harvest([0])()[0]
    search.enter(2, [SearchRow(40)])  # the state grows under it
    for step in range(40):
        chosen = search.advance(logits(3), Solo())
        assert bool(chosen.finished[0])
        assert 0 <= int(chosen.ids.min()) <= int(chosen.ids.max()) < VOCAB
        assert 0 <= int(chosen.parents.min()) <= int(chosen.parents.max()) < beams
        if step == 20:
            search.move([0], [1])
    assert search.harvest([0])()[0] == search.harvest([1])()[0] == before


@pytest.mark.parametrize("beams", [1, 2])
def test_a_slot_forgets_its_last_row(beams: int) -> None:
    oracle, decode = Oracle("gpt2", ENDS, 1.0), DecodeConfig(beams=beams, n_best=beams)
    rows = lines(LENGTHS, LIMITS)
    search = make_search(decode, ENDS, 2, VOCAB, CPU)
    used: list[Any] = [run_slots(oracle, [row], decode, search=search)[0] for row in rows]
    assert used == [run_slots(oracle, [row], decode)[0] for row in rows]


def test_finished_is_not_changed_by_later_steps() -> None:
    for beams in (1, 2):
        search = make_search(DecodeConfig(beams=beams), (), 1, VOCAB, CPU)
        search.enter(0, [SearchRow(2)])
        first = search.advance(torch.randn(beams, VOCAB), Solo())
        second = search.advance(torch.randn(beams, VOCAB), Solo())
        search.enter(0, [SearchRow(2)])
        assert (first.finished.tolist(), second.finished.tolist()) == ([False], [True])


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("stop", [False, True, "never"])
def test_a_step_waits_for_no_device(beams: int, stop: Any) -> None:
    """Tensors without data: whatever asks for a value, as a wait for a GPU would, is an error."""
    meta = torch.device("meta")
    decode = DecodeConfig(beams=beams, early_stopping=stop, token_logprobs=True)
    search = make_search(decode, ENDS, 3, 5000, meta)
    search.enter(0, [SearchRow(4), SearchRow(6)])
    search.enter(2, [SearchRow(9)])
    for n in (3, 2):
        chosen = search.advance(torch.empty(n * beams, 5000, device=meta), Solo())
        assert chosen.ids.shape == chosen.parents.shape == (n, beams)
        assert chosen.finished.shape == (n,)
        assert chosen.ids.dtype == chosen.parents.dtype == torch.int64
    search.move([2], [0])
    answers = search.harvest([0])  # nor does this; the answers do
    with pytest.raises(TypeError, match="meta"):
        answers()
