"""Megatron-LM GPT checkpoints of every version, sharded both ways, in both of torch's formats,
written from the format's description: at every split each device gets the bits that the Hugging
Face folder of the same weights gives it; what does not belong together is refused by name.
"""

from __future__ import annotations

import argparse
import enum
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import args_of, hf_weights, write_megatron
from gpt2_oracle import random_gpt2, write_gpt2
from loaded import SPLITS, assert_same, config_of, opened, parts

from ftjob.errors import UNREADABLE, CheckpointError, ConfigError
from ftjob.job import open_model


class AttnMaskType(enum.Enum):
    """Stands for the enums that real args hold."""

    CAUSAL = 2


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    write_gpt2(tmp_path / "hf", random_gpt2(n_layer=4))
    return tmp_path / "hf"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
@pytest.mark.parametrize("version", [0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize(("ways", "stages"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (2, 4)])
def test_every_version_at_every_split(
    hf: Path, tmp_path: Path, version: float, ways: int, stages: int, zipped: bool
) -> None:
    padding = -61 % (4 * ways)
    folder = write_megatron(
        hf,
        tmp_path / "m",
        ways=ways,
        stages=stages,
        version=version,
        padding=padding,
        zipped=zipped,
    )
    config = config_of(folder, arch={"vocab": 61})
    source = open_model(config)
    assert source.index is not None
    stated = f"Megatron-LM, version {int(version)}, {ways} tensor x {stages} pipeline"
    assert source.index.format == stated
    assert source.arch == opened(hf).arch
    assert source.index.remarks == {"padding of the vocabulary": f"{padding} rows, never emitted"}
    for split in SPLITS:
        assert_same(parts(config, *split), parts(config_of(hf), *split))


@pytest.mark.parametrize("version", [0, 1.0, 3.0])
def test_eight_ranks(tmp_path: Path, version: float) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2(n_head=8))
    folder = write_megatron(
        tmp_path / "hf", tmp_path / "m", ways=8, stages=2, version=version, padding=3
    )
    config = config_of(folder, arch={"vocab": 61})
    for split in ((1, 1), (2, 2), (8, 1)):
        assert_same(parts(config, *split), parts(config_of(tmp_path / "hf"), *split))


def test_half_precision(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2(), dtype=torch.float16)
    for dtype in (torch.float16, torch.float32):
        folder = write_megatron(
            tmp_path / "hf", tmp_path / str(dtype), ways=2, padding=3, dtype=dtype
        )
        config = config_of(folder, arch={"vocab": 61})
        assert_same(parts(config, 2, 2), parts(config_of(tmp_path / "hf"), 2, 2))


def test_release_without_args(hf: Path, tmp_path: Path) -> None:
    """Version 0, as the 345M release: heads come from the configuration, all rows of the embedding
    count where nothing says which are true, and eps is Megatron's own."""
    folder = write_megatron(hf, tmp_path / "m", version=0, padding=3, with_args=False)
    with pytest.raises(CheckpointError, match=r"how many heads the model has; give model.arch.h"):
        opened(folder)
    source = opened(folder, arch={"heads": 4})
    assert (source.arch.vocab, source.arch.norm_eps) == (64, 1e-5)
    assert source.index is not None
    assert "Megatron's own default" in source.index.remarks["layernorm eps"]
    config = config_of(folder, arch={"heads": 4, "vocab": 61})
    assert_same(parts(config, 2, 1), parts(config_of(hf), 2, 1))


@pytest.mark.parametrize("place", ["m", "m/release"])
def test_folders_that_name_it(hf: Path, tmp_path: Path, place: str) -> None:
    write_megatron(hf, tmp_path / "m")
    assert opened(tmp_path / place).arch == opened(hf).arch


def test_latest_iteration_counts(hf: Path, tmp_path: Path) -> None:
    out, latest = tmp_path / "m", tmp_path / "m" / "latest_checkpointed_iteration.txt"
    write_megatron(hf, out, folder="iter_0000007", version=2.0)
    assert opened(out).index is not None
    write_megatron(hf, out, folder="iter_0001000", version=3.0)
    assert "holds iter_0000007, iter_0001000 and no latest" in refusal(out)
    for said, version in (("7", 2), ("1000\n", 3)):
        latest.write_text(said)
        index = opened(out).index
        assert index is not None
        assert f"version {version}" in index.format
    latest.write_text("8")
    assert "says 8, but there is no folder iter_0000008; found: iter_0000007" in refusal(out)
    latest.write_text("release")
    assert "says release, but there is no folder release" in refusal(out)
    write_megatron(hf, out, version=0)
    index = opened(out).index
    assert index is not None
    assert "version 0" in index.format


def test_newer_names_of_rank_folders(hf: Path, tmp_path: Path) -> None:
    folder = write_megatron(hf, tmp_path / "m", ways=2, stages=2, padding=3)
    for each in sorted((folder / "release").iterdir()):
        _, _, tensor, stage = each.name.split("_")
        each.rename(each.with_name(f"tp_rank_{tensor}_pp_rank_{stage}"))
    assert_same(parts(config_of(folder, arch={"vocab": 61}), 2, 2), parts(config_of(hf), 2, 2))


def test_what_real_files_hold_besides_is_inert(hf: Path, tmp_path: Path) -> None:
    rng = {
        "random_rng_state": (3, tuple(range(625)), None),
        "np_rng_state": np.random.RandomState(0).get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }
    args = argparse.Namespace(
        **args_of(hf_weights(hf)[0], 1, 1, 61), attn_mask_type=AttnMaskType.CAUSAL
    )
    extra = {
        **rng,
        "rng_state": [rng],
        "args": args,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "opt_param_scheduler": {"max_lr": 1e-4},
        "tokens": 12,
    }
    for zipped in (True, False):
        out = write_megatron(hf, tmp_path / f"{zipped}", extra=extra, zipped=zipped)
        assert_same(parts(config_of(out), 2, 1), parts(config_of(hf), 2, 1))


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
@pytest.mark.parametrize("key", ["args", "rng_state", "optimizer", "iteration", "model"])
def test_hostile_file_executes_nothing(hf: Path, tmp_path: Path, key: str, zipped: bool) -> None:
    mark = tmp_path / "executed"
    held = {"deep": [Hostile(mark)]}
    out = write_megatron(hf, tmp_path / "m", extra={key: held}, zipped=zipped)
    torch.load(next(out.rglob("*.pt")), weights_only=False)
    assert mark.exists(), "the attack itself must work"
    mark.unlink()
    if key == "rng_state":
        opened(out)  # nothing ever looks at it
    else:
        message = refusal(out)
        words = "how many heads" if key == "args" else f"{key}.deep[0] is an object of posix.system"
        assert words in message
    assert not mark.exists()


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        opened(folder)
    assert refused.value.code == UNREADABLE
    message = str(refused.value)
    assert message.isprintable()
    assert str(folder) in message
    return message


def rewrite(folder: Path, name: str, change: Any) -> None:
    """Change the tree of one rank's file."""
    path = folder / "release" / name / "model_optim_rng.pt"
    root = torch.load(path, weights_only=False)
    change(root)
    torch.save(root, path)


def language(root: Any) -> Any:
    return root["model"]["language_model"]


def blocks(root: Any) -> Any:
    return language(root)["encoder"]


QKV = "layers.0.self_attention.query_key_value.weight"
DAMAGE: dict[str, tuple[Any, str]] = {
    "missing": (
        lambda r: blocks(r).pop(QKV),
        "mp_rank_01/model_optim_rng.pt: tensor encoder.layers.0.self_attention.query_key_value"
        ".weight [36, 24] is missing",
    ),
    "odd shape": (
        lambda r: blocks(r).update({QKV: torch.zeros(24, 36)}),
        "expected shape [36, 24], found [24, 36]",
    ),
    "another dtype": (
        lambda r: blocks(r).update({QKV: torch.zeros(36, 24).int()}),
        "expected a float dtype, found I32",
    ),
    "not contiguous": (
        lambda r: blocks(r).update({QKV: torch.zeros(24, 36).T}),
        "save it contiguous",
    ),
    "unknown": (
        lambda r: blocks(r).update({"layers.0.mlp.router": torch.zeros(3)}),
        "tensor encoder.layers.0.mlp.router [3] belongs to no part of the model",
    ),
    "a pooler": (
        lambda r: language(r).update(pooler={"dense": {"weight": torch.zeros(3)}}),
        "tensor pooler.dense.weight [3] belongs to no part",
    ),
    "no tensor": (lambda r: blocks(r).update({QKV: "x"}), f"{QKV} is no tensor of its own"),
    "a class": (lambda r: blocks(r).update({QKV: AttnMaskType.CAUSAL}), "AttnMaskType"),
    "other rows": (
        lambda r: language(r)["embedding"]["word_embeddings"].update(weight=torch.zeros(9, 24)),
        "expected shape [32, 24] as in rank 0, found [9, 24]",
    ),
    "no embedding": (lambda r: language(r).pop("embedding"), "[vocabulary, hidden] is missing"),
    "no model": (lambda r: r.pop("model"), "holds no model"),
    "virtual stages": (
        lambda r: r.update(model0=r.pop("model")),
        "holds no model; found model0",
    ),
    "another version": (
        lambda r: r.update(checkpoint_version=2.0),
        "checkpoint_version=2, but",
    ),
    "unknown version": (
        lambda r: r.update(checkpoint_version=4.0),
        "checkpoint_version=4.0 is not known; known: 0, 1, 2, 3",
    ),
    "version of a class": (
        lambda r: r.update(checkpoint_version=AttnMaskType.CAUSAL),
        "checkpoint_version is an object of test_megatron.AttnMaskType: only tensors",
    ),
    "a class as a name": (
        lambda r: blocks(r).update({AttnMaskType: torch.zeros(3)}),
        "the class test_megatron.AttnMaskType as a key",
    ),
    "version of text": (lambda r: r.update(checkpoint_version="3"), "checkpoint_version=3 is not"),
    "megatron core": (
        lambda r: r.update(model={"decoder.layers.0.x": torch.zeros(2)}),
        "model has no language_model with layers; found decoder.layers.0.x",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE.keys())
def test_what_is_not_whole_is_refused(hf: Path, tmp_path: Path, damage: Any, words: str) -> None:
    folder = write_megatron(hf, tmp_path / "m", ways=2, padding=3)
    opened(folder)
    rewrite(folder, "mp_rank_01", damage)
    assert words in refusal(folder)


ARGS: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"num_attention_heads": 5}, "5 heads (args.num_attention_heads) of 4.8 do not"),
    "heads of text": ({"num_attention_heads": "4"}, "num_attention_heads=4 must be a whole number"),
    "heads of a class": (
        {"num_attention_heads": AttnMaskType.CAUSAL},
        "args.num_attention_heads=an object of test_megatron.AttnMaskType must be a whole",
    ),
    "no heads": ({"num_attention_heads": None}, "does not say how many heads"),
    "layers": ({"num_layers": 5}, "args.num_layers=5, but the tensors say 4"),
    "hidden": ({"hidden_size": 25}, "args.hidden_size=25, but the tensors say 24"),
    "vocabulary": ({"padded_vocab_size": 60}, "args.padded_vocab_size=60, but the tensors say 61"),
    "gated": ({"swiglu": True}, "args.swiglu=True is not supported, only False"),
    "rms": ({"normalization": "RMSNorm"}, "args.normalization=RMSNorm is not supported"),
    "rotary": ({"position_embedding_type": "rope"}, "only learned_absolute"),
    "post norm": ({"apply_residual_connection_post_layernorm": True}, "only False"),
    "experts": ({"num_experts": 8}, "args.num_experts=8"),
    "eps": ({"layernorm_epsilon": "x"}, "layernorm_epsilon=x must be above 0"),
}


@pytest.mark.parametrize(("changes", "words"), ARGS.values(), ids=ARGS.keys())
def test_args_that_mean_something_else_are_refused(
    hf: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    args = args_of(hf_weights(hf)[0], 1, 1, 61) | changes
    folder = write_megatron(hf, tmp_path / "m", extra={"args": argparse.Namespace(**args)})
    assert words in refusal(folder)


def test_args_choose_eps_and_activation(hf: Path, tmp_path: Path) -> None:
    stated = args_of(hf_weights(hf)[0], 1, 1, 61)
    args = argparse.Namespace(**stated | {"layernorm_epsilon": 1e-6, "bias_gelu_fusion": False})
    arch = opened(write_megatron(hf, tmp_path / "m", extra={"args": args})).arch
    assert (arch.norm_eps, arch.activation) == (1e-6, "gelu")


def test_ranks_must_be_complete(hf: Path, tmp_path: Path) -> None:
    folder = write_megatron(hf, tmp_path / "m", ways=2, stages=2, padding=3)
    ranks = folder / "release"
    shutil.rmtree(ranks / "mp_rank_01_000")
    assert "tensor rank 1 of pipeline rank 0 is missing; found 3 of 2 x 2 ranks" in refusal(folder)
    shutil.copytree(ranks / "mp_rank_00_000", ranks / "mp_rank_01_000")
    held = ranks / "mp_rank_01_000" / "model_optim_rng.pt"
    held.rename(held.with_name("a.pt"))
    assert "model_optim_rng.pt: is missing; found a.pt" in refusal(folder)
    held.with_name("a.pt").rename(held)
    shutil.copytree(ranks / "mp_rank_00_000", ranks / "tp_rank_00_pp_rank_000")
    assert "is the same rank as mp_rank_00_000" in refusal(folder)


def test_more_words_than_rows_is_refused(hf: Path, tmp_path: Path) -> None:
    folder = write_megatron(hf, tmp_path / "m")
    with pytest.raises(ConfigError, match=r"model.arch.vocab=62 .* says 61"):
        opened(folder, arch={"vocab": 62})
