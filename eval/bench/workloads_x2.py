"""The workloads that `h200_x2` times, each on one GPU and on two, or in two ways to use two, and
the figures that were known of them before.

The known figures are given, not made here: FasterTransformer's main branch built for sm_90 in fp16
on one and two H200s, random weights, greedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eval.bench.devices import layout_overrides
from eval.bench.workloads import random_model, sized


@dataclass(frozen=True)
class Side:
    """One way to do the work. `ft` and `reach` are milliseconds, `over` is how many times as fast
    as the first side it must be at least. A launched side has so many `ranks`."""

    name: str
    overrides: tuple[str, ...]
    ft: float | None = None
    reach: float | None = None
    over: float | None = None
    ranks: int = 1


@dataclass(frozen=True)
class Pair:
    """Sides that do the same work. `kind`: a size of `ftjob bench`; LAMBADA's rows `times` over; so
    many (`rows`) continued from `given` tokens to `new` more as one set; or such rows one by one,
    or LAMBADA's, by whole runs of `python -m ftjob`, whose answers are timed as they reach the
    journal. `figure` is the time that counts: of a run or set, of a decode step, or of a row."""

    name: str
    title: str
    kind: Literal["size", "lambada", "set", "launched rows", "launched lambada"]
    overrides: tuple[str, ...]
    sides: tuple[Side, ...]
    figure: Literal["run", "step", "row"] = "run"
    rows: int = 0
    given: int = 0
    new: int = 0
    times: int = 1


def _layout(layout: str) -> tuple[str, ...]:
    return tuple(layout_overrides(layout))


ONE, TENSOR, PIPELINE, DATA = map(_layout, ("t1p1d1", "t2p1d1", "t1p2d1", "t1p1d2"))
# Of two ranks with a device each.
TENSOR_RANKS = ("cluster.devices_per_node=1", "parallel.tensor=2")
DATA_RANKS = ("cluster.devices_per_node=1",)
# Two GPUs have room for the caches of twice as many rows; of the larger model one has it for fewer
# than the wider ones.
NARROW, WIDE = "batch.lanes=512", "batch.lanes=1024"
PAIRS = (
    Pair(
        "gpt6b7_step",
        "GPT of 6.7 B parameters, batch 1, a decode step behind 128 tokens",
        "size",
        sized("gpt6b7", 1, 128, 65),
        (
            Side("one GPU", ONE, ft=4.8, reach=3.8),
            Side("tensor 2", TENSOR, ft=3.8, reach=2.4),
        ),
        figure="step",
    ),
    Pair(
        "gpt345m_b1",
        "GPT-345M, batch 1, 512 in, 128 out",
        "size",
        sized("gpt345m", 1, 512, 128),
        (Side("one GPU", ONE, ft=179), Side("tensor 2", TENSOR, ft=229, over=1.0)),
    ),
    Pair(
        "gpt6b7_b64",
        "GPT of 6.7 B parameters, batch 64, 128 in, 65 out",
        "size",
        sized("gpt6b7", 64, 128, 65),
        (Side("one GPU", ONE, ft=638), Side("tensor 2", TENSOR, ft=453)),
    ),
    Pair(
        "lambada_x10",
        "GPT-345M, LAMBADA ten times over, all rows scored",
        "lambada",
        (*random_model("gpt345m"), "dataset=lambada"),
        (Side("one GPU", ONE), Side("data 2", DATA, over=1.9)),
        times=10,
    ),
    Pair(
        "gpt345m_set",
        "GPT-345M, 2048 rows of 128 in, 128 out as one set",
        "set",
        random_model("gpt345m"),
        (
            Side("one GPU, 1024 lanes", (*ONE, WIDE)),
            Side("one GPU, 512 lanes", (*ONE, NARROW)),
            Side("pipeline 2, 1024 lanes", (*PIPELINE, WIDE), over=1.8),
        ),
        rows=2048,
        given=128,
        new=128,
    ),
    Pair(
        "gpt6b7_set",
        "GPT of 6.7 B parameters, 1024 rows of 128 in, 128 out as one set",
        "set",
        random_model("gpt6b7"),
        (
            Side("one GPU, 512 lanes", (*ONE, NARROW)),
            Side("pipeline 2, 512 lanes", (*PIPELINE, NARROW)),
            Side("pipeline 2, 1024 lanes", (*PIPELINE, WIDE), over=1.8),
        ),
        rows=1024,
        given=128,
        new=128,
    ),
    Pair(
        "gpt6b7_ranks",
        "GPT of 6.7 B parameters, tensor 2, rows of 128 in, 129 out one by one, whole runs",
        "launched rows",
        random_model("gpt6b7"),
        (
            Side("two threads of one rank", TENSOR),
            Side("two ranks of one GPU", TENSOR_RANKS, ranks=2),
        ),
        figure="row",
        given=128,
        new=129,
    ),
    Pair(
        "lambada_x10_ranks",
        "GPT-345M, LAMBADA ten times over, data 2, whole runs with reading and journal",
        "launched lambada",
        (*random_model("gpt345m"), "dataset=lambada"),
        (
            Side("two threads of one rank", DATA),
            Side("two ranks of one GPU", DATA_RANKS, ranks=2),
        ),
        times=10,
    ),
)
