"""The files of a Megatron-LM checkpoint: which iteration's, one for each tensor and pipeline rank,
and the tensors of each by the names of the newest version.

Nothing is executed and no tensor read; `megatron` maps the names to the model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjob.checkpoint.forms import Laid
from ftjob.checkpoint.shard import Shape
from ftjob.checkpoint.stored import StoredTensor, shown
from ftjob.checkpoint.torchfile import TorchFile, View
from ftjob.errors import CheckpointError

FILE_NAME = "model_optim_rng.pt"
LATEST_NAME = "latest_checkpointed_iteration.txt"
LAYER = re.compile(r"(encoder\.layers\.)(\d{1,6})(\..*)")
_RANK_FOLDERS = (
    re.compile(r"mp_rank_(\d{2,5})(?:_(\d{3,5}))?"),
    re.compile(r"tp_rank_(\d{2,5})_pp_rank_(\d{3,5})"),
)


@dataclass(frozen=True)
class RankFile:
    """One file: its tensors by the names of the newest version, layers as in the whole model."""

    file: Path
    opened: TorchFile
    tensors: Mapping[str, View]

    def stored(self, name: str, laid: Laid, axes: int) -> StoredTensor:
        """A tensor of the file, which has so many axes, in the shape it is laid out in.

        Raises:
            CheckpointError: where it is missing or has another shape.
        """
        expected = _merged(laid.shape, axes)
        view = self.tensors.get(name)
        if view is None:
            raise CheckpointError(f"{self.file}: tensor {name} {list(expected)} is missing")
        if view.shape != expected:
            raise CheckpointError(
                f"{self.file}: tensor {name}: expected shape {list(expected)}, found "
                f"{list(view.shape)}"
            )
        found = self.opened.tensor(name, view)
        if found.dtype not in ("F32", "F16", "BF16", "F64"):
            raise CheckpointError(
                f"{self.file}: tensor {name}: expected a float dtype, found {found.dtype}"
            )
        return StoredTensor(found.file, name, laid.shape, found.dtype, found.offset)


def _merged(shape: Shape, axes: int) -> Shape:
    """The laid shape as the file has it: the axes of the split one, which come first, are one."""
    extra = len(shape) - axes
    return (math.prod(shape[: extra + 1]), *shape[extra + 1 :])


def folder_inside(folder: Path) -> Path | None:
    """The folder with the ranks' folders: this one, or the iteration in it that is the latest; None
    where there is none.

    Raises:
        CheckpointError: where the latest is absent, or nothing says which of several it is.
    """
    if any(_rank_of(f) for f in folder.iterdir()):
        return folder
    latest = folder / LATEST_NAME
    found = sorted(
        f.name
        for f in folder.iterdir()
        if f.name == "release" or re.fullmatch(r"iter_\d{7,}", f.name)
    )
    if latest.is_file():
        said = latest.read_bytes()[:64].decode("ascii", "replace").strip()
        name = said if said == "release" else f"iter_{said:0>7}"
        if name not in found:
            raise CheckpointError(
                f"{latest}: says {shown(said)}, but there is no folder {shown(name)}; found: "
                f"{', '.join(found) or 'none'}"
            )
        return folder / name
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: holds {', '.join(found)} and no {LATEST_NAME}: name one of them"
        )
    return folder / found[0] if found else None


def _rank_of(folder: Path) -> tuple[int, int] | None:
    """Tensor and pipeline rank of a rank's folder."""
    for pattern in _RANK_FOLDERS:
        if found := pattern.fullmatch(folder.name):
            return int(found[1]), int(found[2] or 0)
    return None


def rank_files(folder: Path) -> dict[tuple[int, int], Path]:
    """The file of each (tensor, pipeline) rank; none may be missing."""
    files: dict[tuple[int, int], Path] = {}
    for each in sorted(folder.iterdir()):
        if (place := _rank_of(each)) is None:
            continue
        if place in files:
            raise CheckpointError(f"{each}: is the same rank as {files[place].parent.name}")
        files[place] = each / FILE_NAME
        if not files[place].is_file():
            held = sorted(f.name for f in each.iterdir())[:5] if each.is_dir() else []
            raise CheckpointError(
                f"{files[place]}: is missing; found {', '.join(held) or 'nothing'}"
            )
    ways, stages = (1 + max(place[i] for place in files) for i in (0, 1))
    if ways * stages > 1 << 16 or len(files) != ways * stages:
        absent = next((t, p) for p in range(stages) for t in range(ways) if (t, p) not in files)
        raise CheckpointError(
            f"{folder}: tensor rank {absent[0]} of pipeline rank {absent[1]} is missing; found "
            f"{len(files)} of {ways} x {stages} ranks"
        )
    return files


def version_of(opened: Mapping[tuple[int, int], TorchFile], known: Collection[int]) -> int:
    """The checkpoint version, 0 where none is stated, alike in all files."""
    found: dict[int, Path] = {}
    for each in opened.values():
        if not isinstance(each.root, dict):
            raise CheckpointError(f"{each.file}: holds no dictionary")
        stated = each.root.get("checkpoint_version", 0)
        if type(stated) not in (int, float) or stated not in known:
            raise CheckpointError(
                f"{each.file}: checkpoint_version={shown(stated)} is not known; known: "
                f"{', '.join(map(str, known))}"
            )
        found.setdefault(int(stated), each.file)
    if len(found) > 1:
        (one, file), (other, another), *_ = found.items()
        raise CheckpointError(f"{another}: checkpoint_version={other}, but {file} has {one}")
    return next(iter(found))


def model_of(opened: TorchFile) -> dict[str, View]:
    """The tensors under model, by their places in the newest version's words."""
    model = opened.root.get("model")
    if not isinstance(model, dict):
        others = ", ".join(sorted(k for k in opened.root if str(k).startswith("model")))
        hint = f"; found {shown(others)}" if others else ""
        raise CheckpointError(f"{opened.file}: holds no model{hint}")
    found: dict[str, View] = {}
    for name, value in _leaves(model):
        short = name.removeprefix("language_model.")
        short = re.sub(r"^transformer\.", "encoder.", short)
        short = short.replace(".attention.", ".self_attention.")
        if name.endswith("_extra_state"):
            continue
        if not isinstance(value, View) or short in found:
            raise CheckpointError(f"{opened.file}: model.{shown(name)} is no tensor of its own")
        found[short] = value
    if not any(LAYER.fullmatch(name) for name in found):
        names = ", ".join(sorted(found)[:3])
        raise CheckpointError(
            f"{opened.file}: model has no language_model with layers; found {shown(names)}"
        )
    return found


def _leaves(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Every value below nested dictionaries, with the keys on the way; none is deeper than six."""
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        if isinstance(value, dict) and depth < 6:
            prefix = f"{path}." if path else ""
            waiting += [(f"{prefix}{k}", v, depth + 1) for k, v in reversed(value.items())]
        else:
            yield path, value
