"""What a run looks at before it loads: warnings on its machine, and whether its groups add up right
and how fast.

`rank` logs `machine_warnings`; each device thread of several GPUs calls `preflight` once its group
exists, within 3 seconds. `doctor` looks at the same, longer.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import torch

from ftjob.bench.links import Reduced, Where, time_all_reduce
from ftjob.comm import Comm, Pulse
from ftjob.launch.advice import advise
from ftjob.launch.topology import look
from ftjob.plan import Plan

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


def preflight(
    comm: Comm,
    device: torch.device,
    pulse: Pulse,
    *,
    names: Sequence[str] = (),
    where: Where = "process",
) -> list[Reduced]:
    """Check what the members of a group send and add up, and time it; called by each of them, from
    its own thread, on its own stream. Nothing for a group of one.

    Raises:
        BrokenLink: naming the devices by `names`.
        Halted: where the rank gives up meanwhile.
    """
    if comm.size == 1:
        return []
    return time_all_reduce(comm, device, pulse, SIZES, names=names, where=where, budget_s=BUDGET_S)


def line(found: Sequence[Reduced]) -> str:
    """What was found of a group, as one line of the log."""
    parts = [
        f"{size_text(r.bytes)} in {1e6 * r.seconds:.4g} us ({r.bus_bytes_s / 1e9:.3g} GB/s a link)"
        for r in found
    ]
    return f"all-reduce of {found[0].ways} devices within a {found[0].where}: {', '.join(parts)}"


def size_text(count: int) -> str:
    """Powers of two in their own units."""
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count // scale} {unit}"
    return f"{count} B"
