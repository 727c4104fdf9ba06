"""A node's devices together ask for no byte of a file twice, in any format and layout, replicas
included, and get what each gets alone; a device that fails or lags behind stops no other.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import write_ft_gpt, write_ft_t5, write_megatron
from gpt2_oracle import random_gpt2, write_gpt2
from loaded import Parts, assert_same, config_of
from t5_files import write_t5

from ftjob.checkpoint import ranged, shared
from ftjob.checkpoint.load import FileSource, cut_tensors
from ftjob.checkpoint.shard import Placed
from ftjob.checkpoint.shared import SharedReads, key_of
from ftjob.config import JobConfig
from ftjob.job import ModelSource, open_model
from ftjob.plan import Machine, Plan, make_plan, stage_tensors

CPU = torch.device("cpu")
Asked = tuple[str, int, int]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Every read of the process: file, offset, length."""
    noted: list[Asked] = []
    real = os.preadv

    def preadv(file: int, buffers: list[Any], offset: int) -> int:
        noted.append((os.readlink(f"/proc/self/fd/{file}"), offset, len(buffers[0])))
        return real(file, buffers, offset)

    monkeypatch.setattr(ranged.os, "preadv", preadv)
    return noted


def layout(config: JobConfig, tensor: int, pipeline: int, data: int) -> tuple[ModelSource, Plan]:
    source = open_model(config)
    split = replace(
        config, parallel=replace(config.parallel, tensor=tensor, pipeline=pipeline, data=data)
    )
    machine = Machine((tensor * pipeline * data,), "cpu", 1 << 34, "test")
    return source, make_plan(split, source.arch, source.rules, machine)


def load_node(source: ModelSource, plan: Plan, reads: SharedReads | None) -> Parts:
    """All devices of the node at once, each by a thread; (device, parameter) -> part."""
    found: Parts = {}
    errors: list[BaseException] = []

    def load(number: int) -> None:
        spec = plan.devices[number]
        held = stage_tensors(source.rules, spec)
        rooms = {p.parameter: torch.empty(p.rule.parameter_shape(plan.tensor)) for p in held}
        assert source.index is not None
        try:
            with FileSource(source.index, CPU, reads) as files:
                for placed, part in cut_tensors(
                    files, held, spec.tensor, plan.tensor, lambda: None, rooms.__getitem__
                ):
                    found[number, placed.parameter] = part
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, args=(n,)) for n in range(len(plan.devices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    return found


def bytes_asked(log: list[Asked]) -> tuple[int, int]:
    """Bytes asked for, and how many of them for a second time."""
    times: dict[str, set[int]] = {}
    total = again = 0
    for file, offset, length in log:
        seen = times.setdefault(file, set())
        numbers = set(range(offset, offset + length))
        again += len(seen & numbers)
        total += length
        seen |= numbers
    return total, again


def slices(source: ModelSource, plan: Plan) -> int:
    """Bytes of the slices that the node's devices need, each slice once."""
    assert source.index is not None
    found: dict[Any, int] = {}
    for spec in plan.devices:
        for placed in stage_tensors(source.rules, spec):
            for region in placed.rule.cut.regions(placed.rule.shape, spec.tensor, plan.tensor):
                size = torch.Size([s.stop - s.start for s in region]).numel()
                for name in placed.sources:
                    width = 2 if source.index.tensors[name].dtype == "F16" else 4
                    found[key_of(name, region)] = size * width
    return sum(found.values())


GPT_FORMATS: dict[str, Callable[[Path, Path], Path]] = {
    "hf": lambda hf, out: hf,
    "ft": lambda hf, out: write_ft_gpt(hf, out, 4, "fp16"),
    "megatron": lambda hf, out: write_megatron(hf, out, ways=2, stages=2, padding=3, version=1.0),
    "plain": lambda hf, out: write_megatron(hf, out, padding=3, version=0, zipped=False),
}
LAYOUTS = [(2, 1, 1), (4, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2), (2, 2, 2)]


@pytest.mark.parametrize("split", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", GPT_FORMATS)
def test_no_byte_is_asked_for_twice(
    tmp_path: Path, log: list[Asked], name: str, split: tuple[int, int, int]
) -> None:
    write_gpt2(tmp_path / "hf", random_gpt2(n_layer=4), dtype=torch.float16)
    folder = GPT_FORMATS[name](tmp_path / "hf", tmp_path / "out")
    source, plan = layout(config_of(folder, arch={"vocab": 61}), *split)
    reads = SharedReads(source.rules, plan.devices, plan.tensor)
    together = load_node(source, plan, reads)
    total, again = bytes_asked(log)
    assert again == 0
    assert total <= 1.05 * slices(source, plan)
    assert not reads._kept
    log.clear()
    assert_same(together, load_node(source, plan, None))
    if split != (1, 1, 1):
        assert bytes_asked(log)[1] > 0, "alone they do ask twice"


def test_t5_too(tmp_path: Path, log: list[Asked]) -> None:
    write_t5(tmp_path / "hf", "v1_0")
    folder = write_ft_t5(tmp_path / "hf", tmp_path / "ft", 2)
    source, plan = layout(config_of(folder, "t5"), 2, 2, 1)
    together = load_node(source, plan, SharedReads(source.rules, plan.devices, plan.tensor))
    total, again = bytes_asked(log)
    assert (again, total) == (0, slices(source, plan))
    assert_same(together, load_node(source, plan, None))


def two_readers(tmp_path: Path) -> tuple[SharedReads, Placed, tuple[slice, ...]]:
    write_gpt2(tmp_path, random_gpt2())
    source, plan = layout(config_of(tmp_path), 2, 1, 1)
    placed = next(p for p in stage_tensors(source.rules, plan.devices[0]) if "norm" in p.parameter)
    region = tuple(slice(0, n) for n in placed.rule.shape)
    return SharedReads(source.rules, plan.devices, 2), placed, region


def test_reader_that_fails_lets_the_next_one_read(tmp_path: Path) -> None:
    reads, placed, region = two_readers(tmp_path)
    key = key_of(placed.sources[0], region)

    def broken(out: torch.Tensor) -> None:
        raise OSError("gone")

    out = torch.zeros(24)
    with pytest.raises(OSError, match="gone"):
        reads.read(key, out, torch.float32, broken, lambda: None)
    for value in (1.0, 2.0):
        fill = partial(torch.Tensor.fill_, value=value)
        reads.read(key, out.zero_(), torch.float32, fill, lambda: None)
        assert out.tolist() == [1.0] * 24, "the second has the first one's copy"


def test_who_waits_gives_signs_of_life_and_can_be_stopped(tmp_path: Path) -> None:
    reads, placed, region = two_readers(tmp_path)
    key = key_of(placed.sources[0], region)
    started, go = threading.Event(), threading.Event()

    def slow(out: torch.Tensor) -> None:
        started.set()
        go.wait(10)

    thread = threading.Thread(
        target=reads.read, args=(key, torch.zeros(24), torch.float32, slow, lambda: None)
    )
    thread.start()
    started.wait(10)
    beats: list[float] = []

    def pulse() -> None:
        beats.append(time.monotonic())
        if len(beats) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        reads.read(key, torch.zeros(24), torch.float32, slow, pulse)
    go.set()
    thread.join(10)
    assert len(beats) == 3


def test_without_room_each_reads_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages that ask in different orders cannot block each other for good."""
    monkeypatch.setattr(shared, "_ROOM", 100)
    monkeypatch.setattr(shared, "_PATIENCE_S", 0.05)
    write_gpt2(tmp_path, random_gpt2(n_layer=4))
    source, plan = layout(config_of(tmp_path), 2, 2, 2)
    reads = SharedReads(source.rules, plan.devices, plan.tensor)
    assert_same(load_node(source, plan, reads), load_node(source, plan, None))
