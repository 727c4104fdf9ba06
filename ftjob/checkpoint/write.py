"""Checkpoint files of the three formats, filled tensor by tensor from an index of any format.

`convert` opens the source and reads back what is written here. Only the tensor in hand is in
memory, for Megatron-LM the file in hand; layouts come from the same `Form`s that reading uses.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ftjob.checkpoint.forms import Box, Laid, lay, placed_forms
from ftjob.checkpoint.load import FileSource
from ftjob.checkpoint.megatron import PADDED, gpt_forms
from ftjob.checkpoint.megatron_files import FILE_NAME, LATEST_NAME
from ftjob.checkpoint.ranged import DTYPES
from ftjob.checkpoint.shard import Shape
from ftjob.errors import ConfigError
from ftjob.model.arch import Arch

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Writing:
    """One conversion: the open source, the model, the dtype to write, and who is told of bytes."""

    source: FileSource
    arch: Arch
    shapes: Mapping[str, Shape]
    dtype: str
    told: Callable[[int], None]

    def whole(self, name: str) -> torch.Tensor:
        """A tensor of the model in the dtype to write."""
        out = torch.empty(self.shapes[name], dtype=DTYPES[self.dtype], device=_CPU)
        self.source.read_tensor(name, tuple(slice(0, n) for n in out.shape), out)
        return self.checked(name, out)

    def laid(self, names: tuple[str, ...], laid: Laid) -> torch.Tensor:
        """A stored tensor with its boxes filled; what is in no box is zero."""
        out = torch.zeros(laid.shape, dtype=DTYPES[self.dtype], device=_CPU)
        for box in laid.boxes:
            self.source.read_tensor(names[box.source], box.at, _place(out, box))
        return self.checked(names[0], out)

    def checked(self, name: str, out: torch.Tensor) -> torch.Tensor:
        """Refuse numbers that the dtype cannot hold: they would be infinite.

        Raises:
            ConfigError: naming the tensor.
        """
        narrower = self.source.index.tensors[name].dtype != self.dtype
        if narrower and not bool(torch.isfinite(out).all()):
            raise ConfigError(
                f"convert.dtype: tensor {name} holds numbers that {self.dtype} cannot: they would "
                "become infinite. Use convert.dtype=bf16 or f32."
            )
        self.told(out.nbytes)
        return out


def _place(out: torch.Tensor, box: Box) -> torch.Tensor:
    """The view of a stored tensor that a box fills, in the model's order of axes."""
    axes: list[int] = []
    for number, (axis, start) in enumerate(zip(box.axes, box.start, strict=True)):
        if axis is not None:
            size = box.at[axis].stop - box.at[axis].start
            out = out.narrow(number, start, size)
            axes.append(axis)
        else:
            out = out.narrow(number, start, 1)
    for number in reversed([n for n, axis in enumerate(box.axes) if axis is None]):
        out = out.squeeze(number)
    return out.permute([axes.index(a) for a in range(len(axes))])


def write_file(path: Path, parts: Iterator[torch.Tensor] | list[torch.Tensor], head: bytes) -> None:
    """A file of `head` and the tensors' bytes behind each other, on the disk before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        for part in parts:
            _write_tensor(file, part)
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(file: BinaryIO, value: torch.Tensor) -> None:
    if value.numel():
        file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_huggingface(writing: Writing, folder: Path, prefix: str) -> None:
    """model.safetensors: a length, a JSON header, then every tensor in the header's order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, size = 0, DTYPES[writing.dtype].itemsize
    for name, shape in writing.shapes.items():
        end = offset + size * torch.Size(shape).numel()
        entry = {"dtype": writing.dtype, "shape": list(shape), "data_offsets": [offset, end]}
        header[name if name == "lm_head.weight" else f"{prefix}{name}"] = entry
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as safetensors aligns
    head = len(text).to_bytes(8, "little") + text
    tensors = (writing.whole(name) for name in writing.shapes)
    write_file(folder / "model.safetensors", tensors, head)


def write_fastertransformer(
    writing: Writing, folder: Path, ways: int, forms: tuple[Any, ...], copies: tuple[Any, ...]
) -> None:
    """A .bin file for each tensor, or for each tensor and rank."""
    for placed in (*placed_forms(forms, writing.shapes), *placed_forms(copies, writing.shapes)):
        for rank in range(ways if placed.ranked else 1):
            laid = lay(placed.form, placed.shape, rank, ways, writing.arch.heads)
            value = writing.laid(placed.sources, laid)
            write_file(folder / placed.name(rank), [value], b"")


def write_megatron(
    writing: Writing, folder: Path, ways: int, stages: list[tuple[int, int]], args: dict[str, Any]
) -> None:
    """release/mp_rank_*: version 3.0, the vocabulary padded to `args`' padded_vocab_size."""
    for stage, (first, last) in enumerate(stages):
        for rank in range(ways):
            root = {
                "args": argparse.Namespace(**args),
                "checkpoint_version": 3.0,
                "iteration": 0,
                "model": _stage_of(writing, rank, ways, (first, last), stage, len(stages), args),
            }
            suffix = f"_{stage:03d}" if len(stages) > 1 else ""
            path = folder / "release" / f"mp_rank_{rank:02d}{suffix}" / FILE_NAME
            path.parent.mkdir(parents=True)
            with path.open("wb") as file:
                torch.save(root, file)
                file.flush()
                os.fsync(file.fileno())
    (folder / LATEST_NAME).write_text("release", encoding="ascii")


def _stage_of(
    writing: Writing,
    rank: int,
    ways: int,
    layers: tuple[int, int],
    stage: int,
    stages: int,
    args: dict[str, Any],
) -> dict[str, Any]:
    """The tree of one file: what a stage holds, its layers numbered from 0."""
    encoder: dict[str, torch.Tensor] = {}
    embedding: dict[str, dict[str, torch.Tensor]] = {}
    model: dict[str, Any] = {"language_model": {"embedding": embedding, "encoder": encoder}}
    rows = args["padded_vocab_size"]
    for placed in placed_forms(gpt_forms(3), writing.shapes):
        part, _, name = placed.stored.partition(".")
        number = int(name.split(".")[1]) if name.startswith("layers.") else None
        padded = rows if placed.sources[0] in PADDED else None
        last = stage == stages - 1
        if number is not None:
            here = layers[0] <= number < layers[1]
        else:
            here = stage == 0 if part == "embedding" else last
        copied = placed.sources == ("wte.weight",) and last and stage > 0 and writing.arch.tied_head
        if not here and not copied:
            continue
        laid = lay(placed.form, placed.shape, rank, ways, writing.arch.heads, padded)
        value = writing.laid(placed.sources, laid)
        merged = len(laid.shape) - len(placed.shape)
        value = value.flatten(0, merged) if merged else value
        if copied:
            model["word_embeddings_for_head"] = {"weight": value}
        elif part == "embedding":
            embedding[name.removesuffix(".weight")] = {"weight": value}
        elif part == "output_layer":
            model["language_model"]["output_layer"] = {"weight": value}
        elif number is not None:
            rest = name.split(".", 2)[2]
            encoder[f"layers.{number - layers[0]}.{rest}"] = value
        else:
            encoder[name] = value
    if not embedding:
        del model["language_model"]["embedding"]
    return model
