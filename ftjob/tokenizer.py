"""Text to token ids and back: tokenizer.json, or GPT-2's vocab.json with merges.txt.

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

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ftjob.checkpoint.resolve import BUILTIN_TOKENIZERS, demo_file
from ftjob.errors import CheckpointError, nearest

# GPT-2's one special token; its two files do not mark it as such.
END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A tokenizer and the facts that identify it.

    `source` is what reports show; `identity` hashes its files' bytes.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, source: str, identity: str) -> None:
        self._tokenizer, self.source, self.identity = tokenizer, source, identity

    @property
    def vocab_size(self) -> int:
        """One more than the highest id it can give."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without start or end tokens."""
        return [e.ids for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; ids the tokenizer does not know are left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def open_tokenizer(spec: str | None, checkpoint: Path | None) -> Tokenizer:
    """The tokenizer named by model.tokenizer, else the checkpoint folder's own, else GPT-2's.

    Raises:
        CheckpointError: where none is there or its files are damaged.
    """
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
    whose = str(place) if spec is not None else "of the checkpoint"
    if place.is_file():
        return _from_files([place], whose)
    if (place / "tokenizer.json").is_file():
        return _from_files([place / "tokenizer.json"], f"tokenizer.json {whose}")
    pair = [place / "vocab.json", place / "merges.txt"]
    if all(f.is_file() for f in pair):
        return _from_files(pair, f"vocab.json + merges.txt {whose}")
    raise CheckpointError(
        f"{place}: no tokenizer.json, and no vocab.json with merges.txt. Name "
        "one with model.tokenizer=PATH, or model.tokenizer=builtin:gpt2."
    )


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
    made.no_truncation()
    made.no_padding()
    return Tokenizer(made, source, digest.hexdigest()[:32])


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
