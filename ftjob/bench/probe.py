"""One piece of work on each device of this process at once, in the job's own kind of threads and
groups, with nothing loaded. `doctor` times links so; an error or silence of one ends all.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from ftjob.comm import Halted, Pulse
from ftjob.comm.groups import GpuTerms, Wires, Wiring
from ftjob.config import JobConfig
from ftjob.errors import DeadlinePassed, JobError, Stopped
from ftjob.model.arch import Arch
from ftjob.plan import DeviceSpec, Machine, Plan, make_plan

POLL_S = 0.1
GIVE_UP_S = 2.0
# Rows that are summed are as long as those of a hidden size of 8192 in half precision, at most.
ROW_BYTES = 1 << 14


@dataclass(frozen=True)
class Seat:
    """A device thread's place: what it is, who it talks to, and its signs of life."""

    spec: DeviceSpec
    device: torch.device
    wires: Wires
    pulse: Pulse


def empty_plan(config: JobConfig, machine: Machine, tensor: int, pipeline: int = 1) -> Plan:
    """As many replicas of tensor x pipeline as this rank's devices make, of a model of nothing;
    devices that are left over have no part."""
    per_replica = tensor * pipeline
    devices = machine.devices_of_rank[0] // per_replica * per_replica
    nothing = Arch("gpt2", pipeline, tensor, 1, 1, tensor, 1, 1, 0.0, "gelu", tied_head=True)
    split = replace(config.parallel, tensor=tensor, pipeline=pipeline, data="auto")
    alone = replace(
        config, parallel=split, dataset=replace(config.dataset, task="lambada", mode="score")
    )
    return make_plan(alone, nothing, (), replace(machine, devices_of_rank=(devices,)))


def on_every_device(plan: Plan, work: Callable[[Seat], Any], deadline_s: float) -> dict[int, Any]:
    """What `work` returns on each device of the plan, by local number.

    Raises:
        JobError: the first that a device raised; any other error as Stopped, with its traceback.
        DeadlinePassed: where a device is silent, or all that are busy wait, for `deadline_s`.
    """
    halt, outbox = threading.Event(), queue.Queue[tuple[int, Any]]()
    specs = plan.of_rank(0)
    pulses = {spec.local: Pulse(halt) for spec in specs}
    cuda = plan.machine.device == "cuda"
    terms = GpuTerms(None, deadline_s) if cuda else None
    wires = Wiring(plan, 0, pulses, None, Pulse(halt), terms).wires
    threads = []
    for spec in specs:
        device = torch.device("cuda", spec.local) if cuda else torch.device("cpu")
        seat = Seat(spec, device, wires[spec.local], pulses[spec.local])
        threads.append(
            threading.Thread(
                target=_sit, args=(seat, work, outbox), name=f"device{spec.local}", daemon=True
            )
        )
    found: dict[int, Any] = {}
    try:
        for thread in threads:
            thread.start()
        while len(found) < len(specs):
            busy = [local for local in pulses if local not in found]
            try:
                local, result = outbox.get(timeout=POLL_S)
            except queue.Empty:
                _check({local: pulses[local] for local in busy}, deadline_s)
                continue
            if isinstance(result, BaseException):
                raise result
            found[local] = result
    finally:
        halt.set()
        end = time.monotonic() + GIVE_UP_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
    return found


def _sit(seat: Seat, work: Callable[[Seat], Any], outbox: queue.Queue[tuple[int, Any]]) -> None:
    """The body of a thread."""
    try:
        cuda = torch.cuda.device(seat.device) if seat.device.type == "cuda" else nullcontext()
        with cuda, torch.inference_mode():
            if seat.wires.links is not None:
                seat.wires.links.connect(seat.device, seat.pulse, ROW_BYTES)
            outbox.put((seat.spec.local, work(seat)))
    except Halted:
        pass  # the main thread knows why
    except JobError as error:
        outbox.put((seat.spec.local, error))
    except BaseException as error:
        told = f"{seat.device} {type(error).__name__}: {error}\n{traceback.format_exc()}"
        outbox.put((seat.spec.local, Stopped(told, JobError.code)))


def _check(busy: dict[int, Pulse], limit: float) -> None:
    silent = max(pulse.silent_s for pulse in busy.values())
    waiting = min(pulse.waiting_s for pulse in busy.values())
    if max(silent, waiting) > limit:
        raise DeadlinePassed(
            f"run.deadline_s={limit:g}: no sign of life for so long from one of the devices "
            f"{', '.join(map(str, busy))}."
        )
