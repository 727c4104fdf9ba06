"""Arrays of the host on their way to a device: to a GPU all in one copy that nobody waits for.

`packing` and `decode/scoring` make a batch's indices with numpy and send them through here, and the
generate loop all that it tells a device between steps: a copy that waits would wait for them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ftjob.model.fill import PADDED, Fill

Array = np.ndarray[Any, np.dtype[Any]]

# Each array begins at a multiple of so many bytes: what GPU kernels load at once.
ALIGNED = 16


def to_device(arrays: Sequence[Array], device: torch.device) -> list[torch.Tensor]:
    """The arrays as tensors of their shapes and dtypes there."""
    if device.type != "cuda":
        return [torch.from_numpy(array).to(device) for array in arrays]
    # pinned, so that the copy needs no staging; torch keeps it until the copy is done
    held = joined(arrays, pinned=True)
    return list(parts(held.to(device, non_blocking=True), arrays))


class Arena:
    """Where arrays come to lie on a device: those of the same shapes and dtypes in the same place
    each time, so that captured work finds them there. So many places are kept, at most. `fill` says
    how far passes are filled up that go through it."""

    def __init__(self, device: torch.device, most: int = 128, fill: Fill = PADDED) -> None:
        self.device, self.fill, self._most = device, fill, most
        self._held: dict[Hashable, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def send(self, arrays: Sequence[Array]) -> tuple[list[torch.Tensor], Hashable | None]:
        """The arrays there, and a name for the place; None where it is another each time. What a
        place held before is gone as soon as the device gets there."""
        name = tuple((array.shape, array.dtype.str) for array in arrays)
        place = self._place(name, arrays) if self.device.type == "cuda" else None
        if place is None:
            return to_device(arrays, self.device), None
        held, tensors = place
        held.copy_(joined(arrays, pinned=True), non_blocking=True)
        return tensors, name

    def _place(
        self, name: Hashable, arrays: Sequence[Array]
    ) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
        if name not in self._held:
            if len(self._held) >= self._most:
                return None
            held = torch.empty(sum(map(_room, arrays)), dtype=torch.uint8, device=self.device)
            self._held[name] = held, list(parts(held, arrays))
        return self._held[name]


def sent(values: Sequence[Any], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A list of numbers, or of lists of them, as a tensor there; nobody waits for it either."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def joined(arrays: Sequence[Array], *, pinned: bool) -> torch.Tensor:
    """The bytes of all arrays in one tensor of the host, for `parts`."""
    size = sum(map(_room, arrays))
    held = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    for part, array in zip(parts(held, arrays), arrays, strict=True):
        part.numpy()[...] = array
    return held


def parts(held: torch.Tensor, arrays: Sequence[Array]) -> Iterator[torch.Tensor]:
    """What of `held` stands for each array, in its shape and dtype."""
    first = 0
    for array in arrays:
        dtype = torch.from_numpy(array[:0]).dtype
        yield held[first : first + array.nbytes].view(dtype).view(array.shape)
        first += _room(array)


def _room(array: Array) -> int:
    return -(-array.nbytes // ALIGNED) * ALIGNED
