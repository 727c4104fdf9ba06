"""How a product of few rows with a weight is shared out among a GPU's programs: what was measured,
and a guess for what was not.

A pure function of the sizes, so that a product is the same launch every time. `few_rows` asks it;
`python -m eval.bench.few_rows` measures the table anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

# So many rows, a decode step's lanes, are few: beyond, cuBLAS has tiles of its own.
MOST_ROWS = 16
# Rows are rounded up to one of these in the table. Those above `MOST_ROWS` are there to be
# measured, of half precision alone.
BANDS = (1, 4, 8, MOST_ROWS, 32, 64, 128)
# Programs that keep a GPU's processors reading, two on each of an H100's or H200's 132.
PROGRAMS = 264
# Of so many columns of the result tensor cores are faster from the second row on, of fewer from the
# fifth.
LARGE = 4096


class Config(NamedTuple):
    """How the work is cut: programs of so many `columns` of the result, their inputs in `splits`
    programs each, of so many `warps`. `depth` is how many inputs the tensor cores look at together,
    `stages` how many such pieces are under way; 0 is plain sums, where each thread has 16 bytes of
    every row of x and what W has there."""

    columns: int
    warps: int
    splits: int = 1
    depth: int = 0
    stages: int = 1


# (bytes of a weight, outputs, inputs, rows rounded up to one of `BANDS`), for x in half precision:
# what `eval.bench.few_rows` printed on an H200 where that is not the guess.
TUNED: Mapping[tuple[int, int, int, int], Config] = MappingProxyType(
    {
        (2, 3072, 1024, 4): Config(4, 4, 1, 0, 1),
        (1, 3072, 1024, 4): Config(4, 4, 1, 0, 1),
        (2, 3072, 1024, 16): Config(32, 4, 2, 128, 4),
        (2, 4096, 1024, 4): Config(32, 4, 1, 128, 4),
        (1, 4096, 1024, 4): Config(32, 4, 1, 128, 4),
        (2, 4096, 1024, 8): Config(32, 4, 1, 128, 4),
        (1, 4096, 1024, 8): Config(32, 4, 1, 128, 4),
        (2, 4096, 1024, 16): Config(32, 4, 1, 128, 4),
        (1, 4096, 1024, 16): Config(16, 2, 1, 256, 3),
        (2, 1024, 4096, 4): Config(2, 8, 1, 0, 1),
        (1, 1024, 4096, 4): Config(2, 8, 1, 0, 1),
        (2, 1024, 1024, 4): Config(4, 4, 1, 0, 1),
        (2, 1024, 1024, 8): Config(4, 4, 1, 0, 1),
        (1, 1024, 1024, 8): Config(4, 4, 1, 0, 1),
        (2, 1024, 1024, 16): Config(32, 4, 4, 128, 4),
        (1, 1024, 1024, 16): Config(32, 4, 4, 128, 4),
        (2, 768, 768, 8): Config(2, 4, 1, 0, 1),
        (1, 768, 768, 8): Config(2, 4, 1, 0, 1),
        (2, 3072, 768, 4): Config(4, 4, 1, 0, 1),
        (1, 3072, 768, 4): Config(4, 4, 1, 0, 1),
        (1, 3072, 768, 8): Config(32, 4, 2, 128, 4),
        (2, 3072, 768, 16): Config(32, 4, 2, 128, 4),
        (1, 3072, 768, 16): Config(32, 4, 2, 128, 4),
        (1, 768, 3072, 1): Config(1, 4, 1, 0, 1),
        (2, 768, 3072, 4): Config(2, 8, 1, 0, 1),
        (1, 768, 3072, 4): Config(2, 8, 1, 0, 1),
        (2, 768, 3072, 8): Config(16, 2, 8, 256, 3),
        (1, 768, 3072, 8): Config(32, 4, 8, 128, 4),
        (2, 768, 3072, 16): Config(16, 2, 8, 256, 3),
        (1, 768, 3072, 16): Config(32, 4, 8, 128, 4),
        (1, 12288, 4096, 16): Config(16, 2, 1, 256, 3),
        (1, 4096, 4096, 1): Config(2, 8, 1, 0, 1),
        (2, 4096, 4096, 16): Config(64, 4, 4, 128, 3),
        (1, 16384, 4096, 16): Config(16, 2, 1, 256, 3),
        (1, 4096, 16384, 1): Config(2, 8, 1, 0, 1),
        (2, 4096, 16384, 16): Config(64, 4, 4, 128, 3),
        (1, 4096, 16384, 16): Config(32, 4, 4, 128, 4),
    }
)


def arrivals(device: torch.device) -> torch.Tensor:
    """How many parts of each block of columns have come, int32, zero between launches: for products
    made one after the other. Enough for every product, because large ones are not split."""
    return torch.zeros(PROGRAMS, dtype=torch.int32, device=device)


def config_of(rows: int, outputs: int, inputs: int, x_bytes: int, weight_bytes: int) -> Config:
    """For x [rows, inputs] and W [outputs, inputs] with elements of so many bytes."""
    if x_bytes < 4:
        band = next(most for most in BANDS if rows <= most)
        found = TUNED.get((weight_bytes, outputs, inputs, band))
        if found is not None:
            return found
        if rows > 4 or (rows > 1 and outputs >= LARGE):
            return by_matrices(outputs, inputs, x_bytes, band)
    # tensor cores would round f32
    return plain(outputs, inputs)


def plain(outputs: int, inputs: int) -> Config:
    """Plain sums: a program reads all inputs of few columns, most of its bytes at once, so nothing
    is left to be added over programs. Long sums take more threads and, where that leaves programs
    enough, columns."""
    if inputs < 4 * outputs:
        return Config(2, warps=4)
    columns = next((n for n in (4, 2) if outputs >= 1024 * n), 1)
    return Config(columns, warps=8)


def by_matrices(outputs: int, inputs: int, x_bytes: int, rows: int) -> Config:
    """Tensor cores, at least 16 rows of them: a program has many columns, the more the more rows,
    else it reads more of x than of W, and splits make up the number of programs."""
    columns, depth, splits = 32 if rows <= 32 else 64, 256 // x_bytes, 1
    while splits * -(-outputs // columns) < PROGRAMS * 3 // 4 and 2 * splits * depth <= inputs:
        splits *= 2
    return Config(columns, warps=4, splits=splits, depth=depth, stages=4 if rows <= 32 else 3)
