"""What kernels take on a GPU in a captured graph, and many of them compiled side by side.

`few_rows` and `step_attention` try configs of a kernel with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

T = TypeVar("T")

# What is read in turn has so many bytes in all: more than a cache holds.
BYTES = 240e6
REPLAYS, ROUNDS = 4, 5
MOST_WORKERS = 14


def compiled(compile_all: Callable[[list[T]], None], tasks: Sequence[T]) -> None:
    """`compile_all` of a share of the tasks in each of several processes: what it runs is on disk
    from then on."""
    workers = max(1, min(MOST_WORKERS, os.cpu_count() or 1))
    shares = [list(tasks[i::workers]) for i in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_all, shares))


def seconds(run: Callable[[], None], count: int) -> float:
    """The time of one of the `count` launches of `run`, in a captured graph: the fastest round."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    times: list[float] = []
    for _ in range(ROUNDS):
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / REPLAYS / count)
    return min(times)
