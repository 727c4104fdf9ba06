"""What a GPU warms up on has steps of every kind that a run then has, for each is captured when it
was run once. Without a GPU the kernel runs in Triton's interpreter and nothing is captured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "model"))

from generate_job import generate, generation_job
from generation_oracle import lively

from ftjob import warm
from ftjob.batching import Chunk
from ftjob.decode.microbatch import MicroBatch
from ftjob.decode.pool import PoolLanes
from ftjob.plan_generation import rungs

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"beams": 1},
    "drawn": {"beams": 1, "top_k": 4},
    "beams": {"beams": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_no_kind_of_step_is_new_to_a_run(
    way: str,
    pools: list[PoolLanes],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = lively("gpt2", 2)
    model.save_pretrained(tmp_path)
    decode = {"max_new_tokens": 40, **WAYS[way]}  # more than rows make that warm up
    lanes = 8 * WAYS[way]["beams"]
    about: dict[str, Any] = {"model": {"family": "gpt2"}, "lanes": lanes, "device": kind}
    job = generation_job(tmp_path, decode, **about, stop_every=3)
    real, played, warmed = warm.to_continue, MicroBatch.played, [False]
    kinds: dict[bool, list[Hashable]] = {False: [], True: []}

    def to_continue(*given: Any, gpu: bool = True) -> Iterator[Chunk]:
        yield from real(*given[:3], gpu=True)
        warmed[0] = True

    def record(batch: MicroBatch, step: Hashable, body: Callable[[], Any]) -> Any:
        assert batch.search is not None
        whole = step, batch.search.kind(batch.lanes.rows)
        kinds[warmed[0] and batch.books.cohorts[0].sequence >= 0].append((batch.books.rows, whole))
        return played(batch, step, body)

    monkeypatch.setattr(warm, "to_continue", to_continue)
    monkeypatch.setattr(MicroBatch, "played", record)
    rows = [[5 + i, 6, 7 + i] for i in range(7)]
    answers = generate(job, rows, [40, 2, 5, 9, 7, 3, 8])
    assert len(answers) == 7
    assert kinds[True]
    known = {step for _, step in kinds[False]}
    assert {step for _, step in kinds[True]} <= known
    assert job.plan.generation is not None
    counts = {count for count, _ in kinds[False]}
    assert counts.issuperset(rungs(job.plan.generation.slots))
