"""Memory for what is needed for a moment while weights are loaded.

It is mapped apart from malloc's heap and goes back when the tensor does. A freed block of the heap
stays with the process, and malloc does not use it again for a tensor of its own size, since an
aligned block asks for a little more than its size. `checkpoint` reads into it, `kernels` pack from
it.
"""

from __future__ import annotations

import mmap

import torch


def scratch(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor for a moment, its elements unknown; a CPU gives its pages back afterwards."""
    empty = torch.empty(shape, dtype=dtype, device="meta")
    if device.type != "cpu" or empty.nbytes == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, empty.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
