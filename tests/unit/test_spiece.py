"""SentencePiece tokenizers: a tiny model trained here gives the library's own ids and text, also
around added tokens; special tokens are shown or left out, and damage is refused by name.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from ftjob.checkpoint.resolve import demo_file
from ftjob.errors import UNREADABLE, CheckpointError
from ftjob.tokenizer import open_tokenizer

TEXTS = [
    "",
    " ",
    "  two  dogs run   over the field ",
    "A man in a blue shirt is standing on a ladder.",
    "naïve ﬁsh ½ Ünïcödé",
    "漢字 🙂 unseen",
    "line\nbreak\ttab",
    "<pad> </s> <unk> <extra_id_0>",
    "\u2581low line",
]


@pytest.fixture(scope="module")
def model() -> bytes:
    """A Unigram model of 60 pieces, laid out as T5's: pad 0, end 1, unknown 2, no start."""
    text = (
        "a man in blue shirt stands on the ladder two dogs run over a field of green grass while "
        "children play football behind the old brown house and some people watch them from there"
    )
    words = text.split()
    lines = [" ".join(words[i : i + 7]) + f" {i}" for i in range(len(words))]
    written = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter([*lines, "A woman, naïve fish."]),
        model_writer=written,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return written.getvalue()


@pytest.fixture
def folder(tmp_path: Path, model: bytes) -> Path:
    """A checkpoint's folder with spiece.model alone."""
    (tmp_path / "spiece.model").write_bytes(model)
    return tmp_path


def configure(folder: Path, **values: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def test_ids_and_text_are_the_librarys(folder: Path, model: bytes) -> None:
    theirs = SentencePieceProcessor(model_proto=model)
    ours = open_tokenizer(None, folder)
    assert ours.encode(TEXTS) == theirs.Encode(TEXTS, out_type=int)
    assert ours.encode([]) == []
    for row in ours.encode(TEXTS):
        known = [i for i in row if i != theirs.unk_id()]
        assert ours.decode(known) == theirs.Decode(known)
    assert ours.vocab_size == theirs.GetPieceSize() == 60
    assert ours.source == "spiece.model of the checkpoint"
    named = open_tokenizer(str(folder / "spiece.model"), None)
    assert named.identity == ours.identity
    assert named.encode(TEXTS) == ours.encode(TEXTS)


def test_special_tokens_are_shown_or_left_out(folder: Path) -> None:
    tokenizer = open_tokenizer(None, folder)
    (man,), (dogs,) = [[row] for row in tokenizer.encode(["a man", "two dogs"])]
    row = [0, *man, 1, 2, *dogs, 0]
    assert tokenizer.decode(row) == "<pad> a man</s><unk> two dogs<pad>"
    assert tokenizer.decode(row, skip_special=True) == "a man two dogs"
    assert tokenizer.decode([1, 0], skip_special=True) == ""
    assert tokenizer.decode([]) == ""


def test_ids_outside_of_the_vocabulary_are_left_out(folder: Path) -> None:
    tokenizer = open_tokenizer(None, folder)
    (man,) = tokenizer.encode(["a man"])
    for skip in (False, True):
        assert tokenizer.decode([60, *man, -1, 10**6], skip_special=skip) == "a man"


def test_sentinels_count_down_to_the_end(folder: Path, model: bytes) -> None:
    configure(folder, extra_ids=3)
    tokenizer = open_tokenizer(None, folder)
    theirs = SentencePieceProcessor(model_proto=model)
    assert tokenizer.vocab_size == 63
    text = "<extra_id_0> two dogs <extra_id_2><extra_id_1>a man"
    dogs, man = theirs.Encode([" two dogs ", "a man"], out_type=int)
    assert tokenizer.encode([text, "a man"]) == [[62, *dogs, 60, 61, *man], man]
    assert tokenizer.decode([62, *dogs, 60]) == "<extra_id_0> two dogs<extra_id_2>"
    assert tokenizer.decode([62, *dogs, 60], skip_special=True) == "two dogs"
    assert tokenizer.encode(["<extra_id_3>"]) == [theirs.Encode("<extra_id_3>", out_type=int)]


def test_listed_tokens_come_before_a_count(folder: Path) -> None:
    plain = open_tokenizer(None, folder)
    listed = {"60": {"content": "<a>"}, "64": {"content": "<a><b>"}, "1": {"content": "</s>"}}
    configure(folder, extra_ids=100, added_tokens_decoder=listed)
    tokenizer = open_tokenizer(None, folder)
    assert tokenizer.vocab_size == 65
    assert tokenizer.encode(["<a><b><a></s>"]) == [[64, 60, 1]]
    assert tokenizer.decode([61, 60, 64]) == "<a><a><b>"
    configure(folder, extra_ids=4)
    assert len({plain.identity, tokenizer.identity, open_tokenizer(None, folder).identity}) == 3
    configure(folder, model_max_length=512)
    assert open_tokenizer(None, folder).identity == plain.identity


def test_tokenizer_json_comes_first(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(demo_file("demo_t5/tokenizer.json").read_bytes())
    whole = open_tokenizer(None, folder)
    assert whole.identity == open_tokenizer("builtin:demo_t5", None).identity
    assert "tokenizer.json" in whole.source


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_tokenizer(None, folder)
    assert refused.value.code == UNREADABLE
    return str(refused.value)


@pytest.mark.parametrize("damage", ["empty", "torn", "other"])
def test_damaged_model_is_refused_by_name(folder: Path, model: bytes, damage: str) -> None:
    path = folder / "spiece.model"
    path.write_bytes({"empty": b"", "torn": model[:-50], "other": b"hello" * 30}[damage])
    assert refusal(folder).startswith(f"{path}: is not a SentencePiece model")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"extra_ids": "3"}, "extra_ids='3' must be a number from 0 to 10000"),
        ({"extra_ids": -1}, "extra_ids=-1"),
        ({"added_tokens_decoder": ["<a>"]}, "added_tokens_decoder must hold ids"),
        ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, "added_tokens_decoder must hold"),
        ({"added_tokens_decoder": {"60": "<a>"}}, "added_tokens_decoder must hold"),
        ({"added_tokens_decoder": {"60": {}}}, "added_tokens_decoder must hold"),
        ({"added_tokens_decoder": {"60": {"content": ""}}}, "an empty token or a negative id"),
        ({"added_tokens_decoder": {"-1": {"content": "<a>"}}}, "an empty token or a negative id"),
    ],
    ids=str,
)
def test_impossible_added_tokens_are_refused(
    folder: Path, values: dict[str, Any], words: str
) -> None:
    configure(folder, **values)
    message = refusal(folder)
    assert message.startswith(f"{folder}/tokenizer_config.json: ")
    assert words in message
