"""Rows that enter beside others at work, and what becomes of logits that are no numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ftjob.model.stage import Stage
from ftjob.tasks.base import Generated
from tests.model.generate_job import generate, generation_job

MODEL = {"family": "t5"}


def _rows(lengths: Sequence[int]) -> list[list[int]]:
    return [[5 + (7 * i + 3 * k) % 900 for k in range(n - 1)] + [1] for i, n in enumerate(lengths)]


def _ids(answers: Sequence[Generated]) -> list[list[int]]:
    return [a.hypotheses[0].ids for a in answers]


@pytest.mark.parametrize("pipeline", [1, 2])
def test_longer_sources_enter_beside_rows_at_work(pipeline: int) -> None:
    rows = _rows([4, 6, 5, 9, 14, 3, 25, 31])
    limits = [3, 16, 5, 16, 7, 16, 9, 16]
    alone = generation_job("builtin:demo_t5", {"beams": 2}, model=MODEL, lanes=2)
    many = generation_job(
        *("builtin:demo_t5", {"beams": 2}),
        model=MODEL,
        pipeline=pipeline,
        lanes=8 * pipeline,
        order="dataset",
    )
    assert _ids(generate(many, rows, limits)) == _ids(generate(alone, rows, limits))


def test_scores_that_are_no_numbers_end_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stage: Stage, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), stage.arch.vocab), torch.nan)

    for beams in (1, 2):
        job = generation_job("builtin:demo_t5", {"beams": beams, "max_new_tokens": 4}, model=MODEL)
        with monkeypatch.context() as patched:
            patched.setattr(Stage, "logits", broken)
            with pytest.raises(RuntimeError, match=r"model.dtype=f32: line 1 gets scores"):
                generate(job, _rows([5]))
