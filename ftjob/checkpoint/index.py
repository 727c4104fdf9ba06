"""What a checkpoint holds, whatever its format: configuration, tensors, identity.

`formats` opens a folder and gives the index; the tensors are checked here against the family's
rules before any is read, and `load` reads them by it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftjob.checkpoint.manifest import manifest_of
from ftjob.checkpoint.shard import Placed
from ftjob.checkpoint.stored import Held
from ftjob.errors import CheckpointError

# Megatron-LM pads to a multiple of 128 rows for each tensor rank, and some to 1024.
MOST_PADDING = 8 * 1024


@dataclass(frozen=True)
class Known:
    """What configuration and tokenizer say of a model, for files that do not say it themselves:
    heads, vocabulary as configured, words of the tokenizer, and the id that ends a text."""

    heads: int | None = None
    vocab: int | None = None
    words: int | None = None
    end: int | None = None

    def padded(self, rows: int) -> int | None:
        """The tokenizer's words, where so many rows can be these with padding behind; another
        tokenizer than the model's has far fewer."""
        few = self.words is not None and 0 <= rows - self.words <= MOST_PADDING
        return self.words if few else None


@dataclass(frozen=True)
class CheckpointIndex:
    """A checkpoint's folder and what its files hold.

    `config` has the keys of transformers' config.json, read from the file `stated_in`; `tensors`
    has transformers' names without the family's prefix, orders of axes and shapes, wherever the
    bytes lie. `format` is for people, `unused` names what was left out on purpose, and `remarks`
    says what else a report must tell.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Held]
    format: str
    stated_in: Path
    unused: tuple[str, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Every file that holds a tensor, once, in a fixed order."""
        return sorted({p.stored.file for t in self.tensors.values() for p in t.pieces})

    def identity(self) -> str:
        """A hash of config, tensor names, shapes and dtypes, file sizes, and a few bytes of each
        file, so that another training of the same shape is another checkpoint."""
        facts: list[Any] = [
            self.config,
            [
                [str(f.relative_to(self.folder)), f.stat().st_size, sampled_bytes(f).hex()]
                for f in self.files
            ],
            sorted([n, t.shape, t.dtype] for n, t in self.tensors.items()),
        ]
        if (manifest := manifest_of(self.folder)) is not None:
            facts.append(hashlib.sha256(manifest.read_bytes()).hexdigest())
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def sampled_bytes(path: Path, places: int = 16, length: int = 64) -> bytes:
    """The bytes at evenly spread places of a file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        parts = []
        for i in range(1, places + 1):
            file.seek(max(0, size * i // places - length))
            parts.append(file.read(length))
    return b"".join(parts)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: naming the file, and the line where it is not JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return value


def shapes_of(model: Sequence[Placed]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by name, with its shape."""
    return {name: placed.rule.shape for placed in model for name in placed.sources}


def check_layers(layers: int, held: int, where: Path) -> None:
    """Refuse more layers than there are tensors, before all of them are named.

    Raises:
        CheckpointError: with both numbers.
    """
    if layers > held:
        raise CheckpointError(f"{where}: says {layers} layers, but there are {held} tensors")


def check_tensors(
    index: CheckpointIndex, model: Sequence[Placed], ignored: Sequence[str]
) -> list[str]:
    """Check that the whole model finds its tensors in the right shapes and none is left over.

    Returns the names of the tensors ignored on purpose.

    Raises:
        CheckpointError: with file, tensor, expected and found.
    """
    expected = shapes_of(model)
    for name, shape in expected.items():
        stored = index.tensors.get(name)
        if stored is None:
            raise CheckpointError(f"{index.folder}: tensor {name} {list(shape)} is missing")
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.file}: tensor {stored.name}: expected shape "
                f"{list(shape)}, found {list(stored.shape)}"
            )
        if stored.dtype not in ("F32", "F16", "BF16", "F64"):
            raise CheckpointError(
                f"{stored.file}: tensor {stored.name}: expected a float dtype, found {stored.dtype}"
            )
    patterns = [re.compile(re.escape(p).replace(r"\{layer\}", r"\d+") + r"\Z") for p in ignored]
    extra = sorted(set(index.tensors) - set(expected))
    for name in extra:
        if not any(p.match(name) for p in patterns):
            stored = index.tensors[name]
            raise CheckpointError(
                f"{stored.file}: tensor {stored.name} {list(stored.shape)} "
                "belongs to no part of the model"
            )
    return extra
