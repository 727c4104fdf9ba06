"""The files of conf/: each composes, and none states a default again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_config import CONF, NAMES, SHAPE, leaves

from ftjob.config import GROUPS, JobConfig
from ftjob.config.compose import choices, compose
from ftjob.config.keys import keys_of
from ftjob.errors import ConfigError

YAMLS = sorted(CONF.glob("*/*.yaml"))


# what a file leaves to be said, or goes with alone
NEEDED = {
    "model/gpt2": ["model.checkpoint=PATH"],
    "model/t5": ["model.checkpoint=PATH"],
    "dataset/translation": ["dataset.path=FILE.jsonl"],
    "dataset/prompts": ["dataset.path=FILE.jsonl"],
    "decode/beam4": ["dataset=demo_en_de"],
}


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_file_of_conf_composes_and_holds_known_keys(path: Path) -> None:
    group = path.parent.name
    values = yaml.safe_load(path.read_text("utf-8")) or {}
    if group == "preset":
        assert not set(leaves(values)) - set(NAMES)
        return
    assert not set(leaves(values, f"{group}.")) - set(NAMES)
    extra = NEEDED.get(f"{group}/{path.stem}", [])
    config = compose([f"{group}={path.stem}", *extra])
    plain = leaves(config.as_dict())
    for name, value in leaves(values, f"{group}.").items():
        if name not in {e.split("=")[0] for e in extra}:
            assert plain[name] == value


def test_conf_states_no_default_again() -> None:
    defaults = {k.name: k.default for k in keys_of(JobConfig)}
    named = {"model.family", "model.tokenizer", "cluster.name", "dataset.task", "dataset.split"}
    named |= {"decode.beams"}
    for path in YAMLS:
        if path.parent.name in ("parallel", "preset"):
            continue  # the three numbers of a split belong together
        values = yaml.safe_load(path.read_text("utf-8")) or {}
        for name, value in leaves(values, f"{path.parent.name}.").items():
            assert name in named or value != defaults[name], f"{path.name}: {name}"


def test_nothing_but_the_choices_of_conf_differs_from_the_dataclasses() -> None:
    defaults = {k.name: k.default for k in keys_of(JobConfig)}
    composed = leaves(compose([]).as_dict())
    assert composed.keys() == defaults.keys()
    differing = {name for name, value in composed.items() if value != defaults[name]}
    shape = {f"model.arch.{name}" for name in SHAPE}
    assert differing == {"model.name", "model.checkpoint", "dataset.limit"} | shape
    assert set(GROUPS) == {name.split(".")[0] for name in defaults}
    assert all(choices(group) for group in GROUPS)


@pytest.mark.parametrize(
    ("overrides", "limit"),
    [
        ([], 500),
        (["model=demo_gpt", "dataset=lambada"], 500),
        (["model.dtype=bf16"], 500),
        (["dataset.limit=null"], None),
        (["dataset.limit=20"], 20),
        (["model=gpt345m"], None),
        (["dataset=lambada_hub"], None),
        (["model=demo_t5", "dataset=demo_en_de"], None),
    ],
    ids=str,
)
def test_limit_of_the_embedded_default(overrides: list[str], limit: int | None) -> None:
    assert compose(overrides).dataset.limit == limit


def test_the_shipped_t5_translates_behind_the_prefix() -> None:
    for name in ("demo_en_de", "multi30k_en_de", "wmt17_en_de"):
        theirs = compose(["model=t5_base", f"dataset={name}"])
        assert theirs.dataset.prefix == "translate English to German: "
        ours = compose(["model=demo_t5", f"dataset={name}", "decode=beam4"])
        assert (ours.dataset.prefix, ours.decode.max_new_tokens) == (theirs.dataset.prefix, 80)
        assert (ours.decode.beams, ours.dataset.generates) == (4, True)
        changed = compose(["model=demo_t5", f"dataset={name}", "decode.max_new_tokens=9"])
        assert changed.decode.max_new_tokens == 9
    own = compose(["dataset=translation", "dataset.path=a.en", "dataset.target_path=a.de"])
    assert (own.dataset.prefix, own.dataset.task) == (None, "translation")


def test_config_dir_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\ncheckpoint: /a/b\nseed: 3\n")
    model = compose(["model=mine", "model.seed=4"], [str(tmp_path)]).model
    assert (model.name, model.checkpoint, model.seed) == ("mine", "/a/b", 4)
    assert compose(["model=gpt345m"], [str(tmp_path)]).model.arch.layers == 24
    with pytest.raises(ConfigError, match="Did you mean mine"):
        compose(["model=mime"], [str(tmp_path)])
    (tmp_path / "model" / "mine.yaml").write_text("nmae: mine\n")
    with pytest.raises(ConfigError, match=r"model.nmae=mine: no such key. Did you mean model.name"):
        compose(["model=mine"], [str(tmp_path)])
