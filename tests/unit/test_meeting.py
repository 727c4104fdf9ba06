"""Where GPUs of several ranks find each other, without the GPUs: the stores and who opens one."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from ftjob.comm import Halted, Pulse
from ftjob.comm.nccl import Meet
from ftjob.config.build import build
from ftjob.launch.meeting import HERE, open_meeting
from ftjob.link import Hello
from ftjob.model.arch import Arch
from ftjob.plan import Machine, Plan, make_plan

pytestmark = pytest.mark.timeout(30)
ARCH = Arch("gpt2", 4, 4, 4, 16, 64, 100, 64, 1e-5, "gelu_tanh", tied_head=True)


def plan(device: str, ranks: int, tensor: int) -> Plan:
    machine = Machine((2,) * ranks, device, 10**10, "given")
    config = build({"model": {"checkpoint": "PATH"}, "parallel": {"tensor": tensor}})
    return make_plan(config, ARCH, (), machine)


def hello(host: str) -> Hello:
    return Hello(host, 2, None, frozenset({0}), 1)


def test_a_store_only_where_gpus_of_a_replica_are_on_several_ranks() -> None:
    hellos = [hello("a"), hello("a")]
    assert open_meeting(plan("cpu", 2, 4), hellos) is None
    assert open_meeting(plan("cuda", 2, 2), hellos) is None
    found = open_meeting(plan("cuda", 2, 4), hellos)
    assert found is not None
    assert found.address[0] == HERE
    other = open_meeting(plan("cuda", 2, 4), [hello("a"), replace(hello("a"), host="b")])
    assert other is not None
    assert other.address[0] == "a"
    assert other.address[1] != found.address[1]


@pytest.mark.parametrize("near", [True, False])
def test_all_threads_of_a_replica_wait_for_the_last(near: bool) -> None:
    opened = None if near else open_meeting(plan("cuda", 2, 4), [hello("a"), hello("a")])
    meets = [Meet(opened.address if opened else None, 20.0)] * 3
    if not near:  # a process each
        meets = [Meet(meets[0]._address, 20.0) for _ in range(3)]
    come: list[int] = []

    def wait(rank: int) -> None:
        pulse = Pulse(threading.Event())
        meets[rank].wait("replica0", 3, pulse)
        come.append(rank)

    threads = [threading.Thread(target=wait, args=(r,), daemon=True) for r in range(3)]
    for thread in threads[:2]:
        thread.start()
    threads[0].join(0.5)
    assert not come
    threads[2].start()
    for thread in threads:
        thread.join(20)
    assert sorted(come) == [0, 1, 2]


def test_a_thread_that_waits_in_vain_leaves_with_its_rank() -> None:
    halt = threading.Event()
    threading.Timer(0.3, halt.set).start()
    with pytest.raises(Halted):
        Meet(None, 20.0).wait("replica0", 2, Pulse(halt))
