"""A checkpoint in CTranslate2's format, and its tokens as the texts that CTranslate2 takes."""

from __future__ import annotations

import json
from pathlib import Path


def convert(source: Path, folder: Path) -> None:
    """Convert to float32; the folder may exist."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source)).convert(str(folder), quantization="float32", force=True)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    # The converter writes null where the tokenizer has no unknown token and the loader refuses it.
    config["unk_token"] = config.get("unk_token") or "<|endoftext|>"
    config = {k: v for k, v in config.items() if v is not None}
    path.write_text(json.dumps(config))


def token_texts(source: Path) -> list[str]:
    """The text of each id, as tokenizer.json has them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    return [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
