"""A stream of already cut tensors: what one device holds, each once, in the device's dtype.

Reads only the slices the shard rules name (or makes them, for random weights), into the parameter
itself where it holds them as they come; `device` sees to it that every parameter is filled once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch

from ftjob.checkpoint.index import CheckpointIndex
from ftjob.checkpoint.random import fill_random
from ftjob.checkpoint.ranged import DTYPES, read_region, region_shape
from ftjob.checkpoint.shard import Placed, Region
from ftjob.errors import CheckpointError


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

    `bytes_read` counts the bytes that reads gave, `bytes_needed` those of the slices asked for.
    """

    def __init__(self, index: CheckpointIndex, device: torch.device) -> None:
        self.index, self.device = index, device
        self.bytes_read = self.bytes_needed = 0
        self._stack = ExitStack()
        self._files: dict[Path, int] = {}

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._files.clear()

    def read(self, placed: Placed, number: int, region: Region, out: torch.Tensor) -> None:
        """Read the elements of `region`, and no other bytes.

        Raises:
            CheckpointError: where the file changed under the index.
        """
        stored = self.index.tensors[placed.sources[number]]
        if stored.file not in self._files:
            try:
                file = os.open(stored.file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointError(f"{stored.file}: cannot be read: {error.strerror}") from None
            self._stack.callback(os.close, file)
            self._files[stored.file] = file
        self.bytes_needed += math.prod(region_shape(region)) * DTYPES[stored.dtype].itemsize
        self.bytes_read += read_region(self._files[stored.file], stored, region, out)


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
