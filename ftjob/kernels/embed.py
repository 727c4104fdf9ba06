"""Token vectors and position vectors of a row in one launch on a GPU: a Triton kernel.

`model/layers.Embedding` calls it; where the vocabulary is cut over a tensor group each device gives
its part, and the group adds them up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ftjob.kernels.early import starts_early

PER_WARP, MAX_WARPS = 256, 8


def embed(
    ids: torch.Tensor,
    tokens: torch.Tensor,
    first: int,
    positions: torch.Tensor | None,
    table: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """tokens[ids - first] [N, H], zeros where that is no row of `tokens` [V/T, H], plus
    table[positions] [H] where there is a `table`; added in f32, rounded once to `dtype`."""
    width = tokens.shape[1]
    out = torch.empty((len(ids), width), dtype=dtype, device=ids.device)
    padded = triton.next_power_of_2(width)
    if len(ids):
        # the lanes of a row alone have one position, which expands to them in a step of 0
        ids = ids.contiguous()
        positions = None if positions is None else positions.contiguous()
        early = starts_early(ids.device)
        _embed[(len(ids),)](
            ids,
            ids if positions is None else positions,
            tokens,
            tokens if table is None else table,
            out,
            first,
            tokens.shape[0],
            WIDTH=width,
            PADDED=padded,
            PLACED=table is not None,
            PDL=early,
            launch_pdl=early,
            num_warps=min(MAX_WARPS, max(1, padded // PER_WARP)),
        )
    return out


@triton.jit(do_not_specialize=["first"])  # type: ignore[untyped-decorator]
def _embed(
    ids,
    positions,
    tokens,
    table,
    out,
    first,
    rows,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PLACED: tl.constexpr,
    PDL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """One row."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    local = tl.load(ids + row) - first
    held = inside & (local >= 0) & (local < rows)
    x = tl.load(tokens + local * WIDTH + columns, mask=held, other=0.0).to(tl.float32)
    if PLACED:
        place = tl.load(positions + row) * WIDTH + columns
        x += tl.load(table + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64) * WIDTH + columns, x.to(out.dtype.element_ty), mask=inside)
