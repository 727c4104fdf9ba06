"""Random weights as a pure function of (seed, tensor name, index): no generator, no state.

Each element is a hash of its place in the whole tensor, so every layout and every device makes
the same model, and a device fills only its own slices. Stands in for `load` where
`model.checkpoint=random`.
"""

from __future__ import annotations

import hashlib
import math
from types import MappingProxyType

import torch

from ftjob.checkpoint.shard import Region

# Elements made at a time: on a CPU their int64 temporaries stay in the cache, and off fresh pages;
# a GPU wants full launches.
_CHUNK = MappingProxyType({"cpu": 1 << 16, "cuda": 1 << 24})


def _wrap(value: int) -> int:
    """A 64-bit pattern as the signed number torch.int64 holds."""
    return value - (1 << 64) if value >= 1 << 63 else value


def uniform(index: torch.Tensor, stream: int) -> torch.Tensor:
    """Uniform f32 in [-1, 1) for int64 element numbers: SplitMix64's mix of stream + index.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    Integer arithmetic wraps; the top 24 bits become the fraction, exact in f32.
    """
    z = index * _wrap(0x9E3779B97F4A7C15) + _wrap(stream)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _logical_shift(z, shift)) * _wrap(factor)
    z = z ^ _logical_shift(z, 31)
    return _logical_shift(z, 40).to(torch.float32) * 2.0**-23 - 1.0


def _logical_shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def fill_random(
    out: torch.Tensor,
    seed: int,
    name: str,
    shape: tuple[int, ...],
    region: Region,
    *,
    mean: float,
    std: float,
) -> None:
    """Fill `out` with the elements of `region` of the random tensor `name`, in all of `shape`.

    Uniform with the given mean and standard deviation. `out` has the region's shape, any float
    dtype, device and order of axes; it is filled in pieces, so little memory is needed beside it.
    """
    if out.numel() == 0:
        return
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    stream = int.from_bytes(digest[:8], "little")
    device, length = out.device, region[0].stop - region[0].start
    strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    row = torch.zeros((), dtype=torch.int64, device=device)
    for axis in range(1, len(shape)):  # element numbers within one index of axis 0
        steps = torch.arange(region[axis].start, region[axis].stop, device=device) * strides[axis]
        row = row.unsqueeze(-1) + steps
    rows = max(1, _CHUNK[device.type] // max(1, row.numel()))
    spread = std * math.sqrt(3.0)
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        first = torch.arange(region[0].start + start, region[0].start + stop, device=device)
        index = (first * strides[0]).view(-1, *[1] * row.dim()) + row
        values = uniform(index, stream) * spread + mean
        if out.dim() == 2 and out.stride(0) == 1:
            values = values.mT.contiguous().mT  # turned in the cache first, which is faster
        out[start:stop] = values
