"""Hugging Face folders: config.json beside model.safetensors, its shards and their index, or the
older pytorch_model.bin in the same three ways.

Reads headers and pickles only, never a weight; `formats` calls it and `load` reads by its index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ftjob.checkpoint.index import CheckpointIndex, read_json
from ftjob.checkpoint.stored import StoredTensor, read_header, shown
from ftjob.checkpoint.torchfile import View, read_torch_file
from ftjob.errors import CheckpointError
from ftjob.model.families import family, family_of

# single file -> its index where there are shards, and the format's name; the first found is read
_FILES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "model.safetensors": ("model.safetensors.index.json", "Hugging Face safetensors"),
        "pytorch_model.bin": ("pytorch_model.bin.index.json", "Hugging Face pytorch_model.bin"),
    }
)


def has_weights(folder: Path) -> bool:
    """Whether there are weights under a name that is read."""
    return any((folder / n).is_file() for single in _FILES for n in (single, _FILES[single][0]))


def open_huggingface(folder: Path) -> CheckpointIndex:
    """The index of a Hugging Face folder.

    Raises:
        CheckpointError: for a missing, damaged or foreign file, by name.
    """
    stated_in = folder / "config.json"
    config = read_json(stated_in)
    prefixes = family(family_of(str(config.get("model_type")))).PREFIXES
    files, index_name, name = _files(folder)
    tensors: dict[str, StoredTensor] = {}
    for file, listed in files.items():
        found = read_header(file) if file.suffix == ".safetensors" else _read_bin(file)
        for tensor in found:
            short = _without_prefix(tensor.name, prefixes)
            if short in tensors:
                raise CheckpointError(
                    f"{file}: tensor {tensor.name} is also in {tensors[short].file.name}"
                )
            tensors[short] = tensor
        if listed is not None and (absent := sorted(listed - {t.name for t in found})):
            raise CheckpointError(
                f"{file}: {index_name} places tensor {absent[0]} here, but the "
                "file does not hold it"
            )
    return CheckpointIndex(folder, config, tensors, name, stated_in)


def _read_bin(file: Path) -> list[StoredTensor]:
    """The tensors of a state dictionary that torch.save wrote."""
    opened = read_torch_file(file)
    opened.refuse_stubs()
    if not isinstance(opened.root, dict):
        raise CheckpointError(f"{file}: holds no dictionary of tensors")
    found = []
    for name, value in opened.root.items():
        if not isinstance(name, str) or not isinstance(value, View):
            raise CheckpointError(f"{file}: {shown(name)} is no tensor")
        found.append(opened.tensor(name, value))
    return found


def _files(folder: Path) -> tuple[dict[Path, set[str] | None], str, str]:
    """The files of a folder, each with the names its index places there; that index's name, and
    the format's."""
    for single, (index_name, name) in _FILES.items():
        if (folder / single).is_file():
            return {folder / single: None}, index_name, name
        if (folder / index_name).is_file():
            return _listed(folder, folder / index_name), index_name, name
    other = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".h5"))
    found = f"; found {', '.join(other[:5])}, which this version does not read" if other else ""
    names = ", ".join(n for single in _FILES for n in (single, _FILES[single][0]))
    raise CheckpointError(f"{folder}: has none of {names}{found}")


def _listed(folder: Path, index: Path) -> dict[Path, set[str] | None]:
    """The shards that an index names."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: has no weight_map")
    files: dict[Path, set[str] | None] = {}
    for name, file in places.items():
        if Path(str(file)).name != file:
            raise CheckpointError(
                f"{index}: places {shown(name)} in {shown(file)!r}, outside the folder"
            )
        path = folder / file
        if not path.is_file():
            raise CheckpointError(f"{index}: names the file {file}, which is absent")
        names = files.setdefault(path, set())
        assert names is not None
        names.add(name)
    return files


def _without_prefix(name: str, prefixes: Sequence[str]) -> str:
    return next(name[len(p) :] for p in (*prefixes, "") if name.startswith(p))
