"""From the plan to who talks to whom: the tensor groups and pipes of one rank's devices.

Tensor group: the `parallel.tensor` devices of one stage of one replica. Pipe: from each device of
a stage to the device of the same tensor rank in the next one, and from the last stage home to each
other, for what decode steps chose. All may cross ranks, and every rank derives the same groups and
tags from the plan alone. `rank` gives each device thread its `Wires`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftjob.comm import Comm, Pulse, Solo
from ftjob.comm.mpi import Courier, Exchange, Lane
from ftjob.comm.threads import Group, Member, Pipe
from ftjob.comm.tree import Span
from ftjob.plan import DeviceSpec, Plan

# Chunks whose activations may wait between two stages.
PIPE_CAPACITY = 2


@dataclass(frozen=True)
class Wires:
    """What one device is connected to: its tensor group, the stages before and after, and the way
    home: from the last stage (`homes`) to each of the others (`home`)."""

    group: Comm
    before: Pipe | None
    after: Pipe | None
    home: Pipe | None = None
    homes: tuple[Pipe, ...] = ()


class Wiring:
    """All groups and pipes that have an end in this rank; `courier` carries what crosses ranks."""

    def __init__(
        self,
        plan: Plan,
        rank: int,
        pulses: Mapping[int, Pulse],
        data: Any,
        courier_pulse: Pulse,
    ) -> None:
        self._plan, self._rank, self._data = plan, rank, data
        self._groups: dict[tuple[int, int], Group] = {}
        self._pipes: dict[tuple[int, int], Pipe] = {}
        lanes: list[Lane] = []
        wires = {}
        for spec in plan.of_rank(rank):
            before = None if spec.first else self._pipe(spec.index - plan.tensor, spec.index, lanes)
            after = None if spec.last else self._pipe(spec.index, spec.index + plan.tensor, lanes)
            group = self._group(spec, pulses[spec.local])
            end = spec.index + (plan.pipeline - 1 - spec.pipeline) * plan.tensor
            homes = [end - s * plan.tensor for s in range(1, plan.pipeline)] if spec.last else []
            wires[spec.local] = Wires(
                group,
                before,
                after,
                None if spec.last else self._pipe(end, spec.index, lanes),
                tuple(self._pipe(end, stage, lanes) for stage in homes),
            )
        self.wires: Mapping[int, Wires] = wires
        self.courier = Courier(data, lanes, courier_pulse) if lanes else None

    def _group(self, spec: DeviceSpec, pulse: Pulse) -> Comm:
        """The device's end of its tensor group."""
        plan = self._plan
        if plan.tensor == 1:
            return Solo()
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

    def _pipe(self, source: int, target: int, lanes: list[Lane]) -> Pipe:
        """The pipe between two devices, with the lane that leads to the other rank's end."""
        key = source, target
        if key in self._pipes:
            return self._pipes[key]
        # the way home holds a message or two a micro-batch; a full one would stop the last stage
        forward = target > source
        self._pipes[key] = Pipe(PIPE_CAPACITY if forward else 4 * self._plan.pipeline)
        ranks = [self._plan.devices[i].rank for i in key]
        if ranks[0] != ranks[1]:
            outgoing = ranks[0] == self._rank
            devices = len(self._plan.devices)
            tag = devices + source if forward else 2 * devices + target
            lanes.append(Lane(self._pipes[key], ranks[outgoing], tag, outgoing))
        return self._pipes[key]


def members_by_rank(plan: Plan, first: int) -> dict[int, Span]:
    """Which tensor ranks each MPI rank holds of the group that begins at device `first`."""
    held: dict[int, Span] = {}
    for tensor in range(plan.tensor):
        rank = plan.devices[first + tensor].rank
        held[rank] = (held.get(rank, (tensor, tensor))[0], tensor + 1)
    return held
