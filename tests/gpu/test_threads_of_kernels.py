"""Two threads that run new kernels at the same time, each on its GPU: every launch reaches its own
kernel with its own arguments, whatever the other thread makes ready meanwhile.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import triton
import triton.language as tl

from ftjob import kernels

pytestmark = [pytest.mark.timeout(110), pytest.mark.two_gpus, pytest.mark.gpu_alone]
# Kernels of each kind, every one compiled and loaded anew.
KERNELS = 40


@triton.jit  # type: ignore[untyped-decorator]
def _two(out, value, N: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(out + N, value)


@triton.jit  # type: ignore[untyped-decorator]
def _three(out, value, more, N: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(out + N, value + more)


@triton.jit  # type: ignore[untyped-decorator]
def _four(out, first, value, more, N: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(out + N, tl.load(first) + value + more)


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_each_launch_is_its_own(often: None) -> None:
    kernels.prepare(torch.device("cuda"))
    begin, found = threading.Barrier(2), {}

    def body(number: int) -> None:
        device = torch.device("cuda", number)
        with torch.cuda.device(device):
            out = torch.zeros(3, KERNELS, dtype=torch.int64, device=device)
            first = torch.full((1,), 100, device=device)
            runs: list[Callable[[int], object]] = [
                lambda n: _two[(1,)](out[0], n + 7, n),
                lambda n: _three[(1,)](out[1], n + 7, 30, n),
                lambda n: _four[(1,)](out[2], first, n + 7, 30, n),
            ]
            begin.wait(30)
            for n in range(KERNELS):
                for run in runs if number else reversed(runs):
                    run(n)
            found[number] = out.cpu()

    threads = [threading.Thread(target=body, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    value = torch.arange(KERNELS) + 7
    expected = torch.stack((value, value + 30, value + 130))
    assert [n for n in range(2) if torch.equal(found.get(n, value), expected)] == [0, 1]
