"""All that `doctor` measures on this process's devices: what each can do alone, what goes from one
to another, and all-reduces of groups of several sizes.

What comes out wrong, fails or hangs is kept as text and ends the measuring; nothing of it raises.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ftjob.bench.ceilings import Ceilings, measure_ceilings
from ftjob.bench.links import (
    COPIES,
    SIZES,
    Reduced,
    Sent,
    time_all_reduce,
    time_copy,
    time_hand_over,
)
from ftjob.bench.probe import Seat, empty_plan, on_every_device
from ftjob.config import JobConfig
from ftjob.errors import JobError
from ftjob.plan import Machine


@dataclass
class Examined:
    """What was found: by device, by group of devices, and what is broken. `peers` says of ordered
    pairs of GPUs whether CUDA lets the first reach the second's memory."""

    ceilings: dict[int, Ceilings] = field(default_factory=dict)
    peers: dict[tuple[int, int], bool] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    reduced: list[tuple[list[int], Reduced]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def rates(self) -> dict[str, Any]:
        """What to predict steps from: of the slowest device, pair and group of each size."""
        sends: dict[int, Sent] = {}
        for sent in sorted(self.sent, key=lambda s: s.seconds):
            sends[sent.bytes] = sent
        sums: dict[tuple[int, int], Reduced] = {}
        for _, reduced in sorted(self.reduced, key=lambda found: found[1].seconds):
            sums[reduced.ways, reduced.bytes] = reduced
        ceilings = self.ceilings.values()
        return {
            "copy_bytes_s": min((c.copy_bytes_s for c in ceilings), default=None),
            "product_flop_s": min((c.product_flop_s for c in ceilings), default=None),
            "all_reduce": [sums[at].as_dict() for at in sorted(sums)],
            "send": [
                {"bytes": size, "seconds": sends[size].seconds, "where": sends[size].where}
                for size in sorted(sends)
            ],
        }


def examine(config: JobConfig, machine: Machine, dtype: torch.dtype) -> Examined:
    """Measure, each part with all devices that it takes, until one finds something broken."""
    found = Examined()
    try:
        _ceilings(found, config, machine, dtype)
        if machine.devices_of_rank[0] > 1:
            _sends(found, config, machine)
            for ways in group_sizes(machine.devices_of_rank[0], config.parallel.tensor):
                _sums(found, config, machine, ways)
    except JobError as error:
        found.broken.append(str(error))
    return found


def library_versions() -> dict[str, str | None]:
    """The libraries that speed and faults depend on; None where there is no such one."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    nccl = None
    if torch.version.cuda is not None:
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "triton": triton,
        "nccl": nccl,
    }


def group_sizes(devices: int, tensor: int) -> list[int]:
    """The sizes of groups to time: powers of two, all devices, and those of the layout."""
    powers = {1 << n for n in range(1, devices.bit_length())}
    return sorted({n for n in {*powers, devices, tensor} if 1 < n <= devices})


def _ceilings(found: Examined, config: JobConfig, machine: Machine, dtype: torch.dtype) -> None:
    """Of all GPUs at once, which do not disturb each other; of one CPU device, as they share."""
    if machine.device == "cpu":
        machine = replace(machine, devices_of_rank=(1,))
    made = on_every_device(
        empty_plan(config, machine, 1),
        lambda seat: measure_ceilings(seat.device, dtype),
        config.run.deadline_s,
    )
    found.ceilings.update(made)


def _sends(found: Examined, config: JobConfig, machine: Machine) -> None:
    """Between GPUs copies, each ordered pair by itself; on a CPU what a pipe takes."""
    if machine.device == "cuda":
        devices = [torch.device("cuda", i) for i in range(machine.devices_of_rank[0])]
        plan = empty_plan(config, replace(machine, devices_of_rank=(1,)), 1)

        def copies(seat: Seat) -> list[Sent]:
            made: list[Sent] = []
            for source in devices:
                for target in devices:
                    if source != target:
                        seat.pulse()
                        found.peers[source.index, target.index] = bool(
                            torch.cuda.can_device_access_peer(source, target)
                        )
                        made += time_copy(source, target, seat.pulse, COPIES["cuda"])
            return made

        found.sent += on_every_device(plan, copies, config.run.deadline_s)[0]
        return
    plan = empty_plan(config, replace(machine, devices_of_rank=(2,)), 1, pipeline=2)

    def hands_over(seat: Seat) -> list[Sent]:
        local = seat.spec.local
        return time_hand_over(seat.wires, local, 1 - local, seat.device, seat.pulse, COPIES["cpu"])

    found.sent += on_every_device(plan, hands_over, config.run.deadline_s)[0]


def _sums(found: Examined, config: JobConfig, machine: Machine, ways: int) -> None:
    plan = empty_plan(config, machine, ways)
    sizes = SIZES[machine.device]

    def sums(seat: Seat) -> list[Reduced]:
        first = seat.spec.local - seat.spec.tensor
        names = [f"{machine.device}:{first + i}" for i in range(ways)]
        return time_all_reduce(seat.wires.group, seat.device, seat.pulse, sizes, names=names)

    made = on_every_device(plan, sums, config.run.deadline_s)
    for first in range(0, len(made), ways):
        members = list(range(first, first + ways))
        found.reduced += [(members, reduced) for reduced in made[first]]
