"""A stream of already cut tensors: what one device holds, each once, in the device's dtype.

Reads only the slices the shard rules name (or makes them, for random weights), into the parameter
itself where it holds them as they come; `device` sees to it that every parameter is filled once.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from ftjob.checkpoint.index import CheckpointIndex
from ftjob.checkpoint.random import fill_random
from ftjob.checkpoint.ranged import DTYPES, read_region, region_shape
from ftjob.checkpoint.shard import Placed, Region
from ftjob.checkpoint.shared import SharedReads, key_of
from ftjob.checkpoint.stored import Piece
from ftjob.errors import CheckpointError

# FasterTransformer's folders have thousands of files; a device holds this many open.
_OPEN_FILES = 16


class Source(Protocol):
    """Where slices come from, and the device that they are for."""

    @property
    def device(self) -> torch.device:
        """Where tensors are to be made."""

    def read(self, placed: Placed, number: int, region: Region, out: torch.Tensor) -> None:
        """Fill `out` with the elements of `region` of the source of that number, in the
        checkpoint's orientation; `out` has any float dtype and order of axes."""


class RandomSource:
    """Slices of the seeded random model."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def read(self, placed: Placed, number: int, region: Region, out: torch.Tensor) -> None:
        """Make the elements of `region` on the device of `out`."""
        rule, name = placed.rule, placed.sources[number]
        std = rule.std_of(number)
        fill_random(out, self.seed, name, rule.shape, region, mean=rule.mean, std=std)


class FileSource:
    """Slices of the files of an index; a context manager that holds them open.

    `bytes_read` counts the bytes that reads gave, `bytes_needed` those of the slices read.
    `shared` are the reads of all the node's devices, `pulse` is called while waiting for one.
    """

    def __init__(
        self,
        index: CheckpointIndex,
        device: torch.device,
        shared: SharedReads | None = None,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        self.index, self.device = index, device
        self.shared, self.pulse = shared, pulse
        self.bytes_read = self.bytes_needed = 0
        self._files: OrderedDict[Path, int] = OrderedDict()

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *error: object) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def read(self, placed: Placed, number: int, region: Region, out: torch.Tensor) -> None:
        """Read the elements of `region`, and no other bytes; none that another device of the node
        has read, where the source is one of several.

        Raises:
            CheckpointError: where the file changed under the index.
        """
        name = placed.sources[number]
        if self.shared is None:
            self.read_tensor(name, region, out)
            return
        dtype = DTYPES[self.index.tensors[name].dtype]
        reads = partial(self.read_tensor, name, region)
        self.shared.read(key_of(name, region), out, dtype, reads, self.pulse)

    def read_tensor(self, name: str, region: Region, out: torch.Tensor) -> None:
        """The same of the index's tensor of that name."""
        for piece in self.index.tensors[name].pieces:
            if (box := _overlap(piece.at, region)) is None:
                continue
            stored, place = piece.region(box), _part(out, region, box, piece)
            dtype = DTYPES[piece.stored.dtype]
            self.bytes_needed += math.prod(region_shape(box)) * dtype.itemsize
            self.bytes_read += read_region(
                self._open(piece.stored.file), piece.stored, stored, place
            )

    def _open(self, path: Path) -> int:
        """The file's number; the files used longest ago are closed again."""
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
            if len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(path)
        return self._files[path]


def _overlap(one: Region, other: Region) -> Region | None:
    """What two boxes share, or None: they are apart."""
    box = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return None if any(s.start >= s.stop for s in box) else box


def _part(out: torch.Tensor, region: Region, box: Region, piece: Piece) -> torch.Tensor:
    """The part of `out`, which holds `region`, that is `box`, in the order of the stored axes."""
    for axis, (whole, cut) in enumerate(zip(region, box, strict=True)):
        out = out.narrow(axis, cut.start - whole.start, cut.stop - cut.start)
    out = out.permute([axis for axis in piece.axes if axis is not None])
    for number in (n for n, axis in enumerate(piece.axes) if axis is None):
        out = out.unsqueeze(number)
    return out


def cut_tensors(
    source: Source,
    held: list[Placed],
    rank: int,
    ways: int,
    pulse: Callable[[], None],
    room: Callable[[str], torch.Tensor],
) -> Iterator[tuple[Placed, torch.Tensor]]:
    """Each placed tensor with this tensor rank's part of it, in the parameter's orientation.

    `room` gives the tensor that a parameter's part is read into, which is then the part. Where
    that is on "meta", the part is of its shape and dtype and is valid until the next is asked for:
    all of these share one buffer, so that a load leaves no holes behind among the weights.
    `pulse` is called after each one, as a sign of life. Padded vocabulary rows are zero.

    Raises:
        ValueError: where a room has another shape than the part (a wrong rule, so a bug of ours).
    """
    rooms = {placed.parameter: room(placed.parameter) for placed in held}
    shared = max((r.nbytes for r in rooms.values() if r.is_meta), default=0)
    buffer = torch.empty(shared, dtype=torch.uint8, device=source.device)
    # What was freed between two packed weights stays with the process otherwise: 100 MB of 1.4 GB.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
    for placed in held:
        rule, part = placed.rule, rooms[placed.parameter]
        shape = rule.parameter_shape(ways)
        if part.shape != shape:
            raise ValueError(f"{placed.parameter}: holds {list(part.shape)}, not {list(shape)}")
        if part.is_meta:
            part = buffer[: part.nbytes].view(part.dtype).view(shape)
        for number, place in enumerate(part.chunk(len(placed.sources))):
            _fill(source, placed, number, rank, ways, place)
        yield placed, part
        trim(0)
        pulse()


def _fill(
    source: Source, placed: Placed, number: int, rank: int, ways: int, place: torch.Tensor
) -> None:
    """Put a rank's part of one source into its place in the parameter."""
    rule = placed.rule
    out = place.mT if rule.transpose else place
    axis, filled = rule.cut.axis, 0
    for region in rule.cut.regions(rule.shape, rank, ways):
        size = region[axis].stop - region[axis].start
        source.read(placed, number, region, out.narrow(axis, filled, size))
        filled += size
    out.narrow(axis, filled, out.shape[axis] - filled).zero_()
