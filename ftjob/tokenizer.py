"""Text to token ids and back: tokenizer.json, GPT-2's vocab.json with merges.txt, SentencePiece.

Rank 0 encodes the rows of a window at once; the ids go out in chunks, and the records' text comes
back through `decode`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ftjob.checkpoint.resolve import BUILTIN_TOKENIZERS, demo_file
from ftjob.errors import CheckpointError, nearest
from ftjob.spiece import open_pieces
from ftjob.tasks.base import NoTokenizer

# model.tokenizer=none: rows are token ids, and so are answers
NONE = "none"
# What a folder may hold of a tokenizer, the files that `open_tokenizer` reads among them.
_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("gpt2-vocab.json", "gpt2-merges.txt", "vocab.json", "merges.txt", "spiece.model"),
)
# GPT-2's one special token; its two files do not mark it as such.
END_OF_TEXT = "<|endoftext|>"


class Codec(Protocol):
    """What a tokenizer's library does."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id it can give."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without start or end tokens."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of ids; unknown ids are left out, and special tokens where asked."""


class Tokenizer:
    """A tokenizer and the facts that identify it.

    `source` is what reports show; `identity` hashes its files' bytes.
    """

    def __init__(self, codec: Codec, source: str, identity: str) -> None:
        self._codec, self.source, self.identity = codec, source, identity

    @property
    def vocab_size(self) -> int:
        """One more than the highest id it can give."""
        return self._codec.vocab_size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without start or end tokens."""
        return self._codec.encode(texts)

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids; ids the tokenizer does not know are left out, and where asked its
        special tokens too, such as an end token."""
        return self._codec.decode(ids, skip_special)


class _Fast:
    """A tokenizer of the tokenizers library."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()

    @property
    def vocab_size(self) -> int:
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text


class _None:
    """For a run whose rows are token ids."""

    vocab_size = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        raise NoTokenizer

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        raise NoTokenizer


def has_tokenizer(checkpoint: Path) -> bool:
    """Whether a checkpoint's folder has one of its own."""
    named = ("tokenizer.json", "vocab.json", "gpt2-vocab.json", "spiece.model")
    return any((checkpoint / name).is_file() for name in named)


def open_tokenizer(spec: str | None, checkpoint: Path | None) -> Tokenizer:
    """The tokenizer named by model.tokenizer, else the checkpoint folder's own, else GPT-2's.

    A folder is searched for tokenizer.json, for GPT-2's pair of files, then for SentencePiece.

    Raises:
        CheckpointError: where none is there or its files are damaged.
    """
    if spec == NONE:
        return Tokenizer(_None(), NONE, NONE)
    if spec is None and checkpoint is None:
        spec = "builtin:gpt2"
    if spec is not None and spec.startswith("builtin:"):
        name = spec.removeprefix("builtin:")
        if name not in BUILTIN_TOKENIZERS:
            raise CheckpointError(
                f"model.tokenizer={spec}: no such tokenizer is shipped. "
                f"{nearest(spec, [f'builtin:{n}' for n in BUILTIN_TOKENIZERS])}"
            )
        return _from_files([demo_file(f) for f in BUILTIN_TOKENIZERS[name]], spec)
    place = Path(spec).expanduser() if spec is not None else checkpoint
    assert place is not None
    if spec is not None and not place.exists():
        raise CheckpointError(f"model.tokenizer={spec}: is no file, no folder, nor builtin:NAME.")
    whose = str(place) if spec is not None else "of the checkpoint"
    if place.is_file():
        pieces = place.suffix == ".model"
        return _from_pieces(place, whose) if pieces else _from_files([place], whose)
    if (place / "tokenizer.json").is_file():
        return _from_files([place / "tokenizer.json"], f"tokenizer.json {whose}")
    for prefix in ("", "gpt2-"):  # as Hugging Face, and as Megatron-LM's instructions name them
        pair = [place / f"{prefix}vocab.json", place / f"{prefix}merges.txt"]
        if all(f.is_file() for f in pair):
            return _from_files(pair, f"{pair[0].name} + {pair[1].name} {whose}")
    if (place / "spiece.model").is_file():
        return _from_pieces(place / "spiece.model", f"spiece.model {whose}")
    raise CheckpointError(
        f"{place}: no tokenizer.json, and no vocab.json with merges.txt, and no spiece.model. "
        "Name one with model.tokenizer=PATH, or model.tokenizer=builtin:gpt2."
    )


def tokenizer_files(spec: str | None, checkpoint: Path) -> dict[str, Path]:
    """The files by which `open_tokenizer` would find this tokenizer in another folder: its name
    there, which is transformers', -> the file, packed where it ends in .gz. Empty for none."""
    if spec == NONE:
        return {}
    if spec is not None and spec.startswith("builtin:"):
        names = BUILTIN_TOKENIZERS[spec.removeprefix("builtin:")]
        return {Path(n).name.removesuffix(".gz"): demo_file(n) for n in names}
    place = Path(spec).expanduser() if spec is not None else checkpoint
    if place.is_file():
        return {"spiece.model" if place.suffix == ".model" else "tokenizer.json": place}
    found = [name for name in _FILES if (place / name).is_file()]
    return {name.removeprefix("gpt2-"): place / name for name in found}


def _from_files(files: list[Path], source: str) -> Tokenizer:
    digest = hashlib.sha256()
    texts = []
    for file in files:
        try:
            data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            texts.append(data.decode("utf-8"))
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: tokenizer cannot be read: {error}") from None
        digest.update(data)
    try:
        made = (
            tokenizers.Tokenizer.from_str(texts[0]) if len(texts) == 1 else _byte_level_bpe(*texts)
        )
    except Exception as error:  # the library raises bare Exception for any damage
        raise CheckpointError(f"{files[0]}: is not a tokenizer: {error}") from None
    return Tokenizer(_Fast(made), source, digest.hexdigest()[:32])


def _from_pieces(file: Path, source: str) -> Tokenizer:
    pieces, digest = open_pieces(file)
    return Tokenizer(pieces, source, digest)


def _byte_level_bpe(vocab_json: str, merges_txt: str) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE from its two published files."""
    vocab = json.loads(vocab_json)
    if not isinstance(vocab, dict) or not vocab:
        raise ValueError("vocab.json holds no tokens")
    merges: list[tuple[str, str]] = []
    for line in merges_txt.splitlines():
        if line and not line.startswith("#version"):
            first, second = line.split(" ")
            merges.append((first, second))
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if END_OF_TEXT in vocab:
        made.add_special_tokens([END_OF_TEXT])
    return made
