"""transformers says the same of every option of rows, and would say so if an answer were another.

The committed suite's jobs are run anew; then answers are changed one by one under its eyes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.oracle import compare_with_transformers, generate
from eval.run import SUITES, judge, load_suite, run_job
from ftjob.config.compose import compose
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.results.summary import read_samples
from ftjob.tasks.base import GenerateRequest, Row

pytestmark = pytest.mark.timeout(300)
JOBS = {job["name"]: job for job in load_suite("options_demo")["jobs"]}
Sample = dict[str, Any]


def test_the_suite_has_every_option_that_transformers_has() -> None:
    rows = [json.loads(line) for f in SUITES.glob("options*.jsonl") for line in f.open()]
    held = {name for row in rows for name in row} - {"id", "prompt", "prompt_ids"}
    assert held == {
        *("top_k", "top_p", "temperature", "seed", "num_return_sequences", "repetition_penalty"),
        *("min_length", "no_repeat_ngram", "bad_words", "stop_words", "end_id", "start_id"),
        *("length_penalty", "max_new_tokens", "token_logprobs", "prompt_logprob"),
    }


@pytest.mark.parametrize("name", JOBS)
def test_transformers_gives_the_same_answers(name: str) -> None:
    job = {**JOBS[name], "overrides": [_whole(o) for o in JOBS[name]["overrides"]]}
    made = run_job(job, {})
    assert judge(job, made) == []
    assert made["oracle"]["rows"] == made["rows"] > 10


def _whole(override: str) -> str:
    """The suites name their rows from the checkout's root."""
    return override.replace("eval/suites", str(SUITES))


def other_token(sample: Sample) -> None:
    """A token that is unlikely there, deep in the answer."""
    for answer in (sample, *sample.get("hypotheses", ())[:1]):
        answer["output_ids"] = [*answer["output_ids"][:5], 77, *answer["output_ids"][6:]]


def other_figure(sample: Sample) -> None:
    sample["cum_logprob"] += 3e-3


def cut_short(sample: Sample) -> None:
    for answer in (sample, *sample.get("hypotheses", ())[:1]):
        answer["output_ids"] = answer["output_ids"][:-1]


def second_answer(sample: Sample) -> None:
    sample["hypotheses"][1]["output_ids"][0] = 77


CHANGES: dict[str, Callable[[Sample], None]] = {
    "o1.0": other_token,
    "o2.1": cut_short,
    "o3.0": other_figure,
    "o7.0": other_token,
    "o7.1": second_answer,
    "o8.0": other_token,
    "o9.1": other_figure,
    "o10.2": cut_short,
    "o13.0": cut_short,
}


def test_a_changed_answer_is_found(tmp_path: Path) -> None:
    overrides = [_whole(o) for o in JOBS["gpt"]["overrides"]]
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-m", "ftjob", *overrides, f"run.dir={run}"], check=True)
    samples = list(read_samples(run / "samples.jsonl"))
    changed = tmp_path / "changed.jsonl"
    for sample in samples:
        CHANGES.get(sample["id"], lambda _: None)(sample)
    changed.write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")
    found = compare_with_transformers(compose(overrides, []), changed)
    lines = {s["id"]: f"row {s['index']} " for s in samples}
    assert len(found.differences) == len(CHANGES)
    for name in CHANGES:
        assert any(d.startswith(lines[name]) for d in found.differences), name


@pytest.mark.parametrize(
    ("decode", "options", "said"),
    [
        ({}, {"presence_penalty": 0.5}, "set besides: presence_penalty"),
        ({}, {"top_p": 0.5, "top_p_decay": 0.9}, "set besides: top_p_decay"),
        ({"convention": "ft"}, {}, "decode.convention=ft"),
    ],
)
def test_what_transformers_has_not_is_refused(
    decode: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=9))
    request = GenerateRequest(Row(0, 1, b"", ""), "", [1], 2, options=RowOptions(**options))
    with pytest.raises(ValueError, match=said):
        generate(model, request, DecodeConfig(**decode), {})
