"""SentencePiece models, as T5 and mT5 checkpoints without a tokenizer.json have them.

Pieces are the library's own business; the tokens that a checkpoint adds behind them are this
file's. `tokenizer` opens it like the other kinds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftjob.checkpoint.index import read_json
from ftjob.errors import CheckpointError

_SPACE = "\u2581"  # how SentencePiece writes a space


class Pieces:
    """A SentencePiece model and the tokens `added` to it, text -> id.

    An added token in a text is one id; what lies between two is tokenised by itself. Special are
    the model's control and unknown pieces and all added tokens.
    """

    def __init__(self, processor: Any, added: Mapping[str, int]) -> None:
        self._processor, self._added = processor, dict(added)
        self._size = int(processor.GetPieceSize())
        special = (i for i in range(self._size) if processor.IsControl(i) or processor.IsUnknown(i))
        self._special = {i: str(processor.IdToPiece(i)) for i in special}
        self._special |= {number: text for text, number in added.items()}
        longest = sorted(added, key=len, reverse=True)
        self._between = re.compile(f"({'|'.join(map(re.escape, longest))})") if added else None

    @property
    def vocab_size(self) -> int:
        """One more than the highest id it can give."""
        return max([self._size, *(number + 1 for number in self._added.values())])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without start or end tokens."""
        if self._between is None:
            return self._encode(texts)
        parts = [self._between.split(text) for text in texts]
        found = iter(self._encode([p for part in parts for p in part[::2]]))
        rows: list[list[int]] = []
        for part in parts:
            row: list[int] = []
            for number, text in enumerate(part):
                row += [self._added[text]] if number % 2 else next(found)
            rows.append(row)
        return rows

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # one thread: the others of this machine compute
        ids: list[list[int]] = self._processor.Encode(list(texts), out_type=int, num_threads=1)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of ids; unknown ids are left out, and special tokens where asked."""
        special = self._special
        kept = [i for i in ids if (not skip_special if i in special else 0 <= i < self._size)]
        texts: list[str] = []
        for are_special, run in itertools.groupby(kept, special.__contains__):
            if are_special:
                texts += [special[i] for i in run]
                continue
            pieces = list(run)
            # the library drops a text's first space, which is one too many at the start alone
            lost = texts and self._processor.IdToPiece(pieces[0]).startswith(_SPACE)
            texts.append(" " * bool(lost) + self._processor.Decode(pieces))
        return "".join(texts)


def open_pieces(file: Path) -> tuple[Pieces, str]:
    """A SentencePiece file with the tokens that tokenizer_config.json beside it adds, and the hash
    of both.

    Raises:
        CheckpointError: where one is damaged, by name.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        data = file.read_bytes()
        processor.LoadFromSerializedProto(data)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{file}: is not a SentencePiece model: {error}") from None
    if processor.GetPieceSize() == 0:
        raise CheckpointError(f"{file}: is not a SentencePiece model: it holds no pieces")
    added = _added(file.parent / "tokenizer_config.json", processor.GetPieceSize())
    digest = hashlib.sha256(data + json.dumps(added, sort_keys=True).encode())
    return Pieces(processor, added), digest.hexdigest()[:32]


def _added(path: Path, pieces: int) -> dict[str, int]:
    """The tokens behind the pieces: those of `added_tokens_decoder`, else `extra_ids` of T5's
    sentinels, which count down towards the end of the vocabulary. Neither: none.
    """
    config = read_json(path) if path.is_file() else {}
    count, listed = config.get("extra_ids", 0), config.get("added_tokens_decoder", {})
    if type(count) is not int or not 0 <= count <= 10_000:
        raise CheckpointError(f"{path}: extra_ids={count!r} must be a number from 0 to 10000")
    if not listed:
        return {f"<extra_id_{i}>": pieces + count - 1 - i for i in range(count)}
    try:
        tokens = {str(token["content"]): int(number) for number, token in listed.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: added_tokens_decoder must hold ids, each with its content"
        ) from None
    if any(not text or number < 0 for text, number in tokens.items()):
        raise CheckpointError(f"{path}: added_tokens_decoder holds an empty token or a negative id")
    return tokens
