"""`python -m eval.bench.step_attention`: by which way a decode step's attention is fastest on this
GPU.

For steps as GPT-345M, T5-base and a GPT of 6.7B have them, in bf16: every `Way` of
`ftjob/kernels/step_attention` that is worth a try, in a captured graph over so many layers that no
cache holds them. A line a case: the best and the one that is taken, with what the cells read come
to in a second. Last, for one lane and for several, the ways that lose least over all cases.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch

from eval.bench.captured import BYTES, compiled, seconds
from ftjob.kernels.step_attention import FIELDS, Scratch, Way, step_attention, way_of

# At most so many layers, and at least.
FEWEST, MOST = 2, 96
SHOWN = 4


@dataclass(frozen=True)
class Case:
    """A step of `rows` rows of so many lanes: over `keys` cells of the source, or of the prompt and
    `steps` steps behind it (`biased` where positions are relative)."""

    name: str
    rows: int
    lanes: int
    heads: int
    size: int
    keys: int
    steps: int = 0
    biased: bool = False

    @property
    def cells(self) -> int:
        """Of a row: looked at, and room for the new ones."""
        return self.keys + self.lanes * (self.steps + 1)

    @property
    def read(self) -> int:
        """Bytes of keys and values of a layer."""
        looked = self.keys + self.lanes * self.steps
        return 2 * 2 * self.rows * self.heads * looked * self.size

    @property
    def layers(self) -> int:
        """How many are looked at in turn."""
        return min(MOST, max(FEWEST, int(BYTES / self.read)))

    def ways(self) -> list[Way]:
        """Those worth a try: the one that is taken first."""
        found = [way_of(self.lanes, torch.bfloat16, self.rows * self.heads)]
        for keys, warps, stages in product((16, 32, 64), (1, 2, 4), (1, 2, 3)):
            for matrices in (True, False) if self.lanes == 1 else (True,):
                if keys // warps >= 8:
                    found.append(Way(keys, warps, stages, matrices))
        found += [Way(keys, 1, stages, True) for keys, stages in ((16, 4), (16, 6), (32, 4))]
        return list(dict.fromkeys(found))


CASES = (
    Case("GPT-345M, 256 rows behind 192 tokens", 256, 1, 16, 64, 192, 1),
    Case("GPT-345M, 32 rows behind 528 tokens", 32, 1, 16, 64, 528, 1),
    Case("GPT-345M, 8 rows behind 520 tokens", 8, 1, 16, 64, 520, 1),
    Case("GPT-345M, a row behind 576 tokens", 1, 1, 16, 64, 576, 1),
    Case("T5-base, 1024 rows, sources of 32", 1024, 1, 12, 64, 32),
    Case("T5-base, 1024 rows, 16 steps made", 1024, 1, 12, 64, 0, 16, True),
    Case("T5-base, 128 rows of 4 beams, sources of 32", 128, 4, 12, 64, 32),
    Case("T5-base, 128 rows of 4 beams, 16 steps made", 128, 4, 12, 64, 0, 16, True),
    Case("6.7B, 64 rows behind 160 tokens", 64, 1, 32, 128, 160, 1),
)


def main() -> int:
    """Compile in processes, then time case by case."""
    compiled(compile_all, [(case, way) for case in CASES for way in case.ways()])
    found: dict[Case, dict[Way, float]] = {}
    for case in CASES:
        found[case] = compare(case)
        print(told(case, found[case]), flush=True)
    for name, lanes in (("one lane", 1), ("several", 4)):
        some = [times for case, times in found.items() if case.lanes == lanes]
        print(f"{name}, time over the best's: {over_all(some)}")
    return 0


@torch.inference_mode()
def compile_all(tasks: list[tuple[Case, Way]]) -> None:
    """Run each once: its kernel is on disk from then on."""
    for case, way in tasks:
        steps(case, way, 1)()
    torch.cuda.synchronize()


@torch.inference_mode()
def compare(case: Case) -> dict[Way, float]:
    """Seconds by each way."""
    return {way: seconds(steps(case, way, case.layers), case.layers) for way in case.ways()}


def told(case: Case, found: dict[Way, float]) -> str:
    """The line of a case."""
    best, taken = sorted(found, key=lambda way: found[way])[:SHOWN], case.ways()[0]
    ways = [f"{tuple(way)} {_rate(case, found[way])}" for way in best]
    return f"{case.name}: {'; '.join(ways)}; taken is {tuple(taken)} {_rate(case, found[taken])}"


def _rate(case: Case, taken: float) -> str:
    return f"{1e6 * taken:.1f} us, {case.read / taken / 1e12:.2f} TB/s"


def over_all(found: list[dict[Way, float]]) -> str:
    """Of the ways that all cases have, those with the lowest geometric mean, and their worst."""
    lost = {
        way: [times[way] / min(times.values()) for times in found]
        for way in found[0]
        if all(way in times for times in found)
    }
    means = {way: statistics.geometric_mean(each) for way, each in lost.items()}
    best = sorted(means, key=lambda way: means[way])[:SHOWN]
    return "; ".join(f"{tuple(w)} {means[w]:.2f}, at worst {max(lost[w]):.2f}" for w in best)


def steps(case: Case, way: Way, layers: int) -> Callable[[], None]:
    """The attention of so many layers, one after the other."""
    cuda, width = torch.device("cuda"), case.heads * case.size
    own = case.steps > 0
    fields = [0 if own else case.keys, case.keys if own else 0, case.steps, case.steps + 1]
    table = torch.tensor([[i * case.cells, *fields] for i in range(case.rows)], device=cuda)
    assert table.shape[1] == FIELDS
    shape = (layers, 2, case.heads, case.rows * case.cells, case.size)
    pool = torch.zeros(shape, dtype=torch.bfloat16, device=cuda)
    qkv = torch.randn(case.rows * case.lanes, 3 * width, dtype=torch.bfloat16, device=cuda)
    lineage = bias = None
    if own and case.lanes > 1:
        lanes = torch.arange(case.lanes, dtype=torch.int32, device=cuda)
        lineage = lanes.view(1, -1, 1).repeat(case.rows, 1, case.steps + 1)
    if case.biased:
        bias = torch.zeros(case.heads, 257, device=cuda)
    scratch = Scratch.of(case.lanes, case.size, cuda)

    def run() -> None:
        for layer in pool:
            step_attention(
                qkv[:, :width],
                layer,
                table,
                case.rows,
                scratch,
                scale=0.125,
                new=qkv[:, width:] if own else None,
                lineage=lineage,
                bias=bias,
                way=way,
            )

    return run


if __name__ == "__main__":
    sys.exit(main())
