"""The prefix of a run: what was configured, else what the checkpoint's config.json states for the
pair of languages; and the warning where a model that was trained with one gets none.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_plan import ARCH
from test_plan_t5 import t5

from ftjob.checkpoint.resolve import demo_file
from ftjob.config import build
from ftjob.config.groups import DatasetConfig
from ftjob.job import Job, prepare
from ftjob.plan import Machine
from ftjob.prefix import choose_prefix, stated_prefix
from ftjob.tasks import make_task
from ftjob.tasks.base import GenerateRequest
from ftjob.tasks.values import translation_row

GERMAN = "translate English to German: "
STATED = {"task_specific_params": {"translation_en_to_de": {"max_length": 300, "prefix": GERMAN}}}


def test_the_published_config_states_prefixes_by_pair() -> None:
    assert stated_prefix(STATED, "en-de") == GERMAN
    for pair in ("de-en", "en-fr", "en"):
        assert stated_prefix(STATED, pair) is None


@pytest.mark.parametrize(
    "params",
    [
        *(None, [], "x", {"translation_en_to_de": None}, {"translation_en_to_de": {}}),
        *({"translation_en_to_de": {"prefix": p}} for p in (None, "", 7, [GERMAN])),
    ],
    ids=str,
)
def test_what_is_no_text_states_nothing(params: Any) -> None:
    assert stated_prefix({"task_specific_params": params}, "en-de") is None
    assert stated_prefix({}, "en-de") is None


def chosen(
    prefix: str | None, stated: str | None, arch: Any = None, random: bool = False, **data: Any
) -> tuple[str, str | None, str]:
    """The prefix, and level and text of the one remark."""
    dataset = DatasetConfig(**({"task": "translation", "prefix": prefix} | data))
    text, remarks = choose_prefix(dataset, stated, arch or t5(), random)
    assert len(remarks) <= 1
    return (text, *((remarks[0].level, remarks[0].text) if remarks else (None, "")))


def test_nothing_configured_takes_what_is_stated() -> None:
    text, level, said = chosen(None, GERMAN)
    assert (text, level) == (GERMAN, "note")
    assert "config.json states 'translate English to German: ' for dataset.pair=en-de" in said
    assert chosen(None, GERMAN, t5(variant="v1_1"))[:2] == (GERMAN, "note")


def test_what_is_configured_stands() -> None:
    assert chosen("say: ", GERMAN) == ("say: ", None, "")
    assert chosen("say: ", None) == ("say: ", None, "")


def test_an_empty_prefix_against_a_stated_one_is_a_warning() -> None:
    text, level, said = chosen("", GERMAN)
    assert (text, level) == ("", "warning")
    assert said.startswith("dataset.prefix is empty, but the checkpoint's config.json states 'tr")
    assert "dataset.prefix=null" in said


def test_the_first_t5_without_any_is_a_warning() -> None:
    text, level, said = chosen(None, None, pair="en-ro")
    assert (text, level) == ("", "warning")
    assert "states no prefix for dataset.pair=en-ro" in said
    assert "dataset.prefix=''" in said


@pytest.mark.parametrize(
    ("prefix", "arch", "random"),
    [
        ("", t5(), False),  # the user says that there is none
        (None, t5(variant="v1_1"), False),  # mT5 and FLAN-T5
        (None, ARCH, False),
        (None, t5(), True),  # whose scores mean nothing
    ],
    ids=["empty", "v1.1", "gpt2", "random"],
)
def test_others_need_none(prefix: str | None, arch: Any, random: bool) -> None:
    assert chosen(prefix, None, arch, random) == ("", None, "")


def test_last_words_have_no_prefix() -> None:
    assert chosen(None, GERMAN, ARCH, task="lambada") == ("", None, "")


def job(folder: Path | str, **dataset: Any) -> Job:
    data = {"task": "translation", "path": "builtin:captions_en_de", "column": "source"}
    config = build({
        "model": {"name": "demo_t5", "family": "t5", "checkpoint": str(folder)},
        "dataset": data | dataset,
    })  # fmt: skip
    return prepare(config, Machine((1,), "cpu", 1 << 33, "test"))


def ids(made: Job) -> list[int]:
    task = make_task(made.config)
    row = translation_row(0, 1, "A dog runs.", None)
    (request,) = task.prepare([row], ["key"], made.tokenizer, made.limits())
    assert isinstance(request, GenerateRequest)
    return request.ids


def test_the_shipped_t5_gets_its_own(tmp_path: Path) -> None:
    """The choice is the configuration's, so it goes into config.yaml, the keys and the sources."""
    own, explicit = job("builtin:demo_t5"), job("builtin:demo_t5", prefix=GERMAN)
    assert own.config == explicit.config
    assert own.config.dataset.prefix == GERMAN
    assert own.identity() == explicit.identity()
    assert [r.level for r in own.remarks] == ["note"]
    assert explicit.remarks == ()
    assert ids(own) == ids(explicit)
    none = job("builtin:demo_t5", prefix="")
    assert len(ids(none)) < len(ids(own))
    assert none.identity() != own.identity()

    folder = Path(shutil.copytree(demo_file("demo_t5"), tmp_path / "t5"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["task_specific_params"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    bare = job(folder)
    assert [r.level for r in bare.remarks] == ["warning"]
    assert bare.config == replace(none.config, model=bare.config.model)
