"""Reads of exactly the bytes of a region, from the file into the memory it is meant for.

Any file of dense tensors will do: a safetensors file, a raw .bin, a storage within a larger file.
`load.FileSource` reads all weights through it; the system calls let other threads run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ftjob.checkpoint.shard import Region
from ftjob.checkpoint.stored import StoredTensor
from ftjob.errors import CheckpointError

DTYPES = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
# Bytes converted, turned or sent to a device at a time.
_PIECE = 1 << 20

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def region_shape(region: Region) -> tuple[int, ...]:
    """The shape of a region."""
    return tuple(r.stop - r.start for r in region)


def read_region(file: int, stored: StoredTensor, region: Region, out: torch.Tensor) -> int:
    """Fill `out`, which has the region's shape, from the open `file`; returns the bytes read.

    A tensor of the stored dtype in the CPU's memory is read in place. Another dtype, device or
    order of axes is filled in pieces, through a few megabytes. Each run of bytes that lie behind
    each other is one read, and no byte outside of the region is read.

    Raises:
        CheckpointError: where the file ends early or cannot be read, with file, tensor, expected
            and found bytes.
        ValueError: where the shapes differ (a bug of ours).
    """
    if tuple(out.shape) != region_shape(region):
        raise ValueError(f"{stored.name}: region {region} for a tensor of {list(out.shape)}")
    if out.numel() == 0:
        return 0
    dtype, out = DTYPES[stored.dtype], out.detach()
    axis = _run_axis(stored.shape, region)
    if out.device.type == "cpu" and out.dtype == dtype and out[(0,) * axis].is_contiguous():
        return _read_in_place(file, stored, region, axis, out)
    return _read_in_pieces(file, stored, region, out)


def _run_axis(shape: Sequence[int], region: Region) -> int:
    """The outermost axis within one index of which the region's bytes lie behind each other."""
    axis = max(0, len(shape) - 1)
    while axis > 0 and region_shape(region)[axis] == shape[axis]:
        axis -= 1
    return axis


def _read_in_place(
    file: int, stored: StoredTensor, region: Region, axis: int, out: torch.Tensor
) -> int:
    """Read each run into its place; `out` is dense from `axis` on."""
    size = out.element_size()
    steps = [math.prod(stored.shape[a + 1 :]) * size for a in range(len(region))]
    offset = stored.offset + sum(r.start * s for r, s in zip(region, steps, strict=True))
    run = out[(0,) * axis].numel()
    lines = out.as_strided((*out.shape[:axis], run), (*out.stride()[:axis], 1))
    flat: Bytes = lines.view(torch.uint8).numpy()
    return sum(_read_run(file, stored, part, at) for part, at in _runs(flat, offset, steps))


def _runs(target: Bytes, offset: int, steps: Sequence[int]) -> Iterator[tuple[Bytes, int]]:
    """The runs of a target [..., bytes of a run], each with its place in the file."""
    if target.ndim == 1:
        yield target, offset
        return
    for index, part in enumerate(target):
        yield from _runs(part, offset + index * steps[0], steps[1:])


def _read_run(file: int, stored: StoredTensor, run: Bytes, offset: int) -> int:
    """Fill `run` with the bytes from `offset` on, however many reads that takes."""
    got = 0
    try:
        while got < len(run):
            count = os.preadv(file, [run[got:]], offset + got)  # type: ignore[list-item]
            if count == 0:
                raise CheckpointError(
                    f"{stored.file}: tensor {stored.name}: expected {len(run)} bytes at byte "
                    f"{offset}, found {got}: the file ends early"
                )
            got += count
    except OSError as error:
        raise CheckpointError(
            f"{stored.file}: tensor {stored.name}: {len(run)} bytes at byte {offset} cannot be "
            f"read: {error.strerror}"
        ) from None
    return got


def _read_in_pieces(file: int, stored: StoredTensor, region: Region, out: torch.Tensor) -> int:
    """Read pieces of the region one after the other and copy each to where it belongs."""
    shape, dtype, cpu = region_shape(region), DTYPES[stored.dtype], torch.device("cpu")
    cut = next((a for a, n in enumerate(shape) if n > 1), 0)
    length = shape[cut] if shape else 1
    each = min(length, max(1, _PIECE // (out.numel() // length * dtype.itemsize)))
    buffer = torch.empty(out.numel() // length * each, dtype=dtype, device=cpu)
    # Turned within the cache first, a piece is copied in half the time.
    turns = len(shape) == 2 and cut == 0 and out.stride(0) == 1
    turned = torch.empty(buffer.numel() if turns else 0, dtype=dtype, device=cpu)
    read = 0
    for start in range(0, length, each):
        sizes, part, place = shape, region, out
        if shape:
            count = min(each, length - start)
            first = region[cut].start + start
            sizes = (*shape[:cut], count, *shape[cut + 1 :])
            part = (*region[:cut], slice(first, first + count), *region[cut + 1 :])
            place = out.narrow(cut, start, count)
        piece = buffer[: math.prod(sizes)].view(sizes)
        read += read_region(file, stored, part, piece)
        if turns:
            piece = turned[: piece.numel()].view(sizes[::-1]).copy_(piece.mT).mT
        place.copy_(piece)
    return read
