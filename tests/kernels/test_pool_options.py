"""Rows with options of their own as a GPU continues them, against the same rows as a CPU does.

Some choose within what is captured, some beside it, and steps have places without a row. Without a
GPU the kernel runs in Triton's interpreter and steps are not captured.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "model"))

from generate_job import generation_job, requests_of, run_requests
from generation_oracle import lively, rows_for

from ftjob.config.options import RowOptions
from ftjob.decode.pool import PoolLanes

OPTIONS = [
    RowOptions(),
    RowOptions(top_k=5, seed=3),
    RowOptions(repetition_penalty=1.3),
    RowOptions(top_k=3, top_p=0.8, temperature=0.7, seed=1),
    RowOptions(min_length=6),
    RowOptions(no_repeat_ngram=2, presence_penalty=0.4),
    RowOptions(top_p=0.9, seed=2),
]
ROWS: dict[str, dict[str, Any]] = {
    "mixed": {"beams": 1},
    "drawn alike": {"beams": 1, "top_k": 4, "seed": 5},
    "beams": {"beams": 2},
}


@pytest.mark.parametrize("rows", ROWS)
def test_answers_are_the_cpus(
    rows: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = lively("gpt2", 2)
    model.save_pretrained(tmp_path)
    decode = {"max_new_tokens": 9, **ROWS[rows]}
    about: dict[str, Any] = {"model": {"family": "gpt2"}, "lanes": 10, "stop_every": 2}
    job = generation_job(tmp_path, decode, **about)
    options = [job.config.decode] * 7
    if rows == "mixed":
        options = OPTIONS
    elif rows == "beams":
        options = [job.config.decode, RowOptions(repetition_penalty=1.4)] * 3 + options[:1]
    limits = [9, 3, 9, 7, 9, 1, 8]
    requests = requests_of(rows_for(model)[:7], limits, options)
    expected = run_requests(job, requests)
    pools: list[PoolLanes] = request.getfixturevalue("pools")
    found = run_requests(generation_job(tmp_path, decode, **about, device=kind), requests)
    assert len(pools) == 1
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.ids for h in ours.hypotheses] == [h.ids for h in theirs.hypotheses]
        for a, b in zip(ours.hypotheses, theirs.hypotheses, strict=True):
            assert a.cum_logprob == pytest.approx(b.cum_logprob, abs=1e-4)
