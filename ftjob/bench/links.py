"""What the links between devices can do: all-reduces of a group, copies between two GPUs, what a
pipe hands over; each is checked for right numbers before it is timed.

All devices of a group call it from their own threads. `doctor` prints the rates and writes them
for `plan`; `preflight` measures a few before a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch

from ftjob.comm import Comm, Pulse
from ftjob.comm.groups import Wires
from ftjob.errors import BrokenLink

Where = Literal["process", "node", "nodes"]
# Bytes of an all-reduce: what a decode step swaps, up to a large prefill.
SIZES = MappingProxyType(
    {
        "cuda": (1 << 13, 1 << 16, 1 << 20, 1 << 24, 1 << 26),
        "cpu": (1 << 13, 1 << 16, 1 << 20, 1 << 22),
    }
)
COPIES = MappingProxyType({"cuda": (1 << 13, 1 << 20, 1 << 26), "cpu": (1 << 13, 1 << 20)})
# Numbers of a row.
ROW = 512
BUDGET_S = 1.5
ROUNDS, MOST_CALLS = 3, 50
# Between two looks at whether a GPU is through.
GLANCE_S = 5e-5
PERIOD = 1021  # of the numbers that are sent: prime, so that no shift by a block goes unseen


@dataclass(frozen=True)
class Reduced:
    """An all-reduce of `bytes` over a group of `ways`, `where` its members are: within a process, a
    node, or several. Seconds of one call, of the slowest member."""

    ways: int
    bytes: int
    seconds: float
    where: Where = "process"

    @property
    def bus_bytes_s(self) -> float:
        """Bytes/s over each member's link, 2 (n - 1) / n of the tensor each way: comparable over
        group sizes (nccl-tests, doc/PERFORMANCE.md, bus bandwidth)."""
        return 2 * (self.ways - 1) / self.ways * self.bytes / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sent:
    """`bytes` from one device to another, by their local numbers; seconds of one of them."""

    source: int
    target: int
    bytes: int
    seconds: float
    where: Where = "process"

    @property
    def bytes_s(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def time_all_reduce(
    comm: Comm,
    device: torch.device,
    pulse: Pulse,
    sizes: Sequence[int],
    *,
    names: Sequence[str] = (),
    where: Where = "process",
    budget_s: float = BUDGET_S,
) -> list[Reduced]:
    """All-reduces of f32 tensors of so many bytes, on the current stream. All members get the same
    figures. Once `budget_s` is spent larger sizes are left out; the first call, in which NCCL
    connects, does not count. `names` are the members', for messages.

    Raises:
        BrokenLink: where a member's numbers arrive wrong, or a sum is wrong.
    """
    check_members(comm, device, pulse, names)
    found: list[Reduced] = []
    spent = 0.0
    for size in sizes:
        x = _numbers(size, device) + comm.rank
        if x.numel() % ROW == 0:  # so that the GPUs of a process add few rows as decode steps do
            x = x.view(-1, ROW)
        check_sum(comm, x, pulse, names)
        once = _agreed(comm, _timed(partial(comm.all_reduce, x), 1, device, pulse), device)
        share = (budget_s - spent) / (ROUNDS * len(sizes))
        calls = max(1, min(MOST_CALLS, int(share / max(once, 1e-9))))
        rounds = [_timed(partial(comm.all_reduce, x), calls, device, pulse) for _ in range(ROUNDS)]
        seconds = _agreed(comm, min(rounds), device)
        found.append(Reduced(comm.size, size, seconds, where))
        spent += _agreed(comm, sum(rounds) * calls + 2 * once, device)
        if spent > budget_s:
            break
    return found


def check_members(comm: Comm, device: torch.device, pulse: Pulse, names: Sequence[str]) -> None:
    """Every member's own numbers must arrive here as they were sent.

    Raises:
        BrokenLink: naming both ends.
    """
    plain = _numbers(1 << 16, device)
    got = comm.all_gather(plain + comm.rank)
    wrong = torch.stack([(got[r] != plain + r).any() for r in range(comm.size)])
    _settle(device, pulse)
    if wrong.any():
        sender = int(wrong.nonzero()[0])
        raise BrokenLink(
            f"{_name(comm.rank, names)} gets other numbers than {_name(sender, names)} sent: the "
            "link between the two, or one of them, is broken. Leave one out by "
            "CUDA_VISIBLE_DEVICES, and look for Xid errors in the kernel's log."
        )


def check_sum(comm: Comm, x: torch.Tensor, pulse: Pulse, names: Sequence[str]) -> None:
    """The sum over the group of `x`, which is `_numbers` plus the member's rank; whole numbers in
    f32, so it is exact.

    Raises:
        BrokenLink: with the first element that is wrong.
    """
    size = comm.size
    wanted = size * (x - comm.rank) + size * (size - 1) // 2
    total = comm.all_reduce(x)
    wrong = (total != wanted).flatten()
    _settle(x.device, pulse)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        members = " and ".join(_name(rank, names) for rank in range(size))
        raise BrokenLink(
            f"the sum over {members} is wrong on {_name(comm.rank, names)}: element {at} of "
            f"{x.numel()} is {float(total.flatten()[at]):g}, not {float(wanted.flatten()[at]):g}. "
            "Leave a device out by CUDA_VISIBLE_DEVICES to find the broken one."
        )


def time_copy(
    source: torch.device, target: torch.device, pulse: Pulse, sizes: Sequence[int]
) -> list[Sent]:
    """Copies from one GPU's memory to another's, as torch makes them; the calling thread's.

    Raises:
        BrokenLink: where other numbers arrive.
    """
    found = []
    for size in sizes:
        with torch.cuda.device(source):
            x = _numbers(size, source)
            y = torch.zeros_like(x, device=target)
            y.copy_(x)
            _settle(source, pulse)
        with torch.cuda.device(target):
            wrong = (y != _numbers(size, target)).any()
            _settle(target, pulse)
        if bool(wrong):
            raise BrokenLink(
                f"a copy from {source} to {target} arrives wrong: peer access between them is "
                "broken, as it is behind an IOMMU or ACS that is switched on. Set "
                "NCCL_P2P_DISABLE=1, use parallel.data, or have it switched off."
            )
        with torch.cuda.device(source):
            seconds = _rounds(partial(y.copy_, x), source, pulse)
        found.append(Sent(source.index, target.index, size, seconds))
    return found


def time_hand_over(
    wires: Wires, local: int, peer: int, device: torch.device, pulse: Pulse, sizes: Sequence[int]
) -> list[Sent]:
    """What a pipe takes to hand a tensor to the next stage, half of there and back; called by the
    first and the last of two stages, and given by the first."""
    found, sequence = [], 0
    for size in sizes:
        x = _numbers(size, device)
        form = tuple(x.shape), x.dtype
        begin = time.perf_counter()
        for _ in range(MOST_CALLS):
            if wires.after is not None and wires.home is not None:
                wires.after.put(sequence, x, pulse)
                wires.home.take(sequence, pulse, form)
            elif wires.before is not None:
                wires.homes[0].put(sequence, wires.before.take(sequence, pulse, form), pulse)
            sequence += 1
        seconds = (time.perf_counter() - begin) / (2 * MOST_CALLS)
        if wires.after is not None:
            found.append(Sent(local, peer, size, seconds))
    return found


def _rounds(run: Callable[[], object], device: torch.device, pulse: Pulse) -> float:
    calls = max(1, min(MOST_CALLS, int(0.005 / max(_timed(run, 1, device, pulse), 1e-9))))
    return min(_timed(run, calls, device, pulse) for _ in range(ROUNDS))


def _timed(run: Callable[[], object], calls: int, device: torch.device, pulse: Pulse) -> float:
    """Seconds of a call, over `calls` in a row: on a GPU between two events of its stream."""
    if device.type != "cuda":
        begin_s = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - begin_s) / calls
    begin, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    _await(end, pulse)
    return float(begin.elapsed_time(end)) / 1e3 / calls


def _settle(device: torch.device, pulse: Pulse) -> None:
    """Wait until the current stream is through, for ever only if nobody gives up."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        _await(event, pulse)


def _await(event: torch.cuda.Event, pulse: Pulse) -> None:
    with pulse.waiting():
        while not event.query():  # type: ignore[no-untyped-call]
            pulse.check()
            time.sleep(GLANCE_S)


def _agreed(comm: Comm, seconds: float, device: torch.device) -> float:
    """The most of any member's seconds, the same on all of them: they must go on alike."""
    mine = torch.tensor([seconds], dtype=torch.float32, device=device)
    return float(comm.all_reduce(mine, "max")[0])


def _numbers(size: int, device: torch.device) -> torch.Tensor:
    """f32 [size / 4]: small whole numbers."""
    return torch.arange(size // 4, device=device).remainder_(PERIOD).float()


def _name(rank: int, names: Sequence[str]) -> str:
    return names[rank] if rank < len(names) else f"member {rank}"
