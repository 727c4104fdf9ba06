"""Rates of links between CPU device threads, for real: members agree on them, and what arrives
wrong, is added up wrong, fails or hangs ends all of them by name."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from thread_comm import run_group

from ftjob import preflight as before
from ftjob.bench.examine import Examined, examine, group_sizes
from ftjob.bench.links import Reduced, Sent, time_all_reduce
from ftjob.bench.probe import Seat, empty_plan, on_every_device
from ftjob.comm import Comm, Pulse, Reduction, Solo
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.errors import BrokenLink, DeadlinePassed, Stopped
from ftjob.plan import Machine

CPU = torch.device("cpu")
SIZES = (1 << 10, 1 << 16)


def pulse() -> Pulse:
    return Pulse(threading.Event())


class Skewed:
    """A member whose group has a fault: its own sums, or what it gets of member 0, are off."""

    def __init__(self, inner: Comm, *, sums: bool = False, gathers: bool = False) -> None:
        self._inner, self._sums, self._gathers = inner, sums, gathers
        self.rank, self.size = inner.rank, inner.size

    def all_reduce(self, x: torch.Tensor, op: Reduction = "sum") -> torch.Tensor:
        found = self._inner.all_reduce(x, op).clone()
        if self._sums and op == "sum":
            found[7] += 1
        return found

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        found = self._inner.all_gather(x).clone()
        if self._gathers:
            found[0, 5] += 1
        return found


@pytest.mark.parametrize("ways", [2, 3])
def test_members_agree_on_what_they_timed(ways: int) -> None:
    found = run_group(ways, lambda comm: time_all_reduce(comm, CPU, pulse(), SIZES))
    assert all(one == found[0] for one in found)
    assert [(r.ways, r.bytes, r.where) for r in found[0]] == [(ways, s, "process") for s in SIZES]
    assert all(0 < r.seconds < 1 for r in found[0])


def test_no_size_is_begun_once_the_time_is_spent() -> None:
    work = lambda comm: time_all_reduce(comm, CPU, pulse(), SIZES, budget_s=1e-9)  # noqa: E731
    for found in run_group(2, work):
        assert [r.bytes for r in found] == [SIZES[0]]


def test_a_wrong_sum_names_the_devices() -> None:
    def work(comm: Comm) -> object:
        skewed = Skewed(comm, sums=comm.rank == 1)
        return time_all_reduce(skewed, CPU, pulse(), SIZES, names=["cuda:4", "cuda:5"])

    with pytest.raises(BrokenLink) as broken:
        run_group(2, work)
    words = "the sum over cuda:4 and cuda:5 is wrong on cuda:5: element 7 of 256"
    assert words in str(broken.value)
    assert broken.value.code == 1


def test_wrong_numbers_name_both_ends() -> None:
    def work(comm: Comm) -> object:
        return time_all_reduce(Skewed(comm, gathers=comm.rank == 2), CPU, pulse(), SIZES)

    with pytest.raises(BrokenLink, match="member 2 gets other numbers than member 0 sent"):
        run_group(3, work)


def test_bandwidth_is_counted_as_nccl_tests_do() -> None:
    assert Reduced(4, 1000, 0.5).bus_bytes_s == pytest.approx(3000)
    assert Reduced(2, 1000, 0.5).bus_bytes_s == pytest.approx(2000)


def test_preflight_of_a_group_is_short_and_one_line() -> None:
    begun = time.monotonic()
    found = run_group(2, lambda comm: before.preflight(comm, CPU, pulse(), peers=[CPU, CPU]))
    assert time.monotonic() - begun < 3
    assert found[0] == found[1]
    assert found[0].sent == []  # CPU devices share one memory
    assert before.line(found[0]).startswith("all-reduce of 2 devices of a process: 16 KiB in ")
    assert "\n" not in before.line(found[0])
    assert before.preflight(Solo(), CPU, pulse()).reduced == []
    with pytest.raises(BrokenLink, match="the sum over member 0 and member 1"):
        run_group(2, lambda comm: before.preflight(Skewed(comm, sums=True), CPU, pulse()))


def test_cpus_are_not_looked_at_before_a_run() -> None:
    plan = empty_plan(config(), Machine((2,), "cpu", 10**9, "test"), 2)
    assert before.machine_warnings(plan, 0, {"NCCL_P2P_DISABLE": "1"}) == []


def test_line_of_gpus() -> None:
    found = before.Preflight([Reduced(2, 1 << 24, 1e-3, "node")], [Sent(0, 1, 1 << 24, 1e-4)])
    told = "16 MiB in 1000 us (16.8 GB/s a link), copy to GPU 1 168 GB/s"
    assert before.line(found) == f"all-reduce of 2 devices of a node: {told}"


def config(*overrides: str) -> JobConfig:
    return compose(list(overrides))


def test_groups_are_the_layouts_with_nothing_loaded() -> None:
    plan = empty_plan(config("dataset=prompts", "dataset.path=x"), Machine((5,), "cpu", 1, ""), 2)
    assert [(d.local, d.data, d.tensor) for d in plan.devices] == [
        *[(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)]
    ]
    found = on_every_device(plan, lambda seat: seat.wires.group.size + seat.spec.local, 5)
    assert found == {0: 2, 1: 3, 2: 4, 3: 5}


def test_group_sizes() -> None:
    assert group_sizes(8, 1) == [2, 4, 8]
    assert group_sizes(6, 3) == [2, 3, 4, 6]
    assert group_sizes(2, 16) == [2]
    assert group_sizes(1, 1) == []


def test_a_device_that_fails_ends_those_that_wait_for_it() -> None:
    plan = empty_plan(config(), Machine((3,), "cpu", 10**9, "test"), 3)

    def work(seat: Seat) -> None:
        if seat.spec.local == 1:
            raise ValueError("no memory")
        seat.wires.group.all_reduce(torch.zeros(4))

    begun = time.monotonic()
    with pytest.raises(Stopped, match="ValueError: no memory") as stopped:
        on_every_device(plan, work, 20)
    assert stopped.value.code == 1
    assert time.monotonic() - begun < 10
    assert not any(t.name.startswith("device") for t in threading.enumerate())


def test_a_device_that_hangs_is_given_up() -> None:
    plan = empty_plan(config(), Machine((2,), "cpu", 10**9, "test"), 2)
    free = threading.Event()

    def work(seat: Seat) -> None:
        if seat.spec.local == 0:
            free.wait(20)
        seat.wires.group.all_reduce(torch.zeros(4))

    try:
        with pytest.raises(DeadlinePassed, match=r"run\.deadline_s=0\.3: .* 0, 1"):
            on_every_device(plan, work, 0.3)
    finally:
        free.set()


def test_all_of_it_on_two_threads() -> None:
    found = examine(config("parallel.tensor=2"), Machine((2,), "cpu", 10**9, ""), torch.float32)
    assert found.broken == []
    rates = found.rates()
    assert rates["copy_bytes_s"] > 0
    assert rates["product_flop_s"] > 0
    assert [(r["ways"], r["where"]) for r in rates["all_reduce"]] == [(2, "process")] * 4
    assert [s["bytes"] for s in rates["send"]] == [1 << 13, 1 << 20]
    assert set(rates["send"][0]) == {"bytes", "seconds", "where"}


def test_rates_are_of_the_slowest() -> None:
    found = Examined(
        sent=[Sent(0, 1, 64, 3e-6), Sent(1, 0, 64, 1e-6)],
        reduced=[([0, 1], Reduced(2, 64, 1e-6)), ([2, 3], Reduced(2, 64, 2e-6))],
    )
    rates = found.rates()
    assert rates["send"] == [{"bytes": 64, "seconds": 3e-6, "where": "process"}]
    assert rates["all_reduce"] == [Reduced(2, 64, 2e-6).as_dict()]
    assert rates["copy_bytes_s"] is None
