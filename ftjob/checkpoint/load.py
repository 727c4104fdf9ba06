"""A stream of already cut tensors: what one device holds, each once, in the device's dtype.

Reads only the slices the shard rules name (or makes them, for random weights), turns and joins
them; `device` copies each into its parameter and checks that every parameter was filled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from ftjob.checkpoint.index import CheckpointIndex
from ftjob.checkpoint.random import random_region
from ftjob.checkpoint.shard import Placed, Region
from ftjob.errors import CheckpointError


class Source(Protocol):
    """Where slices come from."""

    def read(self, placed: Placed, region: Region) -> torch.Tensor:
        """The elements of `region`, in the checkpoint's orientation."""


class RandomSource:
    """Slices of the seeded random model."""

    def __init__(self, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.seed, self.device, self.dtype = seed, device, dtype

    def read(self, placed: Placed, region: Region) -> torch.Tensor:
        """The elements of `region`, made on the device."""
        rule = placed.rule
        return random_region(
            self.seed,
            placed.source,
            rule.shape,
            region,
            mean=rule.mean,
            std=rule.std,
            device=self.device,
            dtype=self.dtype,
        )


class FileSource:
    """Slices of the safetensors files of an index; a context manager that holds them open."""

    def __init__(self, index: CheckpointIndex) -> None:
        self.index = index
        self._stack = ExitStack()
        self._readers: dict[Path, Any] = {}

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read(self, placed: Placed, region: Region) -> torch.Tensor:
        """The elements of `region`, from the file's map.

        Raises:
            CheckpointError: where the file changed under the index.
        """
        stored = self.index.tensors[placed.source]
        try:
            if stored.file not in self._readers:
                self._readers[stored.file] = self._stack.enter_context(
                    safe_open(stored.file, framework="pt")
                )
            part: torch.Tensor = self._readers[stored.file].get_slice(stored.name)[region]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{stored.file}: tensor {stored.name}: {error}") from None
        return part


def cut_tensors(
    source: Source, held: list[Placed], rank: int, ways: int, pulse: Callable[[], None]
) -> Iterator[tuple[Placed, torch.Tensor]]:
    """Each placed tensor with this tensor rank's part of it, in the parameter's orientation.

    `pulse` is called after each one, as a sign of life. Padded vocabulary rows are zero.
    """
    for placed in held:
        rule = placed.rule
        parts = [source.read(placed, region) for region in rule.cut.regions(rule.shape, rank, ways)]
        part = parts[0] if len(parts) == 1 else torch.cat(parts, dim=rule.cut.axis)
        missing = rule.cut.local_shape(rule.shape, ways)[rule.cut.axis] - part.shape[rule.cut.axis]
        if missing:
            padding = list(part.shape)
            padding[rule.cut.axis] = missing
            part = torch.cat([part, part.new_zeros(padding)], dim=rule.cut.axis)
        yield placed, part.mT if rule.transpose else part
        pulse()
