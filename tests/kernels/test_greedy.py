"""A greedy step in one kernel against the same in plain PyTorch: every state, step after step.

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
from ftjob.decode.sampling import Sampling
from ftjob.decode.search import Advance, SearchRow
from ftjob.kernels import greedy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LIMITS = (1, 4, 9, 6)
ENDS = ((3,), (), (2, 5, 7), (8,))
# rows that hold none stand behind those that do
SLOTS, STEPS = len(LIMITS) + 2, 7


def searching(width: int, vocab: int, **own: Any) -> Sampling:
    """Rows with limits, ends and numbers of answers of their own; some slots hold no row."""
    decode = DecodeConfig(num_return_sequences=width)
    search = Sampling(decode, (0,), SLOTS, vocab, DEVICE)
    rows = [
        SearchRow(limit, (), RowOptions(end_id=ends, num_return_sequences=1 + i % width, **own))
        for i, (limit, ends) in enumerate(zip(LIMITS, ENDS, strict=True))
    ]
    search.enter(0, rows)
    return search


def logits_of(width: int, vocab: int) -> Iterator[torch.Tensor]:
    """Of each step: with equal values, and with bans that leave a lane one token."""
    made = torch.Generator().manual_seed(vocab + width)
    for step in range(STEPS):
        logits = (torch.randn(SLOTS * width, vocab, generator=made) * 2).round() / 2
        if vocab > 1:
            logits[step % len(logits), 1:] = -torch.inf
        yield logits.to(DEVICE)


def kept(search: Sampling) -> list[torch.Tensor]:
    return [search._ids, search._figures, search._length, search._done]


@pytest.mark.parametrize(("width", "vocab"), [(1, 11), (3, 11), (1, 1)])
def test_states_are_those_of_plain_torch(
    width: int, vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = (searching(width, vocab) for _ in range(2))
    taken: list[Advance] = []
    for logits in logits_of(width, vocab):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "used", lambda device: False)
            wanted = theirs.advance(logits.clone(), Solo())
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "used", lambda device: True)
            found = mine.advance(logits.clone(), Solo())
        taken.append(found)
        assert torch.equal(found.ids, wanted.ids)
        assert torch.equal(found.parents, wanted.parents)
        assert torch.equal(found.finished, wanted.finished)
        assert found.finished.dtype == torch.bool
        for own, other in zip(kept(mine), kept(theirs), strict=True):
            assert torch.allclose(own, other, rtol=1e-6, atol=1e-6, equal_nan=True)
            if own.dtype != torch.float32:
                assert torch.equal(own, other)
    ended = torch.stack([step.finished for step in taken]).sum(dim=0).tolist()
    assert ended[0] == ended[4] == ended[5] == STEPS, "one token at most, or no row"
    assert 0 < max(ended[1:4]) < STEPS, "rows end on the way"


def test_steps_that_edit_go_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel knows nothing of stop words, nor of draws."""
    asked: list[object] = []
    monkeypatch.setattr(kernels, "used", lambda device: True)
    monkeypatch.setattr(greedy, "take", lambda *given: asked.append(given))
    for own in ({"stop_words": ((4,),)}, {"top_k": 3}):
        search = searching(1, 11, **own)
        assert search.advance(next(logits_of(1, 11)), Solo()).ids.shape == (SLOTS, 1)
    assert not asked
