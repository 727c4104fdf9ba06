"""The configuration: what conf/ and overrides compose to, where defaults live, and that every
impossible key or value is refused in one message with key, value, rule and nearest legal choice.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from ftjob.config import GROUPS, JobConfig, build
from ftjob.config.compose import compose, packed_dir
from ftjob.config.groups import DecodeConfig
from ftjob.config.keys import keys_of
from ftjob.config.old_names import OLD_NAMES
from ftjob.errors import CONFIG_REFUSED, ConfigError

CONF = packed_dir("conf")
SHAPE = {"layers": 2, "heads": 4, "hidden": 24, "vocab": 61, "positions": 40}
NAMES = [k.name for k in keys_of(JobConfig)]


def refusal(*overrides: str) -> str:
    """The message these overrides are refused with; exit code 2, on one line."""
    with pytest.raises(ConfigError) as refused:
        compose(overrides)
    assert refused.value.code == CONFIG_REFUSED
    assert "\n" not in str(refused.value)
    return str(refused.value)


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names, down to the declared keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict) and dotted not in NAMES:
            found |= leaves(value, f"{dotted}.")
        else:
            found[dotted] = value
    return found


REFUSED = {
    "unknown key": ("model.chekpoint=x", "no such key", "Did you mean model.checkpoint?"),
    "unknown group": ("modle.seed=1", "Did you mean model.seed?", "Known groups: model, "),
    "unknown top key": ("limit=5", "Did you mean dataset.limit?", "Known groups: model, "),
    "unknown key unlike any": ("decode.foo=1", "no such key. Known: decode.", " decode.beams,"),
    "unknown key below a key": ("model.seed.x=1", "no such key", "model.seed"),
    "group as a value": ("model.arch=5", "no such key", "model.arch.layers"),
    "hydra's own key": ("hydra.run.dir=x", "no such key", "Did you mean run.dir?"),
    "word for a number": ("model.seed=x", "must be int", "seed of checkpoint=random"),
    "fraction for a whole number": ("parallel.tensor=1.5", "must be int", "share each layer"),
    "truth for a number": ("run.max_failed=true", "must be int", "failed rows"),
    "truth for a word": ("model.name=true", "must be str", "reports"),
    "list for a number": ("parallel.tensor=[1]", "must be int", "share each layer"),
    "null for a number": ("batch.window=null", "batch.window=null", "must be int"),
    "word for a mapping": ("dataset.expect=high", "must be {str: float}", "metric"),
    "word in a mapping": ("dataset.expect.acc=high", "must be {str: float}", "metric"),
    "word in a list": ("cluster.devices_per_node=[2,x]", "auto | int | [int, ...]", "per node"),
    "empty list": ("cluster.devices_per_node=[]", "auto | int | [int, ...]", "per node"),
    "unknown choice": ("model.dtype=fp16", "must be f32 | bf16 | f16", "Did you mean f16?"),
    "unknown word beside numbers": ("parallel.data=atuo", "auto | int", "Did you mean auto?"),
    "below the rule": ("parallel.tensor=0", "must be at least 1", "share each layer"),
    "negative": ("model.seed=-1", "must be at least 0", "seed"),
    "outside the rule": ("dataset.ngrams=5", "must be from 0 to 4", "1..N-grams"),
    "not above zero": ("run.deadline_s=0", "must be above 0", "silent"),
    "not a number at all": ("run.deadline_s=nan", "must be above 0", "silent"),
    "no end of seconds": ("run.deadline_s=inf", "must be above 0, at most 1000000", "silent"),
    "more bytes than there are": ("cluster.memory_gb=1e300", "above 0, at most 1000000", "memory"),
    "absurd penalty": ("decode.length_penalty=-1e9", "must be from -10 to 10", "rank by"),
    "penalty that is no number": ("decode.length_penalty=nan", "must be from -10 to 10", "rank by"),
    "penalty of 400 digits": (f"decode.length_penalty=1{'0' * 400}", "from -10 to 10", "rank by"),
    "absurd length": ("decode.max_new_tokens=65537", "must be from 1 to 65536", "most new tokens"),
    "looks that never come": ("batch.stop_every=257", "must be from 1 to 256", "decode steps"),
    "400 digits": (f"batch.window=1{'0' * 400}", "must be int", "at most 64 bits"),
    "expects what never is": ("dataset.expect.bleu=inf", "must be finite numbers", "metric"),
    "expects what is no number": ("dataset.expect.bleu=nan", "must be finite numbers", "metric"),
    "rule of a nested key": ("model.arch.layers=0", "must be at least 1", "transformer layers"),
    "devices below one": (
        "cluster.devices_per_node=0",
        "must be from 1 to 1024",
        "devices_per_node=0",
    ),
    "unknown model": ("model=gpt345", "no such model", "Did you mean gpt345m?"),
    "unknown dataset": ("dataset=lambda", "no such dataset", "Did you mean lambada?"),
    "no choice": ("model=null", "no such model", "Known:"),
    "sweep": ("model.seed=1,2", "several jobs", "add -m"),
    "sweep by choice": ("model.seed=choice(1,2)", "several jobs", "add -m"),
    "sweep by range": ("model.seed=range(1,4)", "several jobs", "add -m"),
    "sweep of a group": ("model=gpt2,gpt345m", "several jobs", "add -m"),
    "no equals sign": ("plan", "not an override", "key=value"),
    "unbalanced": ("dataset.expect={acc: 0.1", "not an override", "quoted"),
    "addition of what exists": ("+model.name=a", "configuration:", "model.name"),
    "unknown interpolation": ("run.name=${nope}", "configuration:", "nope"),
}


@pytest.mark.parametrize(("override", "rule", "hint"), REFUSED.values(), ids=REFUSED.keys())
def test_override_is_refused_with_rule_and_hint(override: str, rule: str, hint: str) -> None:
    message = refusal(override)
    assert rule in message
    assert hint in message
    if not message.startswith("configuration:"):
        assert override.split("=")[0].split(".")[-1] in message


@pytest.mark.parametrize(
    "override",
    [
        *("decode.length_penalty=-10", "decode.length_penalty=10", "decode.max_new_tokens=65536"),
        *("batch.stop_every=256", "run.deadline_s=1e6", "dataset.expect.acc=-1e30"),
    ],
)
def test_the_ends_of_a_rule_are_legal(override: str) -> None:
    compose([override])


@pytest.mark.parametrize("old", OLD_NAMES)
def test_old_name_is_refused_with_the_new_one(old: str) -> None:
    new, _ = OLD_NAMES[old]
    assert new in NAMES
    for override in (f"{old}=1", f"model.{old}=1", f"+{old}=1"):
        message = refusal(override)
        assert f"FasterTransformer's {old} is {new} here" in message


def test_old_name_without_a_new_one_is_refused_with_the_reason() -> None:
    for override in ("is_remove_padding=1", "--is_remove_padding=1"):
        assert refusal(override).endswith(
            "FasterTransformer's is_remove_padding is no key here: rows are always packed without "
            "padding."
        )
    assert "FasterTransformer's top_k is decode.top_k here" in refusal("top_k=4")


T5_SHAPE = {"layers": 2, "heads": 5, "hidden": 24, "vocab": 9}
TOGETHER = {
    "two sources": (
        {"dataset": {"path": "a.csv", "hub": "b"}},
        ["dataset.path=a.csv", "dataset.hub=b", "one source", "add dataset.hub=null"],
    ),
    "configuration of no hub set": (
        {"dataset": {"hub_config": "en"}},
        ["dataset.hub_config=en", "dataset.hub=ID"],
    ),
    "no checkpoint": ({"model": {"checkpoint": ""}}, ["model.checkpoint is not set", "hub id"]),
    "random without a shape": (
        {"model": {"checkpoint": "random", "arch": {"layers": 2, "heads": 2, "vocab": 9}}},
        ["model.arch.hidden", "model.arch.positions", "model.checkpoint=random"],
    ),
    "heads do not divide hidden": (
        {"model": {"checkpoint": "random", "arch": SHAPE | {"heads": 5}}},
        ["model.arch.hidden=24", "model.arch.heads=5", "multiple"],
    ),
    "size of another family": (
        {"model": {"checkpoint": "PATH", "arch": {"variant": "v1_1"}}},
        ["model.arch.variant=v1_1: family gpt2 has no variant", "null"],
    ),
    "positions of T5": (
        {"model": {"family": "t5", "checkpoint": "random", "arch": SHAPE}},
        ["model.arch.positions=", "family t5 has no positions"],
    ),
    "random T5 without a shape": (
        {"model": {"family": "t5", "checkpoint": "random", "arch": {"layers": 2}}},
        ["model.arch.heads, model.arch.hidden, model.arch.vocab.", "model.checkpoint=random"],
    ),
    "heads of T5 without a size": (
        {"model": {"family": "t5", "checkpoint": "random", "arch": T5_SHAPE}},
        ["model.arch.hidden=24", "model.arch.heads=5", "multiple"],
    ),
}


@pytest.mark.parametrize(("values", "words"), TOGETHER.values(), ids=TOGETHER.keys())
def test_fields_that_exclude_each_other(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        build({"model": {"checkpoint": "random", "arch": SHAPE}} | values)
    for word in words:
        assert word in str(refused.value)


def test_t5_takes_its_size_of_heads_from_the_key_or_the_checkpoint() -> None:
    for checkpoint, arch in (
        ("random", T5_SHAPE | {"head_size": 7}),
        ("PATH", {"heads": 5, "hidden": 24}),
    ):
        model = {"family": "t5", "checkpoint": checkpoint, "arch": arch}
        assert build({"model": model}).model.arch.heads == 5


@pytest.mark.parametrize("group", ["decode", "model.arch", "model"])
def test_an_unknown_key_is_answered_with_all_keys_of_its_group(group: str) -> None:
    known = ", ".join(name for name in NAMES if name.startswith(f"{group}."))
    assert refusal(f"{group}.qqqq=1") == f"{group}.qqqq=1: no such key. Known: {known}."
    assert refusal("qqqq.zz=1") == f"qqqq.zz=1: no such key. Known groups: {', '.join(GROUPS)}."


def test_build_refuses_a_value_for_a_group_and_an_unknown_group() -> None:
    with pytest.raises(ConfigError, match=r"model=5: is a group of keys"):
        build({"model": 5})
    with pytest.raises(ConfigError, match=r"modell=.*no such key. Did you mean model\?"):
        build({"modell": {}})


def test_values_arrive_in_their_declared_type() -> None:
    config = compose(
        [
            "run.deadline_s=10",
            "run.name=7",
            "model.revision=null",
            "cluster.devices_per_node=[2,1]",
            "cluster.memory_gb=80",
            "batch.max_tokens=512",
        ]
    )
    assert (config.run.deadline_s, type(config.run.deadline_s)) == (10.0, float)
    assert config.run.name == "7"
    assert config.model.revision is None
    assert config.cluster.devices_per_node == (2, 1)
    assert (config.cluster.memory_gb, config.batch.max_tokens) == (80.0, 512)


@pytest.mark.parametrize(
    ("overrides", "expect"),
    [
        ([], {}),
        (["dataset.expect={acc: 0.09}"], {"acc": 0.09}),
        (["dataset.expect={acc: 1, perplexity: 3.5}"], {"acc": 1.0, "perplexity": 3.5}),
        (["dataset.expect.acc=0.1", "dataset.expect.b=1"], {"acc": 0.1, "b": 1.0}),
    ],
    ids=str,
)
def test_expectations_by_mapping_or_by_name(overrides: list[str], expect: dict[str, float]) -> None:
    assert compose(overrides).dataset.expect == expect


@pytest.mark.parametrize("name", ["2024_10_01", "007", "1e5"])
def test_a_name_that_looks_like_a_number_is_kept_as_written(name: str) -> None:
    assert compose([f"run.name={name}"]).run.name == name


def test_configuration_is_frozen_throughout() -> None:
    config = compose([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run = config.run  # type: ignore[misc]
    for name in GROUPS:
        group = getattr(config, name)
        field = dataclasses.fields(group)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(group, field, None)
    assert dataclasses.fields(config.model.arch)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.arch.layers = 3  # type: ignore[misc]


def test_composed_configuration_survives_as_dict() -> None:
    config = compose(["cluster.devices_per_node=[1,1]", "dataset.expect.acc=0.09"])
    assert config.as_dict()["cluster"]["devices_per_node"] == [1, 1]
    assert build(config.as_dict()) == config


def test_words_survive_as_dict_and_json() -> None:
    """So that a run folder is the same run's when it is opened again."""
    written = 'decode.bad_words=[foo,"a, b",[5,6],7]'
    config = compose([written, "decode.stop_words='x,\" y\"'", "decode.end_id=[3,4]"])
    assert config.decode.bad_words == ("foo", "a, b", (5, 6), 7)
    assert config.decode.stop_words == 'x," y"'
    assert build(config.as_dict()) == config
    fields = config.answer_fields()
    assert json.loads(json.dumps(fields)) == fields
    with pytest.raises(ConfigError, match=r"decode.bad_words=\[\['x'\]\]: must be \[int \| \[int"):
        compose(["decode.bad_words=[[x]]"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("top_k=1025", "decode.top_k=1025: must be from 0 to 1024"),
        ("top_p=1.5", "decode.top_p=1.5: must be from 0 to 1"),
        ("temperature=-1", "decode.temperature=-1: must be at least 0"),
        ("temperature=inf", "decode.temperature=inf: must be at least 0 and finite"),
        ("seed=-1", "decode.seed=-1: must be from 0"),
        ("beams=2 top_k=4", "decode.top_k=4 decode.top_p=0 draw tokens, and decode.beams=2"),
        ("num_return_sequences=2", "decode.num_return_sequences=2 would give one answer as often"),
        ("beams=2 num_return_sequences=2", "it counts drawn answers"),
        ("min_length=9 max_new_tokens=8", "decode.min_length=9 is more than decode.max_new_to"),
        ("top_k=2 top_p_decay=0.5", "are for rows without top_k"),
        ("temperature=0.7", "decode.temperature=0.7 does nothing to the likeliest token"),
        ("beams=2 beam_search_diversity_rate=1", "transformers has none. Use decode.convention=ft"),
        ("convention=ft beam_search_diversity_rate=1", "needs decode.beams above 1"),
        ("convention=ft frequency_penalty=1", "FasterTransformer has none"),
        ("convention=ft repetition_penalty=2 presence_penalty=1", "exclude each other"),
        ("convention=ft beams=2 early_stopping=never", "it is always true"),
    ],
)
def test_options_that_are_out_of_range_or_exclude_each_other(overrides: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(["dataset.mode=generate", *(f"decode.{o}" for o in overrides.split())])
    assert said in str(refused.value)


def test_answer_fields_are_those_that_shape_the_answers() -> None:
    fields = compose([]).answer_fields()
    assert set(fields) == {
        *(f"model.arch.{name}" for name in (*SHAPE, "ffn")),
        "model.family",
        "model.dtype",
        "model.weights",
        *(f"model.arch.{name}" for name in ("encoder_layers", "head_size", "variant")),
        *(f"dataset.{name}" for name in ("task", "mode", "ngrams", "prefix")),
        *(f"dataset.{name}" for name in ("max_source_tokens", "too_long")),
        *(f"decode.{field.name}" for field in dataclasses.fields(DecodeConfig)),
    }
    assert fields["model.arch.layers"] == 8
    for override in ("parallel.data=2", "batch.max_tokens=7", "run.name=x", "dataset.limit=3"):
        assert compose([override]).answer_fields() == fields
    for override in ("model.dtype=bf16", "model.weights=int8", "dataset.ngrams=1"):
        assert compose([override]).answer_fields() != fields
