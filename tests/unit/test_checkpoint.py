"""Opening a checkpoint: what is absent, damaged, of another shape or left over is refused with
file, tensor, expected and found before a weight is read; and what tells checkpoints apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ftjob.checkpoint.index import CheckpointIndex
from ftjob.checkpoint.shard import place_all
from ftjob.checkpoint.specials import read_specials
from ftjob.config import build
from ftjob.errors import CONFIG_REFUSED, UNREADABLE, CheckpointError, ConfigError
from ftjob.job import ModelSource, open_model, prepare
from ftjob.model.arch import Specials
from ftjob.model.families import family, family_of, gpt2
from ftjob.plan import Machine

CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 8,
    "vocab_size": 11,
    "n_positions": 6,
}
WTE = "transformer.wte.weight"


def write_config(folder: Path, **changes: Any) -> None:
    values = {k: v for k, v in (CONFIG | changes).items() if v != "gone"}
    (folder / "config.json").write_text(json.dumps(values))


def tensors() -> dict[str, np.ndarray]:
    arch = gpt2.read_config(CONFIG)
    return {
        f"transformer.{name}": np.zeros(placed.rule.shape, np.float32)
        for placed in place_all(gpt2.tensors(arch), arch.layers, 0)
        for name in placed.sources
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint, for the tests to damage."""
    write_config(tmp_path)
    save_file(tensors(), tmp_path / "model.safetensors")
    return tmp_path


def shard(folder: Path) -> None:
    """Lay the checkpoint out as two files with an index."""
    held = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for number, part in ((1, held[:9]), (2, held[9:])):
        save_file(dict(part), folder / f"part{number}.safetensors")
        places |= {name: f"part{number}.safetensors" for name, _ in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))


def opened(folder: Path | str, **model: Any) -> ModelSource:
    return open_model(build({"model": {"checkpoint": str(folder)} | model}))


def refusal(folder: Path | str, **model: Any) -> str:
    with pytest.raises(CheckpointError) as refused:
        opened(folder, **model)
    assert refused.value.code == UNREADABLE
    return str(refused.value)


def change(folder: Path, name: str, value: np.ndarray | None) -> None:
    path = folder / "model.safetensors"
    held = {k: v.copy() for k, v in load_file(path).items()}
    if value is None:
        del held[name]
    else:
        held[name] = value
    save_file(held, path)


def test_whole_checkpoint_opens(folder: Path) -> None:
    source = opened(folder)
    assert (source.arch.layers, source.arch.ffn, source.ignored) == (2, 32, ())
    assert source.parameters == sum(t.size for t in tensors().values())
    shard(folder)
    assert opened(folder).arch == source.arch


@pytest.mark.parametrize("name", [WTE, "transformer.h.1.mlp.c_fc.bias"])
def test_missing_tensor_is_named(folder: Path, name: str) -> None:
    shape = list(tensors()[name].shape)
    change(folder, name, None)
    short = name.removeprefix("transformer.")
    assert refusal(folder) == f"{folder}: tensor {short} {shape} is missing"


def test_tensor_of_another_shape_is_named(folder: Path) -> None:
    change(folder, "transformer.h.0.attn.c_attn.weight", np.zeros((24, 8), np.float32))
    assert refusal(folder) == (
        f"{folder}/model.safetensors: tensor transformer.h.0.attn.c_attn.weight: "
        "expected shape [8, 24], found [24, 8]"
    )


def test_tensor_of_another_kind_is_named(folder: Path) -> None:
    change(folder, WTE, np.zeros((11, 8), np.int8))
    assert f"tensor {WTE}: expected a float dtype, found I8" in refusal(folder)


@pytest.mark.parametrize("name", ["transformer.h.2.ln_1.bias", "score.weight", "h.0.attn.biases"])
def test_left_over_tensor_is_named(folder: Path, name: str) -> None:
    change(folder, name, np.zeros(8, np.float32))
    message = refusal(folder)
    assert f"tensor {name} [8] belongs to no part of the model" in message


def test_known_leftovers_are_ignored_by_name(folder: Path) -> None:
    change(folder, "transformer.h.1.attn.masked_bias", np.zeros((), np.float32))
    change(folder, "lm_head.weight", np.zeros((11, 8), np.float32))
    assert opened(folder).ignored == ("h.1.attn.masked_bias", "lm_head.weight")


def test_tensor_given_twice_is_refused(folder: Path) -> None:
    change(folder, "wte.weight", np.zeros((11, 8), np.float32))
    assert "is also in model.safetensors" in refusal(folder)


@pytest.mark.parametrize("size", [0, 4, 200, -1])
def test_torn_file_is_refused_by_name(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert f"{path}: not a whole safetensors file" in refusal(folder)


def test_index_and_files_must_agree(folder: Path) -> None:
    shard(folder)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    for wrong, words in (
        ({**places, WTE: "part1.safetensors"}, ["part1.safetensors", f"places tensor {WTE} here"]),
        ({**places, WTE: "part3.safetensors"}, ["names the file part3.safetensors", "absent"]),
        ({**places, WTE: "../part2.safetensors"}, ["'../part2.safetensors', outside the folder"]),
        ({}, ["has no weight_map"]),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        message = refusal(folder)
        assert all(w in message for w in words), message


def test_folder_without_safetensors_says_what_it_found(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "flax.bin")
    message = refusal(folder)
    assert "has none of model.safetensors, model.safetensors.index.json" in message
    assert "found flax.bin, which this version does not read" in message


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "missing size": ({"n_layer": "gone"}, "'n_layer' is missing"),
    "unknown activation": ({"activation_function": "silu"}, "activation_function='silu'"),
    "scaled by layer": ({"scale_attn_by_inverse_layer_idx": True}, "not supported, only False"),
    "unscaled": ({"scale_attn_weights": False}, "scale_attn_weights=False"),
    "untied, without a head": ({"tie_word_embeddings": False}, "lm_head.weight [11, 8] is missing"),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention=True"),
    "unknown family": ({"model_type": "llama"}, "model_type 'llama': no family reads it"),
    "no family": ({"model_type": "gone"}, "no family reads it"),
    "heads that do not divide": ({"n_head": 3}, "n_head"),
    "a size that is no number": ({"n_layer": "2"}, "n_layer"),
}


@pytest.mark.parametrize(("changes", "words"), CONFIGS.values(), ids=CONFIGS.keys())
def test_config_that_cannot_run_is_refused(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    write_config(folder, **changes)
    assert words in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_damaged_config_is_refused_by_name(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(folder)


def test_shape_of_the_chosen_model_must_be_the_checkpoints(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.arch.layers=24 .*says 2") as refused:
        opened(folder, name="gpt345m", arch={"layers": 24})
    assert refused.value.code == CONFIG_REFUSED
    assert opened(folder, arch={"layers": 2, "ffn": 32}).arch.layers == 2


def test_places_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    assert "the folder has no config.json" in refusal(tmp_path)
    assert "is not a folder, nor a hub id" in refusal(tmp_path / "absent")
    assert "Did you mean demo_gpt?" in refusal("builtin:demo_gtp")


def test_hub_id_without_weights_names_the_three_ways(tmp_path: Path) -> None:
    code = (
        "from ftjob.checkpoint.resolve import resolve\n"
        "from ftjob.errors import CheckpointError\n"
        "try: resolve('openai-community/gpt2-medium', None, 'gpt345m')\n"
        "except CheckpointError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert "openai-community/gpt2-medium: not in the hub's cache (HF_HOME)" in lines[0]
    assert [line.strip()[:2] for line in lines[-3:]] == ["1.", "2.", "3."]
    assert "model=gpt345m model.checkpoint=PATH" in lines[-2]
    assert "model=gpt345m model.checkpoint=random" in lines[-1]


def test_identity_follows_config_names_shapes_and_sizes(folder: Path) -> None:
    def identity() -> str:
        return opened(folder).identity(seed=0)

    first = identity()
    assert first == opened(folder).identity(seed=1)
    change(folder, "lm_head.weight", np.zeros((11, 8), np.float32))
    more = identity()
    change(folder, "lm_head.weight", None)
    assert identity() == first
    write_config(folder, layer_norm_epsilon=1e-3)
    other_config = identity()
    write_config(folder)
    change(folder, WTE, np.zeros((11, 8), np.float16))
    other_size = identity()
    assert len({first, more, other_config, other_size}) == 4


def test_identity_follows_dtypes_and_shapes_of_the_same_size(folder: Path) -> None:
    index = opened(folder).index
    assert index is not None
    stored = index.tensors["wte.weight"]
    identities = {
        replace(index, tensors={**index.tensors, "wte.weight": changed}).identity()
        for changed in (stored, replace(stored, dtype="I32"), replace(stored, shape=(8, 11)))
    }
    assert len(identities) == 3


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({}, {}, ()),  # 50256 where nothing is said, which is not in the vocabulary
        ({"eos_token_id": 50256}, {}, ()),  # the same, written out by transformers
        ({"vocab_size": 50257}, {}, (50256,)),
        ({"eos_token_id": 3}, {}, (3,)),
        ({"eos_token_id": [3, 0]}, {}, (3, 0)),
        ({"eos_token_id": None}, {}, ()),
        ({"eos_token_id": 3}, {"eos_token_id": [4]}, (4,)),
    ],
)
def test_ids_that_end_a_row(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any], ends: tuple[int, ...]
) -> None:
    write_config(tmp_path, **config)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    stated = json.loads((tmp_path / "config.json").read_text())
    index = CheckpointIndex(tmp_path, stated, {}, "", tmp_path / "config.json")
    found = read_specials(family("gpt2"), index, stated["vocab_size"])
    assert found == Specials(None, ends)


def test_id_outside_of_the_vocabulary_is_refused(folder: Path) -> None:
    write_config(folder, eos_token_id=11)
    assert refusal(folder) == (
        f"{folder}/config.json: eos_token_id=11 must be an id of the vocabulary, 0 to 10, "
        "or a list of such"
    )


def test_settings_that_do_not_go_together_are_refused_by_file(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_config(folder, n_head=config["n_embd"] - 1)
    assert refusal(folder).startswith(f"{folder}/config.json: n_embd={config['n_embd']} is not a")


def test_tokenizer_larger_than_the_vocabulary_is_refused(folder: Path) -> None:
    config = build({"model": {"checkpoint": str(folder), "tokenizer": "builtin:gpt2"}})
    with pytest.raises(CheckpointError, match="ids up to 50256, but the model's vocabulary has 11"):
        prepare(config, Machine((1,), "cpu", 1 << 30, "test"))


def test_families_are_found_by_name_and_by_model_type() -> None:
    assert family_of("gpt2") == "gpt2"
    with pytest.raises(CheckpointError, match=r"family gtp2: not supported. Did you mean gpt2"):
        family("gtp2")
