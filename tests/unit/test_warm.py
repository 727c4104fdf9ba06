"""The rows a device warms up on are rows that its model can run, of the size it will see."""

from __future__ import annotations

import pytest

from ftjob import warm
from ftjob.model.arch import Arch
from ftjob.tasks.base import ScoreRequest


def arch(vocab: int, positions: int | None) -> Arch:
    return Arch("gpt2", 1, 1, 4, 4, 16, vocab, positions, 1e-5, "gelu_tanh", True)


@pytest.mark.parametrize(
    ("positions", "max_tokens", "gpu", "rows", "length"),
    [
        (1024, 16384, False, 1, 8),
        (1024, 16384, True, 128, 128),
        (1024, 10**6, True, 128, 128),
        (1024, 700, True, 5, 128),
        (1024, 10, True, 1, 128),
        (None, 640, True, 5, 128),
        (20, 16384, True, 780, 21),
        (1, 64, False, 1, 2),
    ],
)
def test_rows_to_score(
    positions: int | None, max_tokens: int, gpu: bool, rows: int, length: int
) -> None:
    chunk = warm.to_score(arch(5, positions), max_tokens, gpu)
    assert len(chunk.requests) == rows
    for request in chunk.requests:
        assert isinstance(request, ScoreRequest)
        assert len(request.ids) == length
        assert positions is None or length - 1 <= positions, "the last token is no input"
        assert 1 <= request.scored_from < length
        assert max(request.ids) < 5
    assert chunk.sequence < 0


def test_a_row_to_continue_stays_in_the_vocabulary() -> None:
    (request,) = warm.to_continue(arch(3, 16)).requests
    assert max(request.ids) < 3
