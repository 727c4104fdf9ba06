"""Arrays of the host on their way to a device: to a GPU all in one copy that nobody waits for.

`packing` and `decode/scoring` make a batch's indices with numpy and send them through here, and the
generate loop all that it tells a device between steps: a copy that waits would wait for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

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
