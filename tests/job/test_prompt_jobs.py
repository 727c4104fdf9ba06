"""A run over prompts with options of their own: in any layout and order of rows the same draws;
error records, ids twice, token ids without a tokenizer; a stopped run's other half.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import DEMO, Ended, Place, at_once, lines

from ftjob.tokenizer import open_tokenizer

pytestmark = pytest.mark.timeout(90)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 8, "num_return_sequences": 2},
    {"top_p": 0.9, "temperature": 0.8, "seed": 5},
    {"top_p": 1.0, "max_new_tokens": 4, "token_logprobs": True},
    {"top_k": 40, "top_p": 0.7, "repetition_penalty": 1.3, "stop_words": [" the", "."]},
    {"no_repeat_ngram": 2, "bad_words": [[263], 309], "min_length": 5},
    {"presence_penalty": 0.6, "frequency_penalty": 0.3, "top_p": 0.95, "prompt_logprob": True},
]
STARTS = ["The old man", "She said", "In the morning they went down to the", "It was", "He"]
ROWS: list[dict[str, Any]] = [
    {"id": f"{s}{i}", "prompt": start, **options}
    for s, start in enumerate(STARTS)
    for i, options in enumerate(OPTIONS)
]
BASE = (
    *("dataset=prompts", "decode.max_new_tokens=8"),
    *("decode.top_k=2", "decode.num_return_sequences=2"),
)
LAYOUTS: dict[str, tuple[str, ...]] = {
    "one": (),
    "few": ("batch.lanes=6", "batch.order=dataset", "batch.stop_every=3"),
    "tensor": ("cluster.devices_per_node=2", "parallel.tensor=2"),
    "stages": ("cluster.devices_per_node=2", "parallel.pipeline=2", "batch.lanes=12"),
}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, Ended]]:
    """A run of each layout, in a folder of its name; and one over the rows backwards."""
    place = Place(tmp_path_factory.mktemp("prompts"))
    path = write(place.cwd / "rows.jsonl", ROWS)
    back = write(place.cwd / "back.jsonl", ROWS[::-1])
    jobs = [
        (*BASE, f"dataset.path={path}", *settings, f"run.dir={name}")
        for name, settings in LAYOUTS.items()
    ]
    jobs.append((*BASE, f"dataset.path={back}", "run.dir=back"))
    return place, dict(zip([*LAYOUTS, "back"], at_once(place, jobs), strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_give_the_same_draws(runs: tuple[Place, dict[str, Ended]], name: str) -> None:
    place, ended = runs
    ended[name].expect(0)
    done = place("compare", "one", name).expect(0)
    assert f"{len(ROWS)} rows: the same answers (0 differences" in done.out


def test_the_order_of_rows_does_not_show(runs: tuple[Place, dict[str, Ended]]) -> None:
    place, ended = runs
    ended["back"].expect(0)

    def by_id(run: str) -> dict[str, list[int]]:
        return {r["id"]: r["output_ids"] for r in lines(place.cwd / run / "samples.jsonl")}

    assert by_id("back") == by_id("one")
    assert len({str(ids) for ids in by_id("one").values()}) > len(ROWS) / 2


def test_options_show_in_the_answers(runs: tuple[Place, dict[str, Ended]]) -> None:
    place, _ = runs
    found = {r["id"]: r for r in lines(place.cwd / "one" / "samples.jsonl")}
    assert all(len(r["output_ids"]) <= (4 if i.endswith("3") else 8) for i, r in found.items())
    assert all("token_logprobs" in r for i, r in found.items() if i.endswith("3"))
    assert {r["finish_reason"] for i, r in found.items() if i.endswith("4")} >= {"stop"}
    assert not any({263, 309} & {*r["output_ids"]} for i, r in found.items() if i.endswith("5"))
    assert any({263, 309} & {*r["output_ids"]} for r in found.values())


def test_the_prompts_own_log_probability(runs: tuple[Place, dict[str, Ended]]) -> None:
    """That of its tokens after the first, as transformers gives it."""
    from transformers import GPT2LMHeadModel

    place, _ = runs
    model = GPT2LMHeadModel.from_pretrained(DEMO / "demo_gpt", dtype=torch.float32).eval()
    tokenizer = open_tokenizer(None, DEMO / "demo_gpt")
    rows = lines(place.cwd / "one" / "samples.jsonl")
    asked = [r for r in rows if r["id"].endswith("6")]
    assert all(("prompt_logprob" in r) == (r in asked) for r in rows)
    assert len(asked) == len(STARTS)
    for row in asked:
        (ids,) = tokenizer.encode([row["input"]])
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = sum(float(logprobs[i, t]) for i, t in enumerate(ids[1:]))
        assert row["prompt_logprob"] == pytest.approx(wanted, abs=1e-4)


def test_rows_that_are_none_are_records_and_nothing_is_lost(tmp_path: Path) -> None:
    rows = [ROWS[0], {"prompt": "a", "top_k": 5000}, {"prompt": "a", "colour": 1}, ROWS[2]]
    place = Place(tmp_path)
    path = write(tmp_path / "rows.jsonl", rows)
    place("dataset=prompts", f"dataset.path={path}", "run.dir=run").expect(
        4, "line 2: top_k=5000", "line 3: no such field: 'colour'"
    )
    found = lines(tmp_path / "run" / "samples.jsonl")
    assert [r["line"] for r in found] == [1, 2, 3, 4]
    assert [r["error"] is None for r in found] == [True, False, False, True]


def test_an_id_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*ROWS[:3], ROWS[1]])
    done = Place(tmp_path)("dataset=prompts", f"dataset.path={path}", "run.dir=run")
    done.expect(3, "id '01' is on line 2 and again on line 4")
    assert not (tmp_path / "run").exists()


def test_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DEMO / "demo_gpt" / name, model)
    rows = [{"prompt_ids": [5, 6, 7], "top_k": 3}, {"prompt": "She said"}]
    path = write(tmp_path / "rows.jsonl", rows)
    arguments = ("dataset=prompts", f"dataset.path={path}", "decode.max_new_tokens=4")
    checkpoint = f"model.checkpoint={model}"
    Place(tmp_path)(*arguments, checkpoint, "run.dir=run").expect(4, "has no tokenizer")
    first, second = lines(tmp_path / "run" / "samples.jsonl")
    assert (first["output"], len(first["output_ids"])) == (None, 4)
    assert "line 2: the model has no tokenizer" in second["error"]
