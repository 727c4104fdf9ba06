"""A step of beams in one kernel against the same in plain PyTorch: every state, step after step.

Without a GPU it runs in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ftjob import kernels
from ftjob.comm import Solo
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.decode.beam import BeamSearch
from ftjob.decode.logits import top_logprobs
from ftjob.decode.search import SearchRow
from ftjob.kernels import beams as beam_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LIMITS = (1, 3, 7, 5, 7)
ENDS = ((3,), (), (2, 5), (8,), (1, 4))
PENALTIES = (1.0, 0.0, -0.5, 2.0, 0.6)
# a row that holds none stands behind those that do
SLOTS, STEPS = len(LIMITS) + 1, 8
RULES: dict[str, dict[str, Any]] = {
    "at once": {"early_stopping": True},
    "no hope": {"early_stopping": False},
    "never": {"early_stopping": "never"},
    "ft": {"convention": "ft"},
}


def searching(beams: int, vocab: int, **rules: Any) -> BeamSearch:
    """Rows with limits, ends and length penalties of their own."""
    decode = DecodeConfig(beams=beams, n_best=beams, **rules)
    search = BeamSearch(decode, (0,), SLOTS, vocab, DEVICE)
    each = zip(LIMITS, ENDS, PENALTIES, strict=True)
    rows = [SearchRow(n, (), RowOptions(end_id=e, length_penalty=p)) for n, e, p in each]
    search.enter(0, rows[:2])  # those that enter later have longer answers
    search.enter(2, rows[2:])
    return search


def logits_of(beams: int, vocab: int, coarse: bool) -> Iterator[torch.Tensor]:
    """Of each step: equal values in plenty, or all apart, and a lane with few tokens left."""
    made = torch.Generator().manual_seed(vocab + beams)
    for step in range(STEPS):
        logits = torch.randn(SLOTS * beams, vocab, generator=made) * 2
        if coarse:
            logits = logits.round()
        logits[step % len(logits), 9:] = -torch.inf
        yield logits.to(DEVICE)


def kept(search: BeamSearch) -> dict[str, torch.Tensor]:
    names = ("length", "done", "open", "history", "logprobs", "gaps", "pool", "endings")
    return {name: getattr(search, f"_{name}") for name in names}


def plain_top(*asked: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The highest tokens as plain PyTorch finds them, the same for both sides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "used", lambda device: False)
        return top_logprobs(*asked)


def advanced(search: BeamSearch, logits: torch.Tensor, by_kernel: bool) -> list[torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "used", lambda device: by_kernel)
        patch.setattr("ftjob.decode.beam.top_logprobs", plain_top)
        found = search.advance(logits.clone(), Solo())
    return [found.ids, found.parents, found.finished]


@pytest.mark.parametrize(
    ("beams", "vocab", "coarse"), [(2, 11, True), (4, 40, False), (3, 12, False), (5, 9, True)]
)
@pytest.mark.parametrize("rule", RULES)
def test_states_are_those_of_plain_torch(
    rule: str, beams: int, vocab: int, coarse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit: what is divided and added is so in the same order."""
    calls: list[int] = []
    real = beam_kernels.advance
    monkeypatch.setattr(beam_kernels, "advance", lambda *a, **k: calls.append(1) or real(*a, **k))
    mine, theirs = (searching(beams, vocab, **RULES[rule]) for _ in range(2))
    ended = torch.zeros(SLOTS, dtype=torch.int64)
    for logits in logits_of(beams, vocab, coarse):
        wanted, found = advanced(theirs, logits, False), advanced(mine, logits, True)
        for own, other in zip(found, wanted, strict=True):
            assert own.dtype == other.dtype
            assert torch.equal(own, other)
        for name, other in kept(theirs).items():
            assert torch.equal(kept(mine)[name], other), name
        ended += found[2].cpu()
    assert len(calls) == STEPS
    assert ended[0] == ended[-1] == STEPS, "one token at most, or no row"
    assert all(0 < n < STEPS for n in ended[1:-1].tolist()), "rows end on the way"


def test_rows_whose_logits_are_no_numbers_do_no_harm() -> None:
    search = searching(4, 40)
    logits = torch.randn(SLOTS * 4, 40, device=DEVICE)
    logits[4:8] = torch.nan
    ids, parents, _ = advanced(search, logits, True)
    assert bool(((ids >= 0) & (ids < 40) & (parents >= 0) & (parents < 4)).all())


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.3}, {"beam_search_diversity_rate": 0.5}], ids=str
)
def test_rows_with_edits_or_diversity_go_the_other_way(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beam_kernels, "advance", None)
    search = BeamSearch(DecodeConfig(beams=2), (0,), 1, 11, DEVICE)
    search.enter(0, [SearchRow(3, (), RowOptions(**options))])
    advanced(search, torch.randn(2, 11, device=DEVICE), True)


@pytest.mark.parametrize(
    ("width", "looks", "candidates", "few"),
    [(4, 6, 9, True), (16, 18, 33, True), (64, 66, 129, False), (2, 1, 2, False)],
)
def test_few_enough(width: int, looks: int, candidates: int, few: bool) -> None:
    """Candidates that a warp holds, one more than lanes at least."""
    assert beam_kernels.fits(width, looks, candidates) == few
