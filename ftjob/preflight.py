"""What a run looks at before it loads: warnings on its machine, and whether its groups add up right
and how fast.

`rank` logs `machine_warnings`; each device thread of several GPUs calls `preflight` once its group
exists, within 3 seconds. `doctor` looks at the same, longer.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ftjob.bench.links import Reduced, Sent, Where, time_all_reduce, time_copy
from ftjob.comm import Comm, Pulse
from ftjob.launch.advice import advise
from ftjob.launch.topology import look
from ftjob.plan import DeviceSpec, Plan

# A decode step's sum, and one of a large prefill.
SIZES = (1 << 14, 1 << 24)
BUDGET_S = 0.5


def machine_warnings(plan: Plan, rank: int, env: Mapping[str, str]) -> list[str]:
    """What to say of this rank's GPUs before its devices start: their own memory is free yet.
    Nothing on CPUs. Never raises."""
    if plan.machine.device != "cuda":
        return []
    groups: dict[tuple[int, int], list[int]] = {}
    for spec in plan.of_rank(rank):
        groups.setdefault((spec.data, spec.pipeline), []).append(spec.local)
    tensor = [group for group in groups.values() if len(group) > 1]
    seen = look(env).first(len(plan.of_rank(rank)))
    return [str(advice) for advice in advise(seen, env, tensor, host=socket.gethostname())]


@dataclass(frozen=True)
class Preflight:
    """What a device found: the all-reduces of its group, and the copies to the next device of it
    where that is a GPU of the same process."""

    reduced: list[Reduced]
    sent: list[Sent]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def preflight(
    comm: Comm,
    device: torch.device,
    pulse: Pulse,
    *,
    peers: Sequence[torch.device] = (),
    names: Sequence[str] = (),
    where: Where = "process",
) -> Preflight:
    """Check what the members of a group send and add up, and time it; called by each of them, from
    its own thread, on its own stream. Nothing for a group of one. `peers` are the group's devices
    in its order where this process has all of them, `names` what messages call the members.

    Raises:
        BrokenLink: naming the devices.
        Halted: where the rank gives up meanwhile.
    """
    if comm.size == 1:
        return Preflight([], [])
    reduced = time_all_reduce(
        comm, device, pulse, SIZES, names=names, where=where, budget_s=BUDGET_S
    )
    if not peers or device.type != "cuda":
        return Preflight(reduced, [])
    return Preflight(
        reduced, time_copy(device, peers[(comm.rank + 1) % comm.size], pulse, SIZES[-1:])
    )


def look_over(comm: Comm, plan: Plan, spec: DeviceSpec, pulse: Pulse) -> str | None:
    """`preflight` of a GPU's tensor group, from its own thread: a line for the log, of the first
    of the group.

    Raises:
        BrokenLink, Halted: as `preflight`.
    """
    first = spec.index - spec.tensor
    members = plan.devices[first : first + plan.tensor]
    near = len({m.rank for m in members}) == 1
    found = preflight(
        comm,
        torch.device("cuda", spec.local),
        pulse,
        peers=[torch.device("cuda", m.local) for m in members] if near else (),
        names=[f"device {m.local} of rank {m.rank}" for m in members],
        where="process" if near else "nodes",
    )
    return line(found) if spec.tensor == 0 and comm.size > 1 else None


def line(found: Preflight) -> str:
    """What was found of a group, as one line of the log."""
    parts = [
        f"{size_text(r.bytes)} in {1e6 * r.seconds:.4g} us ({r.bus_bytes_s / 1e9:.3g} GB/s a link)"
        for r in found.reduced
    ]
    parts += [f"copy to GPU {s.target} {s.bytes_s / 1e9:.3g} GB/s" for s in found.sent]
    group = found.reduced[0]
    return f"all-reduce of {group.ways} devices of a {group.where}: {', '.join(parts)}"


def size_text(count: int) -> str:
    """Powers of two in their own units."""
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count // scale} {unit}"
    return f"{count} B"
