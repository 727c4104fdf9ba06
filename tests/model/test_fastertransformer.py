"""FasterTransformer folders of GPT and T5 models, written from the format's description: at every
split each device gets the bits that the Hugging Face folder of the same weights gives it, and what
the old loader went on with silently is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import write_ft_gpt, write_ft_t5
from gpt2_oracle import random_gpt2, write_gpt2
from loaded import SPLITS, assert_same, config_of, opened, parts
from t5_files import write_t5

from ftjob.errors import UNREADABLE, CheckpointError
from ftjob.job import open_model
from ftjob.model.arch import Specials

WAYS = pytest.mark.parametrize("ways", [1, 2, 4])


@WAYS
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_gpt_at_every_split(tmp_path: Path, ways: int, dtype: str) -> None:
    half = torch.float16 if dtype == "fp16" else torch.float32
    write_gpt2(tmp_path / "hf", random_gpt2(), dtype=half)
    folder = write_ft_gpt(tmp_path / "hf", tmp_path / "ft", ways, dtype)
    for place in (folder, tmp_path / "ft"):
        source = opened(place)
        assert source.index is not None
        assert source.index.format == f"FasterTransformer, {ways}-gpu, {dtype}"
    for split in SPLITS:
        theirs = parts(config_of(tmp_path / "hf"), *split)
        assert_same(parts(config_of(folder), *split), theirs)


@WAYS
@pytest.mark.parametrize("kind", ["v1_0", "v1_1", "v1_1_tied", "mt5"])
def test_t5_at_every_split(tmp_path: Path, ways: int, kind: str) -> None:
    write_t5(tmp_path / "hf", kind)
    folder = write_ft_t5(tmp_path / "hf", tmp_path / "ft", ways)
    ours, theirs = (open_model(config_of(f, "t5")) for f in (folder, tmp_path / "hf"))
    assert (ours.arch, ours.specials) == (theirs.arch, theirs.specials)
    assert ours.ignored == (
        ("lm_head.weight.bin", "shared.weight.bin")
        if ours.arch.tied_head
        else ("shared.weight.bin",)
    )
    for split in SPLITS:
        hf = parts(config_of(tmp_path / "hf", "t5"), *split)
        assert_same(parts(config_of(folder, "t5"), *split), hf)


def test_eight_ranks(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2(n_head=8))
    folder = write_ft_gpt(tmp_path / "hf", tmp_path / "ft", 8)
    for split in ((1, 1), (2, 2), (8, 1)):
        assert_same(parts(config_of(folder), *split), parts(config_of(tmp_path / "hf"), *split))


def test_gpt_settings(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2(eos_token_id=7))
    theirs = opened(tmp_path / "hf").arch
    for number, (stated, eps, remark) in enumerate(
        [
            (None, 1e-5, "config.ini says no layernorm_eps"),
            (1e-6, 1e-5, "config.ini says layernorm_eps=1e-06"),
            (1e-5, 1e-5, None),
            (2e-5, 2e-5, None),
        ]
    ):
        out = tmp_path / str(number)
        ours = opened(write_ft_gpt(tmp_path / "hf", out, 2, layernorm_eps=stated))
        assert ours.arch.norm_eps == eps
        assert ours.specials == Specials(None, (7,))
        assert ours.index is not None
        found = ours.index.remarks.get("layernorm eps", "")
        assert found.endswith(remark) if remark else not found
        if eps == 1e-5:
            assert ours.arch == theirs


def test_head_of_its_own(tmp_path: Path) -> None:
    model = random_gpt2(tie_word_embeddings=False)
    model.lm_head.weight.data.normal_()
    write_gpt2(tmp_path / "hf", model)
    folder = write_ft_gpt(tmp_path / "hf", tmp_path, 2)
    assert not opened(folder).arch.tied_head
    for split in SPLITS:
        theirs = parts(config_of(tmp_path / "hf"), *split)
        assert_same(parts(config_of(folder), *split), theirs)


def test_head_that_is_a_copy_is_tied(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    folder = write_ft_gpt(tmp_path / "hf", tmp_path, 1)
    (folder / "model.lm_head.weight.bin").write_bytes((folder / "model.wte.bin").read_bytes())
    source = opened(folder)
    assert source.arch.tied_head
    assert source.ignored == ("model.lm_head.weight.bin",)


def test_padding_of_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    """The folder of a Megatron model has its padded rows; model.arch.vocab or the tokenizer says
    which are true."""
    write_gpt2(tmp_path / "hf", random_gpt2())
    folder = write_ft_gpt(tmp_path / "hf", tmp_path, 2, vocab_size=64)
    table = np.fromfile(folder / "model.wte.bin", np.float32)
    np.concatenate([table, np.full(3 * 24, 99, np.float32)]).tofile(folder / "model.wte.bin")
    assert opened(folder).arch.vocab == 64
    config = config_of(folder, arch={"vocab": 61})
    source = open_model(config)
    assert source.index is not None
    assert source.index.remarks["padding of the vocabulary"] == "3 rows, never emitted"
    for split in SPLITS:
        assert_same(parts(config, *split), parts(config_of(tmp_path / "hf"), *split))


def test_padding_that_nothing_tells_from_words_is_reported(tmp_path: Path) -> None:
    """config.ini of a Megatron model counts padded rows as words: the report says so."""
    write_gpt2(tmp_path / "hf", random_gpt2(vocab_size=128))
    folder = write_ft_gpt(tmp_path / "hf", tmp_path, 2)
    for vocab, words in ((None, "unknown: all 128 rows that config.ini states"), (128, None)):
        source = opened(folder, arch={"vocab": vocab})
        assert source.index is not None
        remark = source.index.remarks.get("padding of the vocabulary")
        assert (remark or "").startswith(words or "")
        assert (remark is None) is (words is None)


def refusal(folder: Path, family: str = "gpt2") -> str:
    with pytest.raises(CheckpointError) as refused:
        opened(folder, family)
    assert refused.value.code == UNREADABLE
    message = str(refused.value)
    assert message.isprintable()
    assert str(folder) in message
    return message


QKV = "model.layers.1.attention.query_key_value.weight.1.bin"


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def resize(name: str, factor: float) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes((data + data)[: int(len(data) * factor)])

    return change


def add(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"1234")


def restate(key: str, value: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.ini"
        text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", path.read_text())
        path.write_text(text if count else f"{text}{key} = {value}\n")

    return change


GPT_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (remove(QKV), f"{QKV}: is missing; expected 3456 bytes, F32 [24, 3, 12]"),
    "short": (resize(QKV, 0.75), f"{QKV}: expected 3456 bytes, F32 [24, 3, 12], found 2592"),
    "half": (resize(QKV, 0.5), "found 1728; as many as fp16 or bf16 would have"),
    "long": (resize("model.wte.bin", 2), "expected 5856 bytes, F32 [61, 24], found 11712"),
    "extra": (add("model.layers.9.mlp.x.bin"), "mlp.x.bin: 4 bytes belong to no part"),
    "int8": (add("model.layers.0.mlp.dense_4h_to_h.weight.int8.0.bin"), "belong to no part"),
    "a rank too many": (
        add("model.layers.0.mlp.dense_4h_to_h.weight.2.bin"),
        "tensor_para_size=2, but its files are those of 3 ranks",
    ),
    "prompt table": (add("model.prompt_table.squad.weight.bin"), "prompt tables and IA3"),
    "prefix prompt": (add("model.prefix_prompt.squad.weight.0.bin"), "prompt tables and IA3"),
    "heads": (
        restate("head_num", "3"),
        "model.wte.bin: expected 4392 bytes, F32 [61, 18], found 5856",
    ),
    "no heads": (restate("head_num", "0"), "head_num=0 must be a whole number of at least 1"),
    "heads of text": (restate("head_num", "four"), "[gpt] head_num=four must be a whole number"),
    "other head size": (restate("size_per_head", "8"), "expected"),
    "layers": (restate("num_layer", "3"), "model.layers.2.input_layernorm.weight.bin: is missing"),
    "fewer layers": (restate("num_layer", "1"), "belong to no part of the model"),
    "vocabulary": (restate("vocab_size", "60"), "model.wte.bin: expected 5760 bytes"),
    "tensor size": (restate("tensor_para_size", "4"), "tensor_para_size=4, but its files"),
    "dtype": (restate("weight_data_type", "int8"), "weight_data_type=int8 is not known"),
    "other dtype": (restate("weight_data_type", "fp16"), "as many as fp32 would have"),
    "activation": (restate("activation_type", "SiGLU"), "activation_type=SiGLU is not supported"),
    "post norm": (restate("layernorm_type", "post_layernorm"), "only pre_layernorm"),
    "alibi": (restate("use_attention_linear_bias", "1"), "is not supported, only False"),
    "adapters": (restate("has_adapters", "true"), "is not supported, only False"),
    "tasks": (restate("num_tasks", "2"), "num_tasks=2: prompt tables are not read"),
    "a flag of text": (restate("has_adapters", "maybe"), "must be true or false"),
    "eps": (restate("layernorm_eps", "-1"), "must be a number above 0"),
    "end outside": (restate("end_id", "99"), "eos_token_id=99 must be an id of the vocabulary"),
    "no section": (lambda f: (f / "config.ini").write_text(""), "has the sections ;"),
    "another model": (lambda f: (f / "config.ini").write_text("[gptj]\na=1"), "sections gptj;"),
    "no settings": (lambda f: (f / "config.ini").write_text("[gpt\nx"), "no settings file"),
    "binary": (lambda f: (f / "config.ini").write_bytes(b"\xff\x00"), "no settings file"),
    "a key without": (lambda f: (f / "config.ini").write_text("[gpt]\n"), "[gpt] has no head_num"),
    "no files": (lambda f: [p.unlink() for p in f.glob("*.bin")], "no file of a tensor rank"),
    "renamed": (lambda f: f.rename(f.with_name("4-gpu")), "its name says 4-gpu, but its files"),
}


@pytest.mark.parametrize(("damage", "words"), GPT_DAMAGE.values(), ids=GPT_DAMAGE.keys())
def test_gpt_that_is_not_whole_is_refused(tmp_path: Path, damage: Any, words: str) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    folder = write_ft_gpt(tmp_path / "hf", tmp_path / "ft", 2)
    opened(folder)
    damage(folder)
    assert words in refusal(next((tmp_path / "ft").iterdir()))


CROSS = "decoder.block.0.layer.1.EncDecAttention.k.weight.0.bin"
T5_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (remove(CROSS), f"{CROSS}: is missing; expected 1920 bytes, F32 [24, 20]"),
    "short": (resize(CROSS, 0.9), "found 1728"),
    "short copy": (resize("shared.weight.bin", 0.5), "shared.weight.bin: expected 5856 bytes"),
    "biases": (restate("t5_with_bias", "true"), "T5 has no biases"),
    "absolute": (restate("position_embedding_type", "absolute"), "only relative"),
    "ia3": (restate("ia3_num_tasks", "1"), "only 0"),
    "an ia3 file": (add("decoder.block.0.layer.0.SelfAttention.k.ia3.weight.0.bin"), "IA3"),
    "another activation": (
        restate("feed_forward_proj", "silu"),
        "[decoder] feed_forward_proj=silu disagrees with dense_act_fn=relu",
    ),
    "gate": (restate("use_gated_activation", "1"), "wi2.weight.0.bin: is missing"),
}


@pytest.mark.parametrize(("damage", "words"), T5_DAMAGE.values(), ids=T5_DAMAGE.keys())
def test_t5_that_is_not_whole_is_refused(tmp_path: Path, damage: Any, words: str) -> None:
    write_t5(tmp_path / "hf", "v1_0")
    folder = write_ft_t5(tmp_path / "hf", tmp_path / "ft", 2)
    opened(folder, "t5")
    damage(folder)
    assert words in refusal(folder, "t5")


def test_stacks_must_agree(tmp_path: Path) -> None:
    write_t5(tmp_path / "hf", "v1_1")
    folder = write_ft_t5(tmp_path / "hf", tmp_path / "ft", 1)
    text = (folder / "config.ini").read_text()
    head, _, tail = text.partition("[decoder]")
    changed = tail.replace("d_ff = 44", "d_ff = 48")
    (folder / "config.ini").write_text(f"{head}[decoder]{changed}")
    assert "[decoder] d_ff=48 differs from the encoder's 44" in refusal(folder, "t5")
    (folder / "config.ini").write_text(text.replace("use_gated_activation = 1", "use_gated_x = 1"))
    opened(folder, "t5")
    broken = text.replace("use_gated_activation = 1", "use_gated_activation = 0")
    (folder / "config.ini").write_text(broken)
    assert "use_gated_activation=0 disagrees with" in refusal(folder, "t5")
    # ft#363: the dump of a gated model says gelu
    newer = text.replace("feed_forward_proj = gated-gelu", "feed_forward_proj = gelu")
    (folder / "config.ini").write_text(newer)
    assert opened(folder, "t5").arch == opened(tmp_path / "hf", "t5").arch


def test_several_folders_are_refused(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    for ways in (1, 2):
        write_ft_gpt(tmp_path / "hf", tmp_path / "ft", ways)
    assert "holds 1-gpu, 2-gpu: name one of them" in refusal(tmp_path / "ft")


def test_two_formats_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    write_ft_gpt(tmp_path / "hf", tmp_path / "hf", 1)
    assert "keep one format a folder" in refusal(tmp_path / "hf")
