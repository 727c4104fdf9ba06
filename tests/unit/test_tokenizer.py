"""The tokenizers: GPT-2's BPE from the shipped files gives transformers' ids on awkward text, an
identity follows the files' bytes, folders are searched in a fixed order, and damage is refused.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from ftjob.checkpoint.resolve import demo_file
from ftjob.errors import UNREADABLE, CheckpointError
from ftjob.tokenizer import has_tokenizer, open_tokenizer, tokenizer_files

TEXTS = [
    "",
    " ",
    "   leading and trailing   ",
    "Hello, world!",
    " word",
    "don't we'll I'M they'RE he'd 'tis",
    "line\nbreak\r\n\n\n tab\tend\u00a0nbsp\u2028ls\u0085nel",
    "naïve café Ünïcödé ß ﬁ e\u0301",
    "漢字かな交じり文 한국어 русский العربية हिन्दी",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 zero\u200bwidth\ufeffbom",
    "1234567890 3.14 1,000,000 0x7F ½ ²",
    "x = {'a': [1, 2]}; // comment_with_underscores",
    "...!?!?---***###$$$",
    "\x00\x01\x7f control",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ĠĊ the alphabet's own letters",
]
TINY_VOCAB = {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4}


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped vocab.json and merges.txt, unpacked."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("vocab.json", "merges.txt"):
        packed = demo_file(f"gpt2_bpe/{name}.gz")
        (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def reference(gpt2_files: Path) -> GPT2TokenizerFast:
    return GPT2TokenizerFast(
        vocab=json.loads((gpt2_files / "vocab.json").read_text("utf-8")),
        merges=[
            tuple(line.split(" "))
            for line in (gpt2_files / "merges.txt").read_text("utf-8").split("\n")
            if line and not line.startswith("#version")
        ],
    )


def write_pair(folder: Path, vocab: dict[str, int], merges: str = "a b\nĠ ab\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", "utf-8")
    return folder


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_gpt2_ids_equal_transformers(reference: GPT2TokenizerFast, text: str) -> None:
    (ids,) = open_tokenizer("builtin:gpt2", None).encode([text])
    assert ids == reference.encode(text)
    assert open_tokenizer("builtin:gpt2", None).decode(ids) == text


def test_end_of_text_is_one_token(reference: GPT2TokenizerFast) -> None:
    text = "one<|endoftext|> two"
    (ids,) = open_tokenizer("builtin:gpt2", None).encode([text])
    assert 50256 in reference.encode(text)
    assert ids == reference.encode(text)


def test_known_gpt2_ids() -> None:
    tokenizer = open_tokenizer(None, None)  # random weights have GPT-2's
    assert tokenizer.encode(["Hello, world!", " word"]) == [[15496, 11, 995, 0], [1573]]
    assert (tokenizer.vocab_size, tokenizer.source) == (50257, "builtin:gpt2")
    assert tokenizer.decode([50256]) == "<|endoftext|>"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([15496, 99_999]) == "Hello"  # a padded vocabulary's id


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("name", ["demo_gpt", "demo_t5"])
def test_demo_ids_equal_transformers(name: str, text: str) -> None:
    file = demo_file(f"{name}/tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(file))
    ours = open_tokenizer(f"builtin:{name}", None)
    assert ours.encode([text]) == [theirs.encode(text, add_special_tokens=False)]
    assert ours.vocab_size == len(theirs)


def test_special_tokens_are_shown_unless_skipped() -> None:
    t5, gpt2 = (open_tokenizer(f"builtin:{name}", None) for name in ("demo_t5", "gpt2"))
    man, dog = t5.encode(["A man rides.", "ein Hund"])
    row = [0, *man, 1, *dog, 8000]
    assert t5.decode(row) == "<pad> A man rides.</s> ein Hund"
    assert t5.decode(row, skip_special=True) == "A man rides. ein Hund"
    (word,) = gpt2.encode([" word"])
    assert gpt2.decode([*word, 50256]) == " word<|endoftext|>"
    assert gpt2.decode([*word, 50256], skip_special=True) == " word"


def test_texts_of_a_batch_do_not_touch_each_other() -> None:
    tokenizer = open_tokenizer("builtin:demo_gpt", None)
    assert tokenizer.encode(TEXTS) == [tokenizer.encode([text])[0] for text in TEXTS]
    long = "word " * 3000
    assert len(tokenizer.encode([long])[0]) >= 3000
    assert tokenizer.encode([]) == []


def test_identity_follows_the_files(tmp_path: Path, gpt2_files: Path) -> None:
    shipped = open_tokenizer("builtin:gpt2", None)
    assert open_tokenizer(str(gpt2_files), None).identity == shipped.identity
    one = write_pair(tmp_path / "one", TINY_VOCAB)
    two = write_pair(tmp_path / "two", TINY_VOCAB)
    first = open_tokenizer(str(one), None).identity
    assert open_tokenizer(str(two), None).identity == first
    write_pair(two, TINY_VOCAB | {"c": 5})
    other_vocab = open_tokenizer(str(two), None).identity
    write_pair(two, TINY_VOCAB, "a b\n")
    other_merges = open_tokenizer(str(two), None).identity
    assert len({first, other_vocab, other_merges, shipped.identity}) == 4


def test_folder_is_searched_for_tokenizer_json_first(tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "model", TINY_VOCAB)
    pair = open_tokenizer(None, folder)
    assert pair.encode(["ab ab b"]) == [[2, 4, 3, 1]]
    assert pair.decode([2, 4, 3, 1]) == "ab ab b"
    assert pair.vocab_size == 5
    assert "vocab.json + merges.txt" in pair.source
    demo = demo_file("demo_gpt/tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(demo)
    whole = open_tokenizer(None, folder)
    assert "tokenizer.json" in whole.source
    assert whole.identity == open_tokenizer("builtin:demo_gpt", None).identity
    named = open_tokenizer(str(folder / "tokenizer.json"), tmp_path)
    assert named.identity == whole.identity
    assert open_tokenizer("builtin:gpt2", folder).source == "builtin:gpt2"


def refusal(spec: str | None, checkpoint: Path | None) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_tokenizer(spec, checkpoint)
    assert refused.value.code == UNREADABLE
    return str(refused.value)


def test_absent_tokenizers_are_refused_with_the_ways_to_name_one(tmp_path: Path) -> None:
    message = refusal(None, tmp_path)
    assert f"{tmp_path}: no tokenizer.json, and no vocab.json with merges.txt" in message
    assert "model.tokenizer=builtin:gpt2" in message
    (tmp_path / "vocab.json").write_text("{}")
    assert "merges.txt" in refusal(None, tmp_path)
    absent = str(tmp_path / "absent")
    assert refusal(absent, None) == (
        f"model.tokenizer={absent}: is no file, no folder, nor builtin:NAME."
    )
    message = refusal("builtin:gtp2", None)
    assert "no such tokenizer is shipped. Did you mean builtin:gpt2?" in message


DAMAGED = {
    "empty": b"",
    "torn": demo_file("demo_gpt/tokenizer.json").read_bytes()[:-200],
    "no JSON": b"hello",
    "other JSON": b'{"a": 1}',
    "not UTF-8": b"\xff\xfe{}",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_tokenizer_json_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    assert str(tmp_path / "tokenizer.json") in refusal(None, tmp_path)


@pytest.mark.parametrize("merges", ["ab\n", "a b c\n", "a z\n"])
def test_damaged_merges_are_refused_by_name(tmp_path: Path, merges: str) -> None:
    write_pair(tmp_path, TINY_VOCAB, merges)
    assert str(tmp_path) in refusal(None, tmp_path)


@pytest.mark.parametrize("vocab", [b"", b"[1]", b'{"a": "b"}', b"{}", b"\xff"])
def test_damaged_vocabulary_is_refused_by_name(tmp_path: Path, vocab: bytes) -> None:
    write_pair(tmp_path, TINY_VOCAB, "")
    (tmp_path / "vocab.json").write_bytes(vocab)
    assert str(tmp_path) in refusal(None, tmp_path)


@pytest.mark.parametrize("cut", [slice(0, -20), slice(20, None)], ids=["torn", "headless"])
def test_damaged_gzip_is_refused_by_name(tmp_path: Path, cut: slice) -> None:
    path = tmp_path / "tokenizer.json.gz"
    path.write_bytes(gzip.compress(demo_file("demo_gpt/tokenizer.json").read_bytes())[cut])
    assert str(path) in refusal(str(path), None)


def test_flipped_bytes_in_a_gzip_are_refused_by_name(tmp_path: Path) -> None:
    whole = gzip.compress(demo_file("demo_gpt/tokenizer.json").read_bytes())
    path = tmp_path / "tokenizer.json.gz"
    path.write_bytes(whole[:200] + b"\xff" * 400 + whole[600:])
    assert str(path) in refusal(str(path), None)


def test_megatrons_names_of_the_pair(tmp_path: Path) -> None:
    """As Megatron-LM's instructions have them; the plain names come first."""
    first = open_tokenizer(None, write_pair(tmp_path, TINY_VOCAB)).identity
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).rename(tmp_path / f"gpt2-{name}")
    found = open_tokenizer(None, tmp_path)
    assert found.source == "gpt2-vocab.json + gpt2-merges.txt of the checkpoint"
    assert has_tokenizer(tmp_path)
    assert tokenizer_files(None, tmp_path) == {
        "vocab.json": tmp_path / "gpt2-vocab.json",
        "merges.txt": tmp_path / "gpt2-merges.txt",
    }
    assert found.identity == first
