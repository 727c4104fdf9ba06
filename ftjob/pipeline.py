"""The pipeline bubble: the share of its devices' time in which a replica's stages compute nothing.

It comes from filling and draining the pipeline, from stages of unequal work and from micro-batches
of uneven size. `commands/plan.py` predicts it before anything runs, `results.pipeline` beside the
measured one. Times are in any unit: work per token times tokens. Standard library only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ftjob.config.groups import DatasetConfig

# The positions of a row that are scored, as a share: a few answer tokens behind a long context.
TYPICAL_WANTED = 1 / 16


def wanted_share(dataset: DatasetConfig) -> float:
    """The share of positions at which logits are wanted: all of them where n-grams are counted,
    else the typical one in sixteen that the plan's workspace counts with too."""
    return 1.0 if dataset.ngrams else TYPICAL_WANTED


def stage_costs(
    spans: Sequence[tuple[int, int]], hidden: int, ffn: int, vocab: int, wanted: float
) -> list[float]:
    """Multiply-adds per token of each stage, for layers first <= i < last of each span.

    A layer takes 4 H^2 for q, k, v and output and 2 H F for the MLP (the weight matrices of
    Radford et al. 2019, GPT-2). As in `model.decoder`, the last layer computes q, k and v of every
    token but the rest at the `wanted` share of them only, as does the head, with H V. The products
    of queries with keys, which grow with a row's length, are left out.
    """
    rest = hidden * hidden + 2 * hidden * ffn
    costs = [float((last - first) * (3 * hidden * hidden + rest)) for first, last in spans]
    costs[-1] += wanted * (rest + hidden * vocab) - rest
    return costs


def makespan(costs: Sequence[float], sizes: Sequence[float]) -> float:
    """Time from the first micro-batch's start to the last one's end, for micro-batches of `sizes`
    tokens in order through stages of `costs` per token.

    A stage begins a micro-batch when it is through with the one before and the stage before is
    through with this one; the hand-over takes no time. Source: the permutation flow shop's
    recurrence, Pinedo, Scheduling, section 6.1.
    """
    ends = [0.0] * len(costs)
    for size in sizes:
        before = 0.0
        for stage, cost in enumerate(costs):
            before = ends[stage] = max(before, ends[stage]) + cost * size
    return ends[-1]


def equal_makespan(costs: Sequence[float], count: int) -> float:
    """`makespan` of `count` micro-batches of size 1: one passes every stage, the others follow it
    at the pace of the slowest stage."""
    return sum(costs) + (count - 1) * max(costs) if count else 0.0


def equal_bubble(costs: Sequence[float], count: int) -> float:
    """The bubble of `count` micro-batches of equal size, at least one, as a share of the stages'
    time. With stages of equal work it is (P - 1) / (M + P - 1): Huang et al. 2019, GPipe,
    section 2.3."""
    return 1 - count * sum(costs) / (len(costs) * equal_makespan(costs, count))


def steady_bubble(costs: Sequence[float]) -> float:
    """What is left of the bubble in the long run: the others wait for the slowest stage."""
    return 1 - sum(costs) / (len(costs) * max(costs))


def formed_sizes(tokens: int, count: int, largest: int) -> list[int]:
    """Sizes of `count` micro-batches with `tokens` in all, as `batching` forms them: full ones of
    up to `largest` tokens, and the rest in the last."""
    if count < 2:
        return [tokens] * count
    full = min(largest, tokens // (count - 1))
    return [*itertools.repeat(full, count - 1), tokens - full * (count - 1)]
