"""`python -m eval.bench.few_rows`: how the products of few rows are best shared out on this GPU.

For the layers of GPT-345M, T5-base and a GPT of 6.7B, bf16 and int8 weights: a few configs of
`ftjob/kernels/few_rows` beside PyTorch's product of bf16, in a captured graph over so many weights
that no cache holds them. A line each; then, for each number of rows, all shapes of a model beside
PyTorch's, which says up to where rows are few; last, the entries of `few_rows_configs.TUNED`, which
are the ones that beat the guess.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, product
from types import MappingProxyType

import torch
import torch.nn.functional as F

from eval.bench.captured import BYTES, compiled, seconds
from ftjob.kernels.few_rows_configs import (
    BANDS,
    MOST_ROWS,
    PROGRAMS,
    Config,
    arrivals,
    by_matrices,
    config_of,
    plain,
)

# The layers' matrices: outputs, inputs.
MODELS = MappingProxyType(
    {
        "GPT-345M": ((3072, 1024), (4096, 1024), (1024, 4096), (1024, 1024)),
        "T5-base": ((2304, 768), (768, 768), (3072, 768), (768, 3072)),
        "6.7B": ((12288, 4096), (4096, 4096), (16384, 4096), (4096, 16384)),
    }
)
# How many weights are read in turn, at least and at most.
FEWEST, MOST = 2, 128
# A config goes into the table where it takes so much less time than the guess.
WORTH = 0.97


@dataclass(frozen=True)
class Case:
    """A product: W [outputs, inputs] of elements of so many bytes, x of so many rows of bf16."""

    outputs: int
    inputs: int
    rows: int
    weight_bytes: int

    @property
    def count(self) -> int:
        """How many weights are read in turn."""
        return min(MOST, max(FEWEST, int(BYTES / (self.outputs * self.inputs * self.weight_bytes))))

    @property
    def guess(self) -> Config:
        """What is taken without the table."""
        return config_of(self.rows, self.outputs, self.inputs, 2, self.weight_bytes)

    def configs(self) -> list[Config]:
        """Those worth a try: the guess, and around it."""
        sums = plain(self.outputs, self.inputs)
        matrices = by_matrices(self.outputs, self.inputs, 2, self.rows)
        found, half = [self.guess], max(1, matrices.splits // 2)
        if self.rows <= 8:
            columns = (sums.columns // 2, sums.columns, 2 * sums.columns)
            warps = (sums.warps, sums.warps // 2) if self.rows == 1 else (sums.warps,)
            found += [Config(c, w) for c, w in product(columns, warps) if c and w]
        if self.rows > 1:
            found += [matrices, matrices._replace(splits=half)]
            found += [Config(16, w, half, 256, 3) for w in (2, 4)]
        if self.rows > MOST_ROWS:
            wider = matrices._replace(columns=2 * matrices.columns, splits=2 * matrices.splits)
            found += [wider, wider._replace(warps=8), matrices._replace(depth=64, stages=5)]
        if self.rows > 8:
            found.append(matrices._replace(splits=2 * matrices.splits))
            if self.weight_bytes == 2:
                found.append(Config(64, 4, 2 * matrices.splits, 128, 3))
        blocks = {c: -(-self.outputs // c.columns) for c in found}
        return [c for c in blocks if c.splits == 1 or blocks[c] <= PROGRAMS]


@dataclass(frozen=True)
class Times:
    """Microseconds of a product: with the best config, the guessed one, and PyTorch's of bf16."""

    best: Config
    best_us: float
    guess_us: float
    peer_us: float


def main() -> int:
    """Compile in processes, then time case by case."""
    shapes = chain.from_iterable(MODELS.values())
    cases = [Case(*shape, m, b) for shape, m, b in product(shapes, BANDS, (2, 1))]
    # the outputs are no part of what is compiled
    tasks = {(replace(case, outputs=0), c): (case, c) for case in cases for c in case.configs()}
    compiled(compile_all, list(tasks.values()))
    entries = [(case, compare(case)) for case in cases]
    for rows, name in product(BANDS, MODELS):
        for weight_bytes in (2, 1):
            some = [
                times
                for case, times in entries
                if (case.rows, case.weight_bytes) == (rows, weight_bytes)
                and (case.outputs, case.inputs) in MODELS[name]
            ]
            ours, theirs = sum(t.best_us for t in some), sum(t.peer_us for t in some)
            print(f"{name}, {8 * weight_bytes} bits, {rows} rows: {ours / theirs:.2f} of PyTorch's")
    print("\nTUNED:")
    for case, times in entries:
        if times.best_us < WORTH * times.guess_us:
            key = (case.weight_bytes, case.outputs, case.inputs, case.rows)
            print(f"        {key}: Config{tuple(times.best)},")
    return 0


@torch.inference_mode()
def compile_all(tasks: list[tuple[Case, Config]]) -> None:
    """Run each once: its kernel is on disk from then on."""
    for case, config in tasks:
        products(case, config, 1)()
    torch.cuda.synchronize()


@torch.inference_mode()
def compare(case: Case) -> Times:
    """What the configs take, told in a line."""
    peer = 1e6 * seconds(products(case, None, case.count), case.count)
    found = {c: 1e6 * seconds(products(case, c, case.count), case.count) for c in case.configs()}
    best, guessed = min(found, key=lambda config: found[config]), found[case.guess]
    rate = case.outputs * case.inputs * case.weight_bytes / found[best] / 1e6
    print(
        f"{case.outputs}x{case.inputs} {8 * case.weight_bytes} bits, {case.rows} rows: "
        f"{found[best]:.2f} us, {rate:.2f} TB/s, {tuple(best)}; the guess {guessed:.2f} us; "
        f"PyTorch's of bf16 {peer:.2f} us",
        flush=True,
    )
    return Times(best, found[best], guessed, peer)


def products(case: Case, config: Config | None, count: int) -> Callable[[], None]:
    """The product with so many weights, one after the other; without a config PyTorch's of bf16."""
    # imported here because a machine without a GPU may be without triton
    from ftjob.kernels.few_rows import few_rows

    cuda, half = torch.device("cuda"), torch.bfloat16
    x = torch.randn(case.rows, case.inputs, dtype=half, device=cuda)
    bias, scale = x.new_zeros(case.outputs), None
    if case.weight_bytes == 1 and config is not None:
        scale = torch.ones(case.outputs, device=cuda)
    kept, shape = half if scale is None else torch.int8, (case.outputs, case.inputs)
    weights = [torch.ones(shape, dtype=kept, device=cuda) for _ in range(count)]
    arrived = arrivals(cuda)

    def run() -> None:
        for weight in weights:
            if config is None:
                F.linear(x, weight, bias)
            else:
                few_rows(x, weight, arrived, scale=scale, bias=bias, config=config)

    return run


if __name__ == "__main__":
    sys.exit(main())
