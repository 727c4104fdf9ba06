"""Puts the keys and values of tokens that were read into their cells of a pool on a GPU.

`decode/pool` calls it in every layer while rows enter; from then on `step_attention` reads and adds
to them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ftjob.kernels.early import starts_early


def put(pool: torch.Tensor, cells: torch.Tensor, kv: torch.Tensor) -> None:
    """pool [2, heads, cells, size] at `cells` [N] int64 becomes kv [N, 2 * heads * size], which may
    be columns of a wider tensor."""
    _, heads, count, size = pool.shape
    width = heads * size
    if len(cells):
        early = starts_early(pool.device)
        _put[(len(cells), 2)](
            pool,
            cells,
            kv,
            kv.stride(0),
            count,
            SIZE=size,
            WIDTH=width,
            PADDED=triton.next_power_of_2(width),
            PDL=early,
            launch_pdl=early,
            num_warps=4,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _put(
    pool,
    cells,
    kv,
    stride,
    count,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """A token's keys, or its values."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token, half = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    held = tl.load(kv + token.to(tl.int64) * stride + half * WIDTH + columns, mask=inside)
    head = half * (WIDTH // SIZE) + columns // SIZE
    cell = head.to(tl.int64) * count + tl.load(cells + token)
    tl.store(pool + cell * SIZE + columns % SIZE, held, mask=inside)
