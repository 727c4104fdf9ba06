"""The T5 family's checkpoints, as transformers writes them, opened as a job opens them: shape,
and the ids that begin and end are read, and every tensor that is missing, left over or of another
shape is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from t5_files import (
    BIAS,
    HEADS,
    KINDS,
    SHAPE,
    TINY,
    F,
    H,
    State,
    V,
    W,
    job_config,
    opened,
    write_t5,
)
from transformers import MT5Config, T5Config

from ftjob.config import build
from ftjob.errors import CONFIG_REFUSED, UNREADABLE, CheckpointError, ConfigError
from ftjob.job import open_model, prepare
from ftjob.model.arch import Specials
from ftjob.model.families import family, family_of, t5
from ftjob.plan import Machine

KIND = pytest.mark.parametrize("kind", KINDS)


@KIND
def test_shape_is_that_of_the_model(tmp_path: Path, kind: str) -> None:
    model = write_t5(tmp_path, kind)
    source, config = opened(tmp_path), model.config
    arch = source.arch
    assert (arch.encoder_layers, arch.layers, arch.heads, arch.head_size) == (2, 3, HEADS, 10)
    assert (arch.hidden, arch.ffn, arch.vocab, arch.width) == (H, F, V, W)
    assert arch.relative is not None
    assert (arch.relative.buckets, arch.relative.max_distance) == (8, 20)
    assert (arch.positions, arch.norm, arch.biases) == (None, "rms", False)
    assert arch.attention_scale == 1.0
    assert arch.norm_eps == config.layer_norm_epsilon
    assert (arch.gated, arch.scaled_head) == (config.is_gated_act, kind == "v1_0")
    assert arch.activation == ("relu" if kind == "v1_0" else "gelu_tanh")
    assert arch.tied_head == (model.lm_head.weight is model.shared.weight)
    assert source.parameters == sum(p.numel() for p in model.parameters())
    assert (source.specials, source.ignored) == (Specials(0, (1,)), ())


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        opened(folder)
    assert refused.value.code == UNREADABLE
    return str(refused.value)


def change(folder: Path, edit: Callable[[State], None]) -> None:
    path = folder / "model.safetensors"
    held = {name: value.clone() for name, value in load_file(path).items()}
    edit(held)
    save_file(held, path)


def restate(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    stated = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in stated.items() if v != "gone"}))


@pytest.mark.parametrize("kind", ["v1_0", "v1_1"])
def test_every_tensor_is_needed_in_its_shape(tmp_path: Path, kind: str) -> None:
    write_t5(tmp_path, kind)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    for name, value in whole.items():
        shape = list(value.shape)
        save_file({n: v for n, v in whole.items() if n != name}, path)
        if name != "lm_head.weight":  # without one the head is tied
            assert refusal(tmp_path) == f"{tmp_path}: tensor {name} {shape} is missing"
        save_file(whole | {name: torch.zeros(3, *shape)}, path)
        assert refusal(tmp_path) == (
            f"{path}: tensor {name}: expected shape {shape}, found {[3, *shape]}"
        )
    turned = "decoder.block.2.layer.1.EncDecAttention.o.weight"
    save_file(whole | {turned: whole[turned].mT.contiguous()}, path)
    assert "expected shape [24, 40], found [40, 24]" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.block.2.layer.0.SelfAttention.q.weight",
        "decoder.block.3.layer.0.layer_norm.weight",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.1.layer.1.EncDecAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.0.SelfAttention.q.bias",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        "classification_head.dense.weight",
        "qa_outputs.weight",
    ],
)
def test_left_over_tensor_is_named(tmp_path: Path, name: str) -> None:
    write_t5(tmp_path, "v1_0")
    change(tmp_path, lambda held: held.update({name: torch.zeros(5)}))
    assert refusal(tmp_path) == (
        f"{tmp_path}/model.safetensors: tensor {name} [5] belongs to no part of the model"
    )


def test_duplicates_of_old_releases_are_ignored_by_name(tmp_path: Path) -> None:
    write_t5(tmp_path, "v1_0")
    first = opened(tmp_path)
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    names = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight")

    def add(held: State) -> None:
        held.update({name: held["shared.weight"].clone() for name in names})
        held[unread] = held[BIAS.format("decoder")].clone()

    change(tmp_path, add)
    source = opened(tmp_path)
    assert source.ignored == tuple(sorted((*names, unread)))
    assert (source.arch, source.parameters) == (first.arch, first.parameters)


def test_head_saved_twice_is_read_as_the_head(tmp_path: Path) -> None:
    write_t5(tmp_path, "v1_0")
    change(tmp_path, lambda held: held.update({"lm_head.weight": held["shared.weight"].clone()}))
    arch = opened(tmp_path).arch
    assert (arch.tied_head, arch.scaled_head) == (False, True)


CONFIGS: list[dict[str, Any]] = [
    {},
    {"feed_forward_proj": "gated-gelu"},
    {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    {"feed_forward_proj": "gelu", "tie_word_embeddings": True},
    {"feed_forward_proj": "gelu_new", "scale_decoder_outputs": False},
    {"feed_forward_proj": "gated-gelu_new", "tie_word_embeddings": False},
    {"feed_forward_proj": "gated-relu"},
    {"feed_forward_proj": "relu", "dense_act_fn": "gelu_new", "is_gated_act": True},
    {"tie_word_embeddings": False, "scale_decoder_outputs": True},
    {"num_decoder_layers": None},
]


@pytest.mark.parametrize("more", CONFIGS, ids=str)
@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_config_means_what_transformers_makes_of_it(model_type: str, more: dict[str, Any]) -> None:
    stated = TINY | more
    config: Any = (T5Config if model_type == "t5" else MT5Config).from_dict(dict(stated))
    arch = t5.read_config({"model_type": model_type} | stated, ())
    names = {"gelu_new": "gelu_tanh"}
    assert arch.activation == names.get(config.dense_act_fn, config.dense_act_fn)
    assert arch.gated == config.is_gated_act
    # mT5's model has no scaled head, whatever its configuration holds
    assert arch.scaled_head == (model_type == "t5" and config.scale_decoder_outputs)
    assert (arch.encoder_layers, arch.layers) == (config.num_layers, config.num_decoder_layers)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing size": ({"d_kv": "gone"}, "'d_kv' is missing"),
    "size that is no number": ({"num_heads": "4"}, "num_heads='4' must be a whole number"),
    "no layers": ({"num_decoder_layers": 0}, "num_decoder_layers=0 must be a whole number"),
    "gated silu": (
        {"feed_forward_proj": "gated-silu", "dense_act_fn": "gone"},
        "feed_forward_proj='gated-silu' (dense_act_fn='silu'",
    ),
    "no activation": ({"feed_forward_proj": "a-b-c"}, "feed_forward_proj='a-b-c'"),
    "derived activation": ({"dense_act_fn": "silu"}, "dense_act_fn='silu'"),
    "encoder alone": ({"is_encoder_decoder": False}, "is_encoder_decoder=False is not supported"),
    "decoder alone": ({"is_decoder": True}, "is_decoder=True is not supported, only False"),
    "odd buckets": ({"relative_attention_num_buckets": 6}, "num_buckets=6 must be a multiple of 4"),
    "short distance": ({"relative_attention_max_distance": 4}, "max_distance=4 above half of it"),
    "no epsilon": ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon=0.0 must be above 0"),
    "unknown type": ({"model_type": "umt5"}, "model_type 'umt5': no family reads it"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_config_that_cannot_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    write_t5(tmp_path, "v1_0")
    restate(tmp_path, **changes)
    assert words in refusal(tmp_path)


def test_family_and_shape_of_the_chosen_model_must_be_the_checkpoints(tmp_path: Path) -> None:
    write_t5(tmp_path, "v1_1")
    with pytest.raises(ConfigError, match=r"model.family=gpt2: .*model_type=t5, which family t5"):
        open_model(build({"model": {"checkpoint": str(tmp_path)}}))
    for name, value, found in (
        *[("encoder_layers", 3, "2"), ("layers", 2, "3"), ("head_size", 6, "10")],
        ("variant", "v1_0", "v1_1"),
    ):
        with pytest.raises(
            ConfigError, match=rf"model.arch.{name}={value} .*says {found}"
        ) as error:
            open_model(job_config(tmp_path, arch={name: value}))
        assert error.value.code == CONFIG_REFUSED
    whole = open_model(job_config(tmp_path, arch=SHAPE | {"variant": "v1_1"}))
    assert whole.arch == opened(tmp_path).arch


def test_shape_alone_is_the_model_transformers_would_make(tmp_path: Path) -> None:
    for variant, kind in (("v1_0", "v1_0"), ("v1_1", "v1_1")):
        folder = tmp_path / kind
        write_t5(
            folder, kind, relative_attention_num_buckets=32, relative_attention_max_distance=128
        )
        made = open_model(job_config("random", arch=SHAPE | {"variant": variant}))
        stored = opened(folder)
        assert (made.arch, made.rules) == (stored.arch, stored.rules)
        assert (made.specials, made.index) == (stored.specials, None)
    plain = {**SHAPE, "encoder_layers": None, "head_size": None, "ffn": None}
    arch = open_model(job_config("random", arch=plain)).arch
    assert (arch.encoder_layers, arch.head_size, arch.ffn) == (3, H // HEADS, 4 * H)
    assert (arch.activation, arch.gated, arch.tied_head, arch.scaled_head) == (
        *("relu", False),
        *(True, True),
    )


def test_random_t5_runs_with_the_demos_tokenizer() -> None:
    config = job_config("random", arch=SHAPE | {"vocab": 8000, "variant": "v1_1"})
    config = replace(config, dataset=replace(config.dataset, task="translation"))
    job = prepare(config, Machine((1,), "cpu", 1 << 34, "test"))
    assert job.tokenizer.source == "builtin:demo_t5"
    facts, identity = job.model_facts(), job.identity()
    assert (facts["encoder layers"], facts["decoder layers"], facts["head size"]) == (2, 3, 10)
    assert facts["positions"] == "unlimited (relative: 32 buckets up to 128 tokens)"
    assert facts["rmsnorm_eps"] == 1e-6
    assert (identity["specials.start"], identity["specials.ends"]) == (0, [1])
    assert json.loads(json.dumps(identity)) == identity  # as a resumed run compares it
    assert identity["arch.relative"] == {"buckets": 32, "max_distance": 128}


@pytest.mark.parametrize(
    ("config", "generation", "found"),
    [
        ({}, {}, Specials(0, (1,))),
        ({"eos_token_id": "gone", "decoder_start_token_id": "gone"}, {}, Specials(0, (1,))),
        ({"eos_token_id": [5, 6], "decoder_start_token_id": 3}, {}, Specials(3, (5, 6))),
        ({"eos_token_id": None}, {}, Specials(0, ())),
        ({}, {"eos_token_id": [1, 60], "decoder_start_token_id": 2}, Specials(2, (1, 60))),
        ({"eos_token_id": 7}, {"eos_token_id": None}, Specials(0, (7,))),
    ],
)
def test_ids_that_begin_and_end(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any], found: Specials
) -> None:
    write_t5(tmp_path, "v1_0")
    restate(tmp_path, **config)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert opened(tmp_path).specials == found
    (tmp_path / "generation_config.json").unlink()
    if not generation:
        assert opened(tmp_path).specials == found


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("key", ["eos_token_id", "decoder_start_token_id"])
@pytest.mark.parametrize("value", [61, -1, "1", 1.0, True, [[1]], {}, [1, 61]])
def test_ids_that_are_none_are_refused(tmp_path: Path, name: str, key: str, value: Any) -> None:
    write_t5(tmp_path, "v1_0")
    if name == "config.json":
        restate(tmp_path, "generation_config.json", **{key: None})
    restate(tmp_path, name, **{key: value})
    message = refusal(tmp_path)
    assert f"{tmp_path}/{name}: {key}={value!r} must be an id of the vocabulary, 0 to 60" in message
    assert message.endswith(", or a list of such") == (key == "eos_token_id")


def test_families_are_found_by_model_type() -> None:
    assert family("t5") is t5
    assert [family_of(name) for name in ("t5", "mt5")] == ["t5", "t5"]
