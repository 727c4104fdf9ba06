"""How the GPUs of a rank are linked: which communicators, shared memory and ways each device thread
connects, and in what order.

`groups` derives who talks to whom and asks here for the GPU's kind of it; `device` connects its own
links before it loads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ftjob.comm import Pulse, Way
from ftjob.comm.groups import GpuTerms
from ftjob.comm.nccl import GpuMember, Meet
from ftjob.comm.peer import Neighbours
from ftjob.comm.ways import FarWay, NearWay
from ftjob.plan import DeviceSpec, Plan


class GpuLinks:
    """All links that have an end in this rank."""

    def __init__(self, plan: Plan, terms: GpuTerms) -> None:
        self._plan, self._terms = plan, terms
        self._meet = Meet(terms.address, terms.limit_s)
        self._neighbours: dict[int, Neighbours] = {}
        self._members: dict[int, GpuMember] = {}  # by device
        self._far: dict[tuple[int, int], FarWay] = {}  # by devices, from and to

    def group(self, spec: DeviceSpec) -> GpuMember:
        """A device's end of its tensor group, which `connect` connects."""
        first = spec.index - spec.tensor
        ranks = {self._plan.devices[first + i].rank for i in range(self._plan.tensor)}
        near = None
        if len(ranks) == 1:
            near = self._neighbours.setdefault(first, Neighbours(self._plan.tensor))
        about = (f"tensor{first}", spec.tensor, self._plan.tensor, near)
        self._members[spec.index] = member = GpuMember(self._meet, *about)
        return member

    def way(self, source: DeviceSpec, target: DeviceSpec, rank: int, capacity: int) -> Way:
        """The way from a device to another, of which at least one is this rank's."""
        if source.rank == target.rank:
            return NearWay(capacity, torch.device("cuda", target.local))
        name, outgoing = f"way{source.index}to{target.index}", source.rank == rank
        far = FarWay(self._meet, name, outgoing)
        self._far[source.index, target.index] = far
        return far

    def end(self, spec: DeviceSpec) -> GpuEnd:
        """What a device is given of them."""
        return GpuEnd(self, spec)

    def connect(self, spec: DeviceSpec, device: torch.device, pulse: Pulse, row_bytes: int) -> None:
        """Connect all links of a device, from its own thread; rows of the residual stream have so
        many bytes. Both ends of a way come to it in the same order of all, so nobody waits in a
        ring."""
        if spec.index in self._members:
            self._members[spec.index].connect(device, pulse, row_bytes, self._terms.limit_s)
        for ends in sorted(ends for ends in self._far if spec.index in ends):
            self._far[ends].connect(device, pulse)

    def gather(self, spec: DeviceSpec, pulse: Pulse) -> None:
        """Return when all devices of the replica have come."""
        count = self._plan.tensor * self._plan.pipeline
        self._meet.wait(f"replica{spec.data}", count, pulse)


@dataclass(frozen=True)
class GpuEnd:
    """One device's links."""

    links: GpuLinks
    spec: DeviceSpec

    def connect(self, device: torch.device, pulse: Pulse, row_bytes: int) -> None:
        """See `GpuLinks`."""
        self.links.connect(self.spec, device, pulse, row_bytes)

    def gather(self, pulse: Pulse) -> None:
        """See `GpuLinks`."""
        self.links.gather(self.spec, pulse)
