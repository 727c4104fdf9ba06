"""From the plan to who talks to whom: the tensor groups of one rank's devices, and their ways.

Tensor group: the `parallel.tensor` devices of one stage of one replica. Way: from each device of
a stage to the device of the same tensor rank in the next one, and from the last stage home to each
other, for what decode steps chose. All may cross ranks, and every rank derives the same groups and
tags from the plan alone. `rank` gives each device thread its `Wires`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftjob.comm import Comm, Pulse, Solo, Way
from ftjob.comm.mpi import Courier, Exchange, Lane
from ftjob.comm.threads import Group, Member, Pipe
from ftjob.comm.tree import Span
from ftjob.plan import DeviceSpec, Plan

if TYPE_CHECKING:
    from ftjob.comm.gpus import GpuEnd, GpuLinks

# Chunks whose activations may wait between two stages.
PIPE_CAPACITY = 2


@dataclass(frozen=True)
class GpuTerms:
    """What links between GPUs depend on: where the ranks meet, (host, port) of rank 0's store, or
    None where no replica spans ranks; and for how many seconds one waits for another."""

    address: tuple[str, int] | None
    limit_s: float


@dataclass(frozen=True)
class Wires:
    """What one device is connected to: its tensor group, the stages before and after, and the way
    home: from the last stage (`homes`) to each of the others (`home`). A GPU's `links` are to be
    connected first."""

    group: Comm
    before: Way | None
    after: Way | None
    home: Way | None = None
    homes: tuple[Way, ...] = ()
    links: GpuEnd | None = None

    def gather(self, pulse: Pulse) -> None:
        """Return when all devices of the replica have come. GPUs wait for each other without a
        sign of life, so a wait must not be for one that still loads."""
        if self.links is not None:
            self.links.gather(pulse)


class Wiring:
    """All groups and ways that have an end in this rank; `courier` carries what crosses ranks
    between CPUs, and `terms` say how GPUs are linked."""

    def __init__(
        self,
        plan: Plan,
        rank: int,
        pulses: Mapping[int, Pulse],
        data: Any,
        courier_pulse: Pulse,
        terms: GpuTerms | None = None,
    ) -> None:
        self._plan, self._rank, self._data = plan, rank, data
        self._groups: dict[tuple[int, int], Group] = {}
        self._ways: dict[tuple[int, int], Way] = {}
        self._lanes: list[Lane] = []
        self._gpus: GpuLinks | None = None
        if terms is not None:
            # imported here because a machine without a GPU may be without triton
            from ftjob.comm.gpus import GpuLinks

            self._gpus = GpuLinks(plan, terms)
        wires = {}
        for spec in plan.of_rank(rank):
            before = None if spec.first else self._way(spec.index - plan.tensor, spec.index)
            after = None if spec.last else self._way(spec.index, spec.index + plan.tensor)
            group = self._group(spec, pulses[spec.local])
            end = spec.index + (plan.pipeline - 1 - spec.pipeline) * plan.tensor
            homes = [end - s * plan.tensor for s in range(1, plan.pipeline)] if spec.last else []
            wires[spec.local] = Wires(
                group,
                before,
                after,
                None if spec.last else self._way(end, spec.index),
                tuple(self._way(end, stage) for stage in homes),
                None if self._gpus is None else self._gpus.end(spec),
            )
        self.wires: Mapping[int, Wires] = wires
        self.courier = Courier(data, self._lanes, courier_pulse) if self._lanes else None

    def _group(self, spec: DeviceSpec, pulse: Pulse) -> Comm:
        """The device's end of its tensor group."""
        plan = self._plan
        if plan.tensor == 1:
            return Solo()
        if self._gpus is not None:
            return self._gpus.group(spec)
        key = spec.data, spec.pipeline
        if key not in self._groups:
            first = spec.index - spec.tensor
            held = members_by_rank(plan, first)
            mine = held.pop(self._rank)
            exchange = None
            if held:
                exchange = Exchange(self._data, held, tag=first)
            self._groups[key] = Group(plan.tensor, mine, exchange)
        return Member(self._groups[key], spec.tensor, pulse)

    def _way(self, source: int, target: int) -> Way:
        """The way between two devices, with the lane that leads to the other rank's end."""
        key = source, target
        if key in self._ways:
            return self._ways[key]
        # the way home holds a message or two a micro-batch; a full one would stop the last stage
        forward = target > source
        capacity = PIPE_CAPACITY if forward else 4 * self._plan.pipeline
        ends = [self._plan.devices[i] for i in key]
        if self._gpus is not None:
            self._ways[key] = self._gpus.way(ends[0], ends[1], self._rank, capacity)
            return self._ways[key]
        self._ways[key] = pipe = Pipe(capacity)
        ranks = [end.rank for end in ends]
        if ranks[0] != ranks[1]:
            outgoing = ranks[0] == self._rank
            devices = len(self._plan.devices)
            tag = devices + source if forward else 2 * devices + target
            self._lanes.append(Lane(pipe, ranks[outgoing], tag, outgoing))
        return pipe


def members_by_rank(plan: Plan, first: int) -> dict[int, Span]:
    """Which tensor ranks each MPI rank holds of the group that begins at device `first`."""
    held: dict[int, Span] = {}
    for tensor in range(plan.tensor):
        rank = plan.devices[first + tensor].rank
        held[rank] = (held.get(rank, (tensor, tensor))[0], tensor + 1)
    return held
