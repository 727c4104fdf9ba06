"""Groups and pipes of device threads: right results in any timing, and nobody waits for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
import torch

from ftjob.comm import Halted, Pulse
from ftjob.comm.threads import Group, Member, Pipe

pytestmark = pytest.mark.timeout(30)
# what the pipes here carry
ONE = ((1,), torch.float32)


def at_once(ways: int, work: Callable[[int], None]) -> list[BaseException]:
    """Run `work` for each number in a thread of its own; the errors."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(ways)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(t.is_alive() for t in threads)
    return errors


@pytest.mark.parametrize("ways", [2, 3, 4])
def test_many_collectives_in_a_row(ways: int) -> None:
    """Threads of uneven speed, tensors of changing size: no call may see another one's numbers."""
    group, halt = Group(ways, (0, ways), None), threading.Event()

    def work(rank: int) -> None:
        member, pause = Member(group, rank, Pulse(halt)), random.Random(rank)
        for turn in range(200):
            if pause.random() < 0.1:
                time.sleep(0.002 * pause.random())
            size = 1 + turn % 7
            x = torch.full((size,), float(rank + turn))
            total = member.all_reduce(x)
            assert total.tolist() == [ways * turn + ways * (ways - 1) / 2] * size
            most = member.all_reduce(x, "max")
            assert most.tolist() == [turn + ways - 1.0] * size
            assert member.all_gather(x[:1]).flatten().tolist() == [
                float(turn + r) for r in range(ways)
            ]

    assert at_once(ways, work) == []


def test_a_group_whose_member_fails_is_left() -> None:
    group, halt = Group(3, (0, 3), None), threading.Event()

    def work(rank: int) -> None:
        if rank == 1:
            time.sleep(0.3)
            halt.set()
            return
        Member(group, rank, Pulse(halt)).all_reduce(torch.ones(4))

    start = time.monotonic()
    errors = at_once(3, work)
    assert [type(e) for e in errors] == [Halted, Halted]
    assert time.monotonic() - start < 2


def test_a_pipe_keeps_order_and_bounds() -> None:
    pipe, halt = Pipe(2), threading.Event()
    ahead: list[int] = []
    taken: list[int] = []

    def work(end: int) -> None:
        pulse = Pulse(halt)
        for sequence in range(50):
            if end == 0:
                pipe.put(sequence, torch.tensor([sequence]), pulse)
                ahead.append(sequence + 1 - len(taken))
            else:
                time.sleep(0.001)
                assert pipe.take(sequence, pulse, ONE).item() == sequence
                taken.append(sequence)

    assert at_once(2, work) == []
    assert taken == list(range(50))
    assert max(ahead) <= 3  # two in the pipe, and one just taken but not counted yet


def test_a_pipe_refuses_another_order() -> None:
    pipe, pulse = Pipe(2), Pulse(threading.Event())
    pipe.put(4, torch.zeros(1), pulse)
    with pytest.raises(RuntimeError, match="expected the activations of chunk 5, got 4's"):
        pipe.take(5, pulse, ONE)


@pytest.mark.parametrize("full", [False, True], ids=["take", "put"])
def test_a_pipe_is_left_when_the_rank_gives_up(full: bool) -> None:
    pipe, halt = Pipe(1), threading.Event()
    pulse = Pulse(halt)
    if full:
        pipe.put(0, torch.zeros(1), pulse)
    threading.Timer(0.2, halt.set).start()
    with pytest.raises(Halted):
        _ = pipe.put(1, torch.zeros(1), pulse) if full else pipe.take(0, pulse, ONE)
    assert pulse.waiting_s == 0.0


def test_a_waiting_device_is_not_silent() -> None:
    """What it waits for is the one to be suspected."""
    pulse = Pulse(threading.Event())
    time.sleep(0.05)
    assert pulse.silent_s >= 0.05
    assert pulse.waiting_s == 0.0
    with pulse.waiting():
        time.sleep(0.05)
        assert pulse.silent_s == 0.0
        assert pulse.waiting_s >= 0.05
    assert pulse.silent_s < 0.05
