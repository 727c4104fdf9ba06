"""Ranged reads against slices of the whole tensor: random shapes, regions, types and layouts of
what is filled. Only bytes of the region are asked for, each once, and a file that ends early says
where.
"""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ftjob.checkpoint import ranged
from ftjob.checkpoint.ranged import DTYPES, read_region, region_shape
from ftjob.checkpoint.shard import Region
from ftjob.checkpoint.stored import StoredTensor
from ftjob.errors import CheckpointError

CASES = 400


class Reads:
    """Stands in for os.preadv: notes each place asked for, and gives at most `most` bytes."""

    def __init__(self, most: int | None = None) -> None:
        self.places: list[tuple[int, int]] = []
        self.most = most
        self.real = os.preadv

    def __call__(self, file: int, buffers: list[Any], offset: int) -> int:
        (buffer,) = buffers
        self.places.append((offset, len(buffer)))
        return self.real(file, [buffer[: self.most]], offset)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    noted = Reads()
    monkeypatch.setattr(ranged.os, "preadv", noted)
    return noted


def stored_tensor(path: Path, chance: random.Random, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A random tensor, as a value and as a file that has other bytes before and after it."""
    name = chance.choice(sorted(DTYPES))
    dtype, offset = DTYPES[name], chance.choice([0, 1, 8, 777])
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        bits = torch.tensor([chance.random() < 0.5 for _ in range(count)], dtype=torch.bool)
    else:
        bits = torch.tensor([chance.randrange(100) for _ in range(count)]).to(dtype)
    data = bits.view(torch.uint8).numpy().tobytes() if count else b""
    path.write_bytes(chance.randbytes(offset) + data + chance.randbytes(5))
    return bits.reshape(shape), StoredTensor(path, "w", shape, name, offset)


def region_of(shape: tuple[int, ...], chance: random.Random) -> Region:
    """A random region: axes whole, of one, of some or of none."""
    cuts = []
    for size in shape:
        start, stop = sorted(chance.randint(0, size) for _ in range(2))
        whole, first = (0, size), (start, min(start + 1, size))
        cuts.append(slice(*chance.choice([whole, whole, (start, stop), first])))
    return tuple(cuts)


def layout(whole: torch.Tensor, region: Region, chance: random.Random) -> torch.Tensor:
    """What is to be filled: dense, turned, a part of something larger, or of another dtype."""
    shape = region_shape(region)
    kind = chance.choice(["dense", "turned", "within", "float64"])
    if kind == "turned" and len(shape) >= 2:
        return torch.zeros(*shape[:-2], shape[-1], shape[-2], dtype=whole.dtype).mT
    if kind == "within":
        larger = torch.zeros([n + 2 for n in shape], dtype=whole.dtype)
        return larger[tuple(slice(1, n + 1) for n in shape)]
    return torch.zeros(shape, dtype=torch.float64 if kind == "float64" else whole.dtype)


@pytest.mark.parametrize("piece", [8, 100, 1 << 20])
def test_region_is_the_slice_of_the_whole(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(ranged, "_PIECE", piece)
    chance, seen = random.Random(piece), set()
    for _ in range(CASES):
        shape = tuple(chance.randint(1, 7) for _ in range(chance.randint(0, 4)))
        whole, stored = stored_tensor(tmp_path / "x", chance, shape)
        region = region_of(shape, chance)
        out, reads.places = layout(whole, region, chance), []
        with stored.file.open("rb") as file:
            count = read_region(file.fileno(), stored, region, out)
        wanted = whole[region]
        assert torch.equal(out, wanted.to(out.dtype)), (shape, region, stored)
        numbers = torch.arange(whole.numel()).reshape(shape)[region].flatten().tolist()
        size = whole.element_size()
        asked = [n for at, length in reads.places for n in range(at, at + length)]
        needed = [stored.offset + n * size + byte for n in numbers for byte in range(size)]
        assert sorted(asked) == needed, (shape, region, reads.places)
        assert count == len(needed) == wanted.nbytes
        seen.add((len(shape), stored.dtype))
    assert len(seen) > 40


def test_around_a_part_of_something_larger_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    whole = torch.arange(1.0, 41.0).reshape(5, 8)
    path.write_bytes(whole.numpy().tobytes())
    larger = torch.zeros(6, 9)
    with path.open("rb") as file:
        stored = StoredTensor(path, "w", (5, 8), "F32")
        read_region(file.fileno(), stored, (slice(1, 4), slice(2, 6)), larger[2:5, 3:7])
    assert torch.equal(larger[2:5, 3:7], whole[1:4, 2:6])
    assert larger.count_nonzero() == 12


RUNS: dict[str, tuple[Region, int]] = {
    "the whole": ((slice(0, 4), slice(0, 6), slice(0, 8)), 1),
    "outer axis": ((slice(1, 3), slice(0, 6), slice(0, 8)), 1),
    "one of the outer, some of the next": ((slice(2, 3), slice(1, 4), slice(0, 8)), 1),
    "some of the next": ((slice(0, 4), slice(1, 4), slice(0, 8)), 4),
    "inner axis": ((slice(1, 3), slice(0, 6), slice(2, 5)), 12),
    "one element": ((slice(1, 2), slice(5, 6), slice(7, 8)), 1),
    "nothing": ((slice(1, 1), slice(0, 6), slice(0, 8)), 0),
}


@pytest.mark.parametrize(("region", "runs"), RUNS.values(), ids=RUNS.keys())
def test_bytes_behind_each_other_are_one_read(
    tmp_path: Path, reads: Reads, region: Region, runs: int
) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(4 * 6 * 8 * 2))
    with path.open("rb") as file:
        stored = StoredTensor(path, "w", (4, 6, 8), "F16")
        read_region(
            file.fileno(), stored, region, torch.empty(region_shape(region), dtype=torch.float16)
        )
    assert len(reads.places) == runs


def test_short_reads_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux gives at most 2 GiB a call, and a network file system what it likes."""
    reads = Reads(most=7)
    monkeypatch.setattr(ranged.os, "preadv", reads)
    path, whole = tmp_path / "x", torch.arange(60, dtype=torch.int32).reshape(6, 10)
    path.write_bytes(whole.numpy().tobytes())
    region, out = (slice(1, 6), slice(0, 9)), torch.empty(5, 9, dtype=torch.int32)
    with path.open("rb") as file:
        count = read_region(file.fileno(), StoredTensor(path, "w", (6, 10), "I32"), region, out)
    assert torch.equal(out, whole[region])
    assert (count, len(reads.places)) == (5 * 9 * 4, 5 * 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_file_that_ends_early_says_where(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(4 * 25 + 3))
    stored = StoredTensor(path, "h.0.w", (10, 3), "F32")
    region, out = (slice(2, 10), slice(0, 3)), torch.empty(8, 3, dtype=dtype)
    with path.open("rb") as file, pytest.raises(CheckpointError) as refused:
        read_region(file.fileno(), stored, region, out)
    assert str(refused.value) == (
        f"{path}: tensor h.0.w: expected 96 bytes at byte 24, found 79: the file ends early"
    )


def test_failed_read_is_named(tmp_path: Path) -> None:
    stored = StoredTensor(tmp_path, "w", (2,), "F32")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(CheckpointError, match="tensor w: 8 bytes at byte 0 cannot be read"):
            read_region(folder, stored, (slice(0, 2),), torch.empty(2))
    finally:
        os.close(folder)


def test_tensor_of_another_shape_is_a_bug(tmp_path: Path) -> None:
    stored = StoredTensor(tmp_path, "w", (2, 3), "F32")
    for shape in itertools.permutations([2, 3, 1]):
        with pytest.raises(ValueError, match="for a tensor of"):
            read_region(-1, stored, (slice(0, 2), slice(0, 3)), torch.empty(shape))
