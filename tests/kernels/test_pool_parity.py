"""Generation as a GPU does it, over a pool and steps of a rung of rows, against transformers.

Without a GPU the kernel runs in Triton's interpreter and steps are not captured.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "model"))

from generate_job import generate, generation_job
from generation_oracle import LIMITS, MOST, lively, reference, rows_for

from ftjob.decode.pool import PoolLanes
from ftjob.job import Job
from ftjob.model import fill
from ftjob.model.decoder import DecoderStage
from ftjob.model.packing import QUERIES
from ftjob.model.seq2seq import Seq2SeqStage
from ftjob.model.stage import Entry, Stage

CASES: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = MappingProxyType(
    {
        "greedy": ("gpt2", {"beams": 1}, {"lanes": 5, "stop_every": 3}),
        "beams": ("gpt2", {"beams": 3}, {"lanes": 12, "order": "dataset"}),
        "greedy T5": ("v1_1", {"beams": 1}, {"lanes": 7}),
        "beams of T5": ("v1_0", {"beams": 4, "n_best": 2}, {"lanes": 20, "stop_every": 2}),
    }
)
SEEDS = {"gpt2": 2, "v1_0": 2, "v1_1": 4}


def prepared(case: str, folder: Path, most: int, kind: str, **more: Any) -> tuple[Any, Job]:
    """transformers' model of a case, and a job that continues rows by `most` with what it saved on
    devices of a kind."""
    family, decode, batch = CASES[case]
    model = lively(family, SEEDS[family])
    model.save_pretrained(folder)
    about = {"family": "gpt2" if family == "gpt2" else "t5"}
    decode = {"max_new_tokens": most, **decode}
    return model, generation_job(folder, decode, model=about, device=kind, **{**batch, **more})


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_transformers(
    case: str, pools: list[PoolLanes], kind: str, tmp_path: Path
) -> None:
    model, job = prepared(case, tmp_path, MOST, kind)
    rows = rows_for(model)[:7]
    found = generate(job, rows, LIMITS[:7])
    for ids, most, answer in zip(rows, LIMITS[:7], found, strict=True):
        expected = reference(model, ids, most, CASES[case][1])
        assert [h.ids for h in answer.hypotheses] == [own for own, _ in expected]
        scores = torch.tensor([h.score for h in answer.hypotheses])
        assert torch.allclose(scores, torch.tensor([s for _, s in expected]), atol=1e-4)
    (lanes,) = pools
    assert not lanes._held, "every row's cells were given back"
    assert len(lanes._extents._gaps) == 1


@pytest.mark.parametrize("case", ["greedy", "beams", "greedy T5"])
def test_passes_of_few_sizes_give_the_answers_of_transformers(
    case: str,
    pools: list[PoolLanes],
    gpu: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What fills entering passes up to a size of few changes nothing. By the GPU's kernels."""
    model, job = prepared(case, tmp_path, 2, gpu.type, max_tokens=64)
    rows = rows_for(model)[:2]
    stage = Seq2SeqStage if case == "greedy T5" else DecoderStage
    read, sizes = stage.enter, []

    def enter(own: Stage, x: torch.Tensor, entry: Entry, *rest: Any) -> torch.Tensor:
        sizes.append((len(entry.ids), len(entry.packing.blocks.table)))  # type: ignore[union-attr]
        return read(own, x, entry, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "enter", enter)
    monkeypatch.setattr(fill, "LEAST", 64)  # an interpreter is slow
    job = replace(job, plan=replace(job.plan, pass_step=64))
    assert job.plan.generation is not None
    found = generate(job, rows)
    for ids, answer in zip(rows, found, strict=True):
        ((expected, _),) = reference(model, ids, 2, CASES[case][1])
        assert answer.hypotheses[0].ids == expected
    assert {*sizes} == {(64, 64 // QUERIES + job.plan.generation.refill + 1)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_out_of_memory.py is real")
def test_without_memory_for_a_chunk_its_halves_enter(
    pools: list[PoolLanes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that cannot be read at once is read in parts, which are no larger from then on; its
    cells are given back in between, and the answers are the same."""
    model = lively("gpt2", SEEDS["gpt2"])
    model.save_pretrained(tmp_path)
    rows, decode = rows_for(model)[:7], {"max_new_tokens": 3, "beams": 1}
    read, asked = DecoderStage.enter, []

    def enter(stage: DecoderStage, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        asked.append(len(x))
        if len(x) > 40:
            raise torch.OutOfMemoryError("no room")
        return read(stage, x, *rest)

    job = generation_job(tmp_path, decode, model={"family": "gpt2"}, lanes=14)
    expected = [h.ids for answer in generate(job, rows) for h in answer.hypotheses]
    monkeypatch.setattr(DecoderStage, "enter", enter)
    assert [h.ids for answer in generate(job, rows) for h in answer.hypotheses] == expected
    assert sum(n > 40 for n in asked) == 1
    assert len(asked) > 3
    for lanes in pools:
        assert len(lanes._extents._gaps) == 1


def test_a_row_that_never_fits_is_refused(
    pools: list[PoolLanes], kind: str, tmp_path: Path
) -> None:
    """Nobody would ever make room for it."""
    model = lively("gpt2", SEEDS["gpt2"])
    model.save_pretrained(tmp_path)
    about: dict[str, Any] = {"model": {"family": "gpt2"}, "lanes": 2, "device": kind}
    job = generation_job(tmp_path, {"max_new_tokens": 3}, **about)
    assert job.plan.generation is not None
    room = replace(job.plan.generation, cells=12)
    job = replace(job, plan=replace(job.plan, generation=room))
    with pytest.raises(RuntimeError, match=r"takes 13 columns of cache, .* memory for 12\."):
        generate(job, [[5] * 10])
