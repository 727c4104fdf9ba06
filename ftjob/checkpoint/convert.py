"""A conversion: the target is written into a folder of another name, read back, compared tensor by
tensor, given a manifest, and only then gets its own name.

`commands/convert.py` calls it with an opened source; `write` and `settings` make the files.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

import ftjob
from ftjob.checkpoint.fastertransformer import CONFIG_NAME, COPIES, FORMS
from ftjob.checkpoint.formats import open_checkpoint
from ftjob.checkpoint.index import CheckpointIndex, Known, shapes_of
from ftjob.checkpoint.load import FileSource
from ftjob.checkpoint.manifest import UNFINISHED_NAME, write_manifest
from ftjob.checkpoint.ranged import DTYPES
from ftjob.checkpoint.settings import config_ini, config_json, megatron_args
from ftjob.checkpoint.shard import Shape, TensorRule, place_all
from ftjob.checkpoint.specials import GENERATION_NAME
from ftjob.checkpoint.write import (
    Writing,
    write_fastertransformer,
    write_huggingface,
    write_megatron,
)
from ftjob.errors import CheckpointError, ConfigError
from ftjob.model.arch import Arch, Specials
from ftjob.model.families import family
from ftjob.plan import layer_spans

Target = Literal["hf", "fastertransformer", "megatron"]
_CPU = torch.device("cpu")
_WORDS = MappingProxyType({"f32": "F32", "f16": "F16", "bf16": "BF16"})


@dataclass(frozen=True)
class Conversion:
    """What is converted into what. `dtype` is auto or a word of model.dtype; `tokenizer` are the
    files that go along, by their names there, packed where they end in .gz."""

    index: CheckpointIndex
    arch: Arch
    specials: Specials
    rules: tuple[TensorRule, ...]
    to: Target
    out: Path
    tensor: int
    pipeline: int
    dtype: str
    tokenizer: Mapping[str, Path] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Every tensor of the model with its shape."""
        return shapes_of(place_all(self.rules, self.arch.layers, self.arch.encoder_layers))

    @property
    def stored_dtype(self) -> str:
        """The dtype to write, in safetensors' word; mixed and double weights become the widest
        that all formats have."""
        if self.dtype != "auto":
            return _WORDS[self.dtype]
        held = {self.index.tensors[name].dtype for name in self.shapes}
        return held.pop() if len(held) == 1 and "F64" not in held else "F32"

    @property
    def bytes(self) -> int:
        """Bytes of the model's tensors as written, each once."""
        elements = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return elements * DTYPES[self.stored_dtype].itemsize


def convert(work: Conversion, told: Callable[[str, int], None]) -> Path:
    """Do it; the folder that a checkpoint can be loaded from. `told` gets the step and bytes done.

    Raises:
        ConfigError: for a target that exists, a split that does not divide, a model that the format
            has no words for.
        CheckpointError: where the source changed meanwhile, or what is read back differs.
    """
    _check(work)
    partial = work.out.with_name(f"{_partial(work.out)}{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"convert.out={work.out}: cannot be made: {error.strerror}") from None
    try:
        (partial / UNFINISHED_NAME).touch()
        inside = _write(work, partial, told)
        _compare(work, inside, told)
        facts = {
            "ftjob": ftjob.__version__,
            "format": work.to,
            "source": work.index.format,
            "dtype": work.stored_dtype,
        }
        write_manifest(inside, facts)
        _to_disk(partial)
        os.rename(partial, work.out)
    except OSError as error:
        raise ConfigError(
            f"convert.out={work.out}: cannot be written: {error.strerror or error}"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    (work.out / UNFINISHED_NAME).unlink()
    return work.out / inside.relative_to(partial)


def _partial(out: Path) -> str:
    """What the name of an unfinished folder begins with."""
    return f".{out.name}.partial-"


def leftovers(out: Path) -> list[Path]:
    """The unfinished folders that conversions to `out` left, those that still run among them."""
    return sorted(f for f in out.parent.iterdir() if f.name.startswith(_partial(out)))


def _check(work: Conversion) -> None:
    """What can be refused before anything is written."""
    arch = work.arch
    if work.out.exists() or work.out.is_symlink():
        raise ConfigError(
            f"convert.out={work.out}: exists. Nothing is overwritten: remove it, or name another."
        )
    if work.to == "hf" and work.tensor > 1:
        raise ConfigError(
            f"convert.tensor={work.tensor}: convert.to=hf has no tensor ranks; any split loads it."
        )
    if work.to != "megatron" and work.pipeline > 1:
        raise ConfigError(
            f"convert.pipeline={work.pipeline}: only convert.to=megatron has pipeline ranks."
        )
    if arch.heads % work.tensor or arch.ffn % work.tensor:
        raise ConfigError(
            f"convert.tensor={work.tensor}: {arch.heads} heads and {arch.ffn} MLP columns must be "
            "multiples of it."
        )
    if arch.layers % work.pipeline:
        raise ConfigError(
            f"convert.pipeline={work.pipeline}: {arch.layers} layers must be a multiple of it."
        )


def _write(work: Conversion, folder: Path, told: Callable[[str, int], None]) -> Path:
    """Settings, tensors and tokenizer; the folder of them all."""
    config, dtype = work.index.config, work.stored_dtype
    inside = folder / f"{work.tensor}-gpu" if work.to == "fastertransformer" else folder
    inside.mkdir(exist_ok=True)
    with FileSource(work.index, _CPU) as source:
        writing = Writing(source, work.arch, work.shapes, dtype, lambda n: told("write", n))
        if work.to == "hf":
            made = config_json(config, work.arch, work.specials, dtype)
            _write_json(inside / "config.json", made)
            write_huggingface(writing, inside, family(work.arch.family).PREFIXES[0])
        elif work.to == "fastertransformer":
            text = config_ini(config, work.arch, work.specials, dtype, work.tensor)
            (inside / CONFIG_NAME).write_text(text, encoding="utf-8")
            name = work.arch.family
            copies = [c for c in COPIES[name] if work.arch.tied_head or "lm_head" not in c.stored]
            write_fastertransformer(writing, inside, work.tensor, FORMS[name], tuple(copies))
        else:
            stages = layer_spans(work.arch.layers, work.pipeline)
            args = megatron_args(work.arch, dtype, work.tensor, work.pipeline)
            write_megatron(writing, inside, work.tensor, stages, args)
    _write_generation(work, inside)
    for name, file in work.tokenizer.items():
        data = file.read_bytes()
        (inside / name).write_bytes(gzip.decompress(data) if file.suffix == ".gz" else data)
    return inside


def _write_generation(work: Conversion, folder: Path) -> None:
    """The ids that start and end a row: the source's own file, or one with what it means."""
    if (path := work.index.folder / GENERATION_NAME).is_file():
        shutil.copyfile(path, folder / GENERATION_NAME)
    elif work.specials.ends:
        made: dict[str, Any] = {"eos_token_id": list(work.specials.ends)}
        if work.specials.start is not None:
            made["decoder_start_token_id"] = work.specials.start
        _write_json(folder / GENERATION_NAME, made)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(f"{json.dumps(value, indent=2, sort_keys=True)}\n", encoding="utf-8")


def _compare(work: Conversion, folder: Path, told: Callable[[str, int], None]) -> None:
    """Read every tensor back by the format's own reader and compare it bit by bit."""
    known = Known(work.arch.heads, work.arch.vocab)
    written = open_checkpoint(folder, lambda: known, unfinished=True)
    arch = family(work.arch.family).read_config(written.config, written.tensors.keys())
    if arch != work.arch:
        ours, theirs = asdict(work.arch), asdict(arch)
        name = next(k for k in ours if ours[k] != theirs[k])
        raise ConfigError(
            f"convert.to={work.to}: the model's {name}={ours[name]} cannot be stated there; it "
            f"would be read as {theirs[name]}."
        )
    dtype = DTYPES[work.stored_dtype]
    with FileSource(work.index, _CPU) as old, FileSource(written, _CPU) as new:
        for name, shape in work.shapes.items():
            whole = tuple(slice(0, n) for n in shape)
            values = [torch.empty(shape, dtype=dtype, device=_CPU) for _ in range(2)]
            for files, value in zip((old, new), values, strict=True):
                files.read_tensor(name, whole, value)
            ours_bits, theirs_bits = (v.reshape(-1).view(torch.uint8) for v in values)
            if not torch.equal(ours_bits, theirs_bits):
                raise CheckpointError(
                    f"{written.tensors[name].file}: tensor {name} reads back otherwise than it "
                    "was written"
                )
            told("compare", values[1].nbytes)


def _to_disk(folder: Path) -> None:
    """Wait until every file and folder is on the disk, so that the new name finds them whole."""
    for path in [*folder.rglob("*"), folder]:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
