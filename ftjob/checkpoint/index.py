"""What a checkpoint holds: its config.json, the tensors of its safetensors files, its identity.

Resolves `model.checkpoint` (a folder, a hub id, builtin:NAME or random) to files at hand, checks
the tensors against the family's rules before any is read, and hands the index to `load`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjob.checkpoint.shard import Placed
from ftjob.checkpoint.stored import StoredTensor, read_header
from ftjob.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class CheckpointIndex:
    """A Hugging Face folder: its config and tensors, by name without the family's prefix."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    def identity(self) -> str:
        """A hash of config, tensor names, shapes and dtypes, file sizes, and a few bytes of each
        file, so that another training of the same shape is another checkpoint."""
        files = sorted({t.file for t in self.tensors.values()})
        facts = [
            self.config,
            [[f.name, f.stat().st_size, sampled_bytes(f).hex()] for f in files],
            sorted([n, t.shape, t.dtype] for n, t in self.tensors.items()),
        ]
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


def open_index(folder: Path, prefixes: Sequence[str]) -> CheckpointIndex:
    """The index of a Hugging Face folder; reads headers only.

    Raises:
        CheckpointError: for a missing, damaged or foreign file, by name.
    """
    config = read_json(folder / "config.json")
    tensors: dict[str, StoredTensor] = {}
    for file, listed in _files(folder).items():
        found = read_header(file)
        for tensor in found:
            short = _without_prefix(tensor.name, prefixes)
            if short in tensors:
                raise CheckpointError(
                    f"{file}: tensor {tensor.name} is also in {tensors[short].file.name}"
                )
            tensors[short] = tensor
        if listed is not None and (absent := sorted(listed - {t.name for t in found})):
            raise CheckpointError(
                f"{file}: {INDEX_NAME} places tensor {absent[0]} here, but the "
                "file does not hold it"
            )
    return CheckpointIndex(folder, config, tensors)


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a folder, each with the names its index places there."""
    single, index = folder / "model.safetensors", folder / INDEX_NAME
    if single.is_file():
        return {single: None}
    if not index.is_file():
        other = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".h5"))
        found = f"; found {', '.join(other[:5])}, which this version does not read" if other else ""
        raise CheckpointError(f"{folder}: neither model.safetensors nor {INDEX_NAME}{found}")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: has no weight_map")
    files: dict[Path, set[str] | None] = {}
    for name, file in places.items():
        if Path(str(file)).name != file:
            raise CheckpointError(f"{index}: places {name} in {file!r}, outside the folder")
        path = folder / file
        if not path.is_file():
            raise CheckpointError(f"{index}: names the file {file}, which is absent")
        names = files.setdefault(path, set())
        assert names is not None
        names.add(name)
    return files


def _without_prefix(name: str, prefixes: Sequence[str]) -> str:
    return next(name[len(p) :] for p in (*prefixes, "") if name.startswith(p))


def check_tensors(
    index: CheckpointIndex, model: Sequence[Placed], ignored: Sequence[str]
) -> list[str]:
    """Check that the whole model finds its tensors in the right shapes and none is left over.

    Returns the names of the tensors ignored on purpose.

    Raises:
        CheckpointError: with file, tensor, expected and found.
    """
    expected = {name: placed.rule.shape for placed in model for name in placed.sources}
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
