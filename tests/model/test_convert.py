"""Conversions between the three formats, both ways: byte-equal to an independent writer's folders,
bit-equal when loaded at every split, readable by transformers, and whole or not there at all.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import write_ft_gpt, write_ft_t5, write_megatron
from gpt2_oracle import random_gpt2, write_gpt2
from harness import DEMO, tree
from loaded import SPLITS, assert_same, config_of, parts
from t5_files import write_t5
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ftjob.checkpoint import convert as module
from ftjob.checkpoint.convert import Conversion, convert
from ftjob.checkpoint.manifest import MANIFEST_NAME, UNFINISHED_NAME, check_manifest
from ftjob.commands.convert import open_source
from ftjob.errors import CheckpointError, ConfigError
from ftjob.tokenizer import tokenizer_files

TARGETS = ("hf", "fastertransformer", "megatron")


def conversion(source: Path, out: Path, to: Any, family: str = "gpt2", **how: Any) -> Conversion:
    opened = open_source(config_of(source, family))
    assert opened.index is not None
    files = tokenizer_files(None, opened.index.folder)
    plain: dict[str, Any] = {"tensor": 1, "pipeline": 1, "dtype": "auto", "tokenizer": files} | how
    return Conversion(opened.index, opened.arch, opened.specials, opened.rules, to, out, **plain)


def converted(source: Path, out: Path, to: Any, family: str = "gpt2", **how: Any) -> Path:
    return convert(conversion(source, out, to, family, **how), lambda step, count: None)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("ways", [1, 2, 4])
def test_fastertransformer_files_are_the_converters(tmp_path: Path, ways: int, dtype: str) -> None:
    """GPT and T5 folders, byte for byte those of the format's description."""
    write_gpt2(tmp_path / "gpt", random_gpt2(n_inner=40))
    write_t5(tmp_path / "t5", "v1_1")
    word = {"fp32": "f32", "fp16": "f16"}[dtype]
    for name, write, family in (("gpt", write_ft_gpt, "gpt2"), ("t5", write_ft_t5, "t5")):
        theirs = write(tmp_path / name, tmp_path / f"{name}-theirs", ways, dtype)
        out = tmp_path / f"{name}-ours"
        ours = converted(tmp_path / name, out, "fastertransformer", family, tensor=ways, dtype=word)
        assert ours == out / f"{ways}-gpu"
        bins = [
            {n: b for n, b in tree(folder).items() if n.endswith(".bin")}
            for folder in (ours, theirs)
        ]
        assert bins[0].keys() == bins[1].keys()
        assert bins[0] == bins[1]


def test_tied_t5_has_its_head_written_too(tmp_path: Path) -> None:
    """As the old converter does; T5 v1.0's table is head and embedding."""
    write_t5(tmp_path / "t5", "v1_0")
    theirs = tree(write_ft_t5(tmp_path / "t5", tmp_path / "theirs", 2))
    ours = tree(converted(tmp_path / "t5", tmp_path / "o", "fastertransformer", "t5", tensor=2))
    for name in ("lm_head.weight.bin", "shared.weight.bin", "shared.weight_T.bin"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("source", ["hf", "fastertransformer", "megatron"])
def test_gpt_both_ways(tmp_path: Path, source: str, to: str) -> None:
    """Every format into every other, then loaded at every split."""
    hf = tmp_path / "hf"
    write_gpt2(hf, random_gpt2(n_layer=4, eos_token_id=7))
    folder = {
        "hf": lambda: hf,
        "fastertransformer": lambda: write_ft_gpt(hf, tmp_path / "ft", 4, layernorm_eps=1e-5),
        "megatron": lambda: write_megatron(hf, tmp_path / "m", ways=2, stages=2, padding=3),
    }[source]()
    how = {"hf": {}, "fastertransformer": {"tensor": 2}, "megatron": {"tensor": 4, "pipeline": 2}}
    work = conversion(folder, tmp_path / "out", to, **how[to])
    if source == "megatron":  # its rows are known from the tokenizer, or as here configured
        opened = open_source(config_of(folder, arch={"vocab": 61}))
        assert opened.index is not None
        work = replace(work, index=opened.index, arch=opened.arch, rules=opened.rules)
    out = convert(work, lambda step, count: None)
    for split in SPLITS:
        assert_same(parts(config_of(out), *split), parts(config_of(hf), *split))
    ours = open_source(config_of(out))
    assert ours.specials.ends == (() if source == "megatron" else (7,))


@pytest.mark.parametrize("kind", ["v1_0", "v1_1", "v1_1_tied", "mt5"])
def test_t5_both_ways(tmp_path: Path, kind: str) -> None:
    hf = tmp_path / "hf"
    model = write_t5(hf, kind)
    there = converted(hf, tmp_path / "there", "fastertransformer", "t5", tensor=4)
    again = converted(there, tmp_path / "again", "fastertransformer", "t5", tensor=2)
    back = converted(again, tmp_path / "back", "hf", "t5")
    for split in SPLITS:
        theirs = parts(config_of(hf, "t5"), *split)
        for folder in (there, again, back):
            assert_same(parts(config_of(folder, "t5"), *split), theirs)
    ours = [open_source(config_of(f, "t5")) for f in (hf, there, again, back)]
    assert all((s.arch, s.specials) == (ours[0].arch, ours[0].specials) for s in ours)
    if kind != "v1_1_tied":  # transformers has no such model of its own
        read = AutoModelForSeq2SeqLM.from_pretrained(back).eval()
        ids = torch.arange(2, 12).view(1, -1)
        with torch.no_grad():
            logits = [m(input_ids=ids, decoder_input_ids=ids).logits for m in (read, model)]
        assert torch.equal(*logits)


def test_prefixes_of_a_t5_come_along(tmp_path: Path) -> None:
    """transformers' task_specific_params, which say what is put before a source; a dictionary that
    is none is refused, and nothing of it is executed."""
    write_t5(tmp_path / "hf", "v1_0")
    path = tmp_path / "hf" / "config.json"
    tasks = {"translation_en_to_de": {"prefix": "translate English to German: ", "beams": 4}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_specific_params": tasks}))
    there = converted(tmp_path / "hf", tmp_path / "there", "fastertransformer", "t5")
    back = converted(there, tmp_path / "back", "hf", "t5")
    for folder in (there, back):
        assert open_source(config_of(folder, "t5")).prefix == "translate English to German: "
    ini = there / "config.ini"
    ini.write_text(ini.read_text().replace(str(tasks), "{print('executed')}"))
    with pytest.raises(CheckpointError, match="is no dictionary as Python prints it"):
        open_source(config_of(there, "t5"))


def test_transformers_reads_what_came_from_megatron(tmp_path: Path) -> None:
    model = write_gpt2(tmp_path / "hf", random_gpt2())
    source = write_megatron(tmp_path / "hf", tmp_path / "m", ways=2, version=1.0, padding=3)
    out = converted(source, tmp_path / "out", "hf")
    read = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.arange(2, 12).view(1, -1)
    with torch.no_grad():
        logits = [m(input_ids=ids).logits[..., :61] for m in (read, model)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("to", TARGETS)
def test_dtypes(tmp_path: Path, to: str, dtype: str) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    word = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    out = converted(tmp_path / "hf", tmp_path / "out", to, dtype=dtype)
    theirs = parts(config_of(tmp_path / "hf"))
    assert_same(parts(config_of(out)), {k: v.to(word).float() for k, v in theirs.items()})


def test_numbers_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = random_gpt2()
    model.transformer.h[1].mlp.c_fc.bias.data[3] = 7e4
    write_gpt2(tmp_path / "hf", model)
    with pytest.raises(ConfigError, match=r"h.1.mlp.c_fc.bias holds numbers that F16 cannot"):
        converted(tmp_path / "hf", tmp_path / "out", "megatron", dtype="f16")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["hf"]


REFUSED: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "ranks that do not divide": ({}, "megatron", {"tensor": 3}, "4 heads and 96 MLP columns"),
    "stages that do not divide": ({}, "megatron", {"pipeline": 3}, "2 layers must be a multiple"),
    "ranks of hf": ({}, "hf", {"tensor": 2}, "convert.to=hf has no tensor ranks"),
    "stages of ft": ({}, "fastertransformer", {"pipeline": 2}, "only convert.to=megatron"),
    "erf in ft": ({"activation_function": "gelu"}, "fastertransformer", {}, "activation gelu"),
    "relu in megatron": ({"activation_function": "relu"}, "megatron", {}, "activation relu"),
}


@pytest.mark.parametrize(("shape", "to", "how", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_format_has_no_words_for_is_refused(
    tmp_path: Path, shape: dict[str, Any], to: str, how: dict[str, Any], words: str
) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2(**shape))
    with pytest.raises(ConfigError) as refused:
        converted(tmp_path / "hf", tmp_path / "out", to, **how)
    assert words in str(refused.value)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["hf"]


def test_t5_for_megatron_is_refused(tmp_path: Path) -> None:
    write_t5(tmp_path / "t5", "v1_0")
    with pytest.raises(ConfigError, match="Legal for T5: hf, fastertransformer"):
        converted(tmp_path / "t5", tmp_path / "out", "megatron", "t5")


@pytest.mark.parametrize("shape", [{"layer_norm_epsilon": 1e-6}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("to", TARGETS)
def test_settings_survive(tmp_path: Path, to: str, shape: dict[str, Any]) -> None:
    """Also the eps that old folders state without meaning it."""
    model = random_gpt2(**shape)
    write_gpt2(tmp_path / "hf", model)
    out = converted(tmp_path / "hf", tmp_path / "out", to, tensor=1 if to == "hf" else 2)
    ours, theirs = (open_source(config_of(f)) for f in (out, tmp_path / "hf"))
    assert (ours.arch, ours.specials) == (theirs.arch, theirs.specials)
    assert_same(parts(config_of(out), 2, 2), parts(config_of(tmp_path / "hf"), 2, 2))


def test_tokenizer_comes_along_and_the_vocabulary_is_not_cut(tmp_path: Path) -> None:
    """Even where the embedding has more rows than the tokenizer has words."""
    write_gpt2(tmp_path / "hf", random_gpt2(vocab_size=8200))
    (tmp_path / "hf" / "tokenizer.json").write_bytes(
        (DEMO / "demo_gpt" / "tokenizer.json").read_bytes()
    )
    for to in TARGETS:
        out = converted(tmp_path / "hf", tmp_path / f"to {to}", to)
        assert (out / "tokenizer.json").is_file()
        assert open_source(config_of(out)).arch.vocab == 8200


@pytest.mark.parametrize("to", TARGETS)
def test_every_changed_bit_is_found(tmp_path: Path, to: str) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    out = converted(tmp_path / "hf", tmp_path / "out", to)
    checked = check_manifest(out)
    assert checked == sum(len(b) for n, b in tree(out).items() if n != MANIFEST_NAME)
    for name in tree(out):
        if name == MANIFEST_NAME:
            continue
        data = bytearray((out / name).read_bytes())
        data[len(data) // 2] ^= 1
        (out / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name}: its bytes have changed"):
            check_manifest(out)
        data[len(data) // 2] ^= 1
        (out / name).write_bytes(data)
    (out / name).write_bytes(data + b"0")
    with pytest.raises(CheckpointError, match=rf"says {len(data)} bytes, found {len(data) + 1}"):
        check_manifest(out)
    (out / name).unlink()
    with pytest.raises(CheckpointError, match="bytes, found nothing"):
        check_manifest(out)


@pytest.mark.parametrize("text", ["", "[]", '{"files": {"../x": 1}}', '{"files": {"x": {}}}'])
def test_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="is no manifest of ftjob's"):
        check_manifest(tmp_path)


def test_identity_follows_the_manifest(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    out = converted(tmp_path / "hf", tmp_path / "out", "hf")
    index = open_source(config_of(out)).index
    assert index is not None
    before = index.identity()
    path = out / MANIFEST_NAME
    path.write_text(path.read_text().replace('"dtype": "F32"', '"dtype": "F33"'))
    assert index.identity() != before


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    wrong = {"count": 0}

    def told(step: str, count: int) -> None:
        if step == "compare":
            wrong["count"] += 1
            raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        convert(conversion(tmp_path / "hf", tmp_path / "out", "megatron"), told)
    assert wrong["count"] == 1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["hf"]

    def damaged(*arguments: Any) -> None:
        write(*arguments)
        file = next(arguments[1].rglob("*.safetensors"))
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)

    write = module.write_huggingface
    monkeypatch.setattr(module, "write_huggingface", damaged)
    with pytest.raises(CheckpointError, match="reads back otherwise than it was written"):
        converted(tmp_path / "hf", tmp_path / "out", "hf")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("to", TARGETS)
def test_unfinished_folder_does_not_load(tmp_path: Path, to: str) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    out = converted(tmp_path / "hf", tmp_path / "out", to)
    (tmp_path / "out" / UNFINISHED_NAME).touch()
    for place in {out, tmp_path / "out"}:
        with pytest.raises(CheckpointError, match="or was ended before it was whole"):
            open_source(config_of(place))


def test_existing_target_is_refused(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2())
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("out", "link", "hf"):
        with pytest.raises(ConfigError, match=r"exists\. Nothing is overwritten"):
            converted(tmp_path / "hf", tmp_path / name, "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["n_layer"] == 2
