"""Slots in use again: rows that enter beside others at work, wider than these or too wide for all
slots to be as wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ftjob.decode.cache import Cache
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


def test_the_cache_keeps_to_its_cells_where_rows_are_wide() -> None:
    arch = generation_job("builtin:demo_t5", {}, model=MODEL).source.arch
    cache = Cache(arch, 1, 1, 64, 2, 1000, (torch.float32, torch.device("cpu")))

    def cells() -> int:
        kept, source = cache.kept[0].keys, cache.sources[0].keys
        assert kept.shape[0] == source.shape[0]
        return kept.shape[0] * (kept.shape[2] + source.shape[2])

    for rows, keys, source in ((16, 2, 10), (16, 40, 10), (2, 40, 400), (3, 300, 30), (64, 4, 11)):
        cache.reserve(rows, keys, source)
        kept, read = cache.kept[0].keys, cache.sources[0].keys
        assert kept.shape[0] >= rows
        assert kept.shape[2] >= keys
        assert read.shape[2] >= source
        assert cells() <= 1000


def test_scores_that_are_no_numbers_end_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stage: Stage, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), stage.arch.vocab), torch.nan)

    for beams in (1, 2):
        job = generation_job("builtin:demo_t5", {"beams": beams, "max_new_tokens": 4}, model=MODEL)
        with monkeypatch.context() as patched:
            patched.setattr(Stage, "logits", broken)
            with pytest.raises(RuntimeError, match=r"model.dtype=f32: line 1 gets scores"):
                generate(job, _rows([5]))
