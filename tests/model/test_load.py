"""What a load reads: every tensor rank asks the files for exactly its slices, once, and ranks
together ask for no byte twice but of tensors that all of them hold. Parameters are read in place.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpt2_oracle import CPU, job_config, plan_of, random_gpt2, write_gpt2

from ftjob.checkpoint import ranged
from ftjob.checkpoint.load import FileSource, cut_tensors
from ftjob.checkpoint.shard import Whole
from ftjob.checkpoint.stored import StoredTensor
from ftjob.comm import Solo
from ftjob.errors import CheckpointError
from ftjob.job import ModelSource, open_model
from ftjob.model.decoder import DecoderStage
from ftjob.model.layers import WeightFormat
from ftjob.model.stage import Part, Stage
from ftjob.plan import DeviceSpec, stage_tensors

Counts = np.ndarray[Any, np.dtype[np.int64]]


class Member(Solo):
    """A place in a tensor group that never talks."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def empty_stage(
    source: ModelSource, spec: DeviceSpec, ways: int, weights: WeightFormat, dtype: torch.dtype
) -> Stage:
    part = Part(range(spec.first_layer, spec.last_layer), range(0), spec.first, spec.last)
    return DecoderStage(source.arch, part, weights, (dtype, CPU), Member(spec.tensor, ways))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """How often each byte was asked for; the test has one file, shorter than this."""
    times = np.zeros(1 << 18, np.int64)
    real = os.preadv

    def noted(file: int, buffers: list[Any], offset: int) -> int:
        times[offset : offset + len(buffers[0])] += 1
        return real(file, buffers, offset)

    monkeypatch.setattr(ranged.os, "preadv", noted)
    return times


def bytes_of(stored: StoredTensor) -> Counts:
    """The numbers of a tensor's bytes in the file: [*shape, bytes of an element]."""
    size = {"F32": 4, "F16": 2}[stored.dtype]
    count = size * math.prod(stored.shape)
    return np.arange(stored.offset, stored.offset + count).reshape(*stored.shape, size)


def slices(source: ModelSource, spec: DeviceSpec, ways: int, times: Counts) -> Counts:
    """How often a device needs each byte of the file, from the rules alone."""
    assert source.index is not None
    needed = np.zeros_like(times)
    for placed in stage_tensors(source.rules, spec):
        rule, stored = placed.rule, bytes_of(source.index.tensors[placed.sources[0]])
        for region in rule.cut.regions(rule.shape, spec.tensor, ways):
            needed[stored[region].ravel()] += 1
    return needed


@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (4, 1), (2, 2)], ids=str)
def test_each_device_reads_exactly_its_slices(
    tmp_path: Path, asked: Counts, tensor: int, pipeline: int, dtype: torch.dtype, weights: Any
) -> None:
    write_gpt2(tmp_path, random_gpt2(vocab_size=63), dtype=dtype)
    config = job_config(tmp_path, weights=weights)
    source = open_model(config)
    assert source.index is not None
    together = np.zeros_like(asked)
    for spec in plan_of(config, source, tensor, pipeline).devices:
        asked[:] = 0
        stage = empty_stage(source, spec, tensor, weights, torch.float32)
        held = stage_tensors(source.rules, spec)
        with FileSource(source.index, CPU) as files, torch.no_grad():
            parts = cut_tensors(files, held, spec.tensor, tensor, lambda: None, stage.room)
            for placed, part in parts:
                stage.fill(placed.parameter, part, cuts_input=False)
        needed = slices(source, spec, tensor, asked)
        assert np.array_equal(asked, needed)
        assert needed.max() == 1
        assert files.bytes_read == files.bytes_needed == needed.sum()
        together += asked
    most = np.zeros_like(asked)  # a part of a tensor has one reader, a whole one several
    for rule in source.rules:
        for layer in range(source.arch.layers if rule.place == "layer" else 1):
            stored = bytes_of(source.index.tensors[rule.sources[0].format(layer=layer)])
            if rule.parameter != "head" or pipeline > 1:
                most[stored.ravel()] += tensor if isinstance(rule.cut, Whole) else 1
    assert np.array_equal(together, most)
    assert np.count_nonzero(most) == sum(bytes_of(t).size for t in source.index.tensors.values())


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(torch.float32, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.half)],
    ids=str,
)
def test_parameters_are_filled_in_place_and_weights_share_a_buffer(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    model = write_gpt2(tmp_path, random_gpt2(), dtype=stored)
    config = job_config(tmp_path)
    source = open_model(config)
    assert source.index is not None
    (spec,) = plan_of(config, source).devices
    stage = empty_stage(source, spec, 1, "float", dtype)
    before = {name: p.data_ptr() for name, p in stage.named_parameters() if not p.is_meta}
    buffers = set()
    with FileSource(source.index, CPU) as files, torch.no_grad():
        held = stage_tensors(source.rules, spec)
        for placed, part in cut_tensors(files, held, 0, 1, lambda: None, stage.room):
            assert part.dtype == dtype
            stage.fill(placed.parameter, part, cuts_input=False)
            if placed.rule.transpose:
                buffers.add(part.untyped_storage().data_ptr())
            else:
                assert part is stage.get_parameter(placed.parameter)
                assert part.data_ptr() == before[placed.parameter]
    assert len(buffers) == 1
    assert torch.equal(stage.embed.tokens, model.transformer.wte.weight.to(dtype))


def test_largest_tensors_come_first(tmp_path: Path) -> None:
    write_gpt2(tmp_path, random_gpt2())
    config = job_config(tmp_path)
    source = open_model(config)
    first, last = plan_of(config, source, pipeline=2).devices
    names = [[p.parameter for p in stage_tensors(source.rules, s)] for s in (first, last)]
    assert names[0][:2] == ["embed.tokens", "embed.positions"]
    assert names[1][:3] == ["norm.weight", "norm.bias", "head"]
    assert names[1][3].startswith("layers.1.")


def test_room_of_another_shape_is_a_bug(tmp_path: Path) -> None:
    write_gpt2(tmp_path, random_gpt2())
    config = job_config(tmp_path)
    source = open_model(config)
    assert source.index is not None
    (spec,) = plan_of(config, source).devices
    with FileSource(source.index, CPU) as files:
        held = stage_tensors(source.rules, spec)
        parts = cut_tensors(files, held, 0, 1, lambda: None, lambda _: torch.empty(3, 5))
        with pytest.raises(ValueError, match=r"embed.tokens: holds \[3, 5\], not \[61, 24\]"):
            next(parts)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_file_that_changed_under_the_index_is_named(tmp_path: Path, damage: str) -> None:
    write_gpt2(tmp_path, random_gpt2())
    config, path = job_config(tmp_path), tmp_path / "model.safetensors"
    source = open_model(config)
    assert source.index is not None
    (spec,) = plan_of(config, source).devices
    stage = empty_stage(source, spec, 1, "float", torch.float32)
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 100)
    else:
        path.unlink()
    held = stage_tensors(source.rules, spec)
    with FileSource(source.index, CPU) as files, torch.no_grad():
        parts = cut_tensors(files, held, 0, 1, lambda: None, stage.room)
        with pytest.raises(CheckpointError, match=rf"{path}: .*(ends early|cannot be read)"):
            list(parts)
