"""Sums through the memory of two GPUs, a million in a row over numbers that change, each against
what both GPUs would have added: no word may be lost, old or of another sum.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from ftjob.comm import Pulse
from ftjob.comm.nccl import GpuMember, Meet
from ftjob.comm.peer import Neighbours

pytestmark = [pytest.mark.timeout(110), pytest.mark.two_gpus, pytest.mark.gpu_alone]
WAYS, WIDTH, LIMIT_S = 2, 2048, 5.0
# Sums in a captured graph, and how often it is played.
SUMS, PLAYED = 100, 10_000


def on_both(work: Callable[[int, GpuMember], None]) -> None:
    """Run it on two GPUs, a thread each; the first error is raised here."""
    meet, near, errors = Meet(None, LIMIT_S), Neighbours(WAYS), list[BaseException]()

    def body(rank: int) -> None:
        device = torch.device("cuda", rank)
        try:
            with torch.cuda.device(device), torch.inference_mode():
                member = GpuMember(meet, "group", rank, WAYS, near)
                member.connect(device, Pulse(threading.Event()), 4 * WIDTH, LIMIT_S)
                work(rank, member)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(r,), daemon=True) for r in range(WAYS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)


def captured(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    run()
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        run()
        graph.capture_end()
    return graph


def test_a_million_sums() -> None:
    wrong: dict[int, int] = {}

    def work(rank: int, member: GpuMember) -> None:
        assert member.near is not None, "the GPUs do not see each other's memory"
        device = torch.device("cuda", rank)
        own = torch.arange(WIDTH, device=device, dtype=torch.float32).remainder(97).view(1, -1)
        every = [own + r for r in range(WAYS)]  # what each of them adds, known everywhere
        bad = torch.zeros((), dtype=torch.int64, device=device)

        def sums() -> None:
            for _ in range(SUMS):
                found, known = member.all_reduce(every[rank].clone()), every[0] + every[1]
                bad.add_((found != known).any())
                for r in range(WAYS):
                    every[r].copy_((known * 3 + r + 1).remainder(1021))

        graph = captured(sums)
        for _ in range(PLAYED):
            graph.replay()
        torch.cuda.synchronize()
        wrong[rank] = int(bad)

    on_both(work)
    assert wrong == {0: 0, 1: 0}


def test_a_gpu_that_stays_away_is_told_in_time() -> None:
    seconds: dict[int, float] = {}

    def work(rank: int, member: GpuMember) -> None:
        assert member.near is not None
        if rank == 1:
            return
        x = torch.ones(1, WIDTH, device=torch.device("cuda", rank))
        start = time.monotonic()
        member.all_reduce(x)
        torch.cuda.synchronize()
        seconds[rank] = time.monotonic() - start
        with pytest.raises(Exception, match="did not come to a sum in time"):
            member._near.check()

    on_both(work)
    assert LIMIT_S / 4 < seconds[0] < 4 * LIMIT_S
