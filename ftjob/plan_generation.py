"""The plan's part of generation: how many rows a replica continues at once, and what that takes.

`plan` asks it where the task generates. The `Generation` goes to every rank with the plan: chunks
are formed by it (`batching`), handed out by it, and the generate loop keeps to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ftjob.config.groups import JobConfig
from ftjob.errors import ConfigError

if TYPE_CHECKING:
    from ftjob.plan import DeviceSpec, Machine

# Rows x beams at once.
AUTO_LANES = MappingProxyType({"cpu": 512, "cuda": 1024})
# Of the rows at once this part enters together: fewer products on a CPU, fuller ones on a GPU.
AUTO_REFILL = MappingProxyType({"cpu": 2, "cuda": 4})
# A look at which rows are finished makes a GPU's host wait for the device; on a CPU it is free.
AUTO_STOP_EVERY = MappingProxyType({"cpu": 1, "cuda": 4})


@dataclass(frozen=True)
class Generation:
    """How a replica decodes, in each of its micro-batches (one a stage): `slots` rows at once, of
    `beams` lanes each; chunks of at most `refill` rows enter; all rows take at most `cells` columns
    of cache until their last tokens; finished rows are looked for every `stop_every` steps. For
    each column of a slot a step's attention takes `score_bytes`, in one micro-batch at a time."""

    slots: int
    beams: int
    refill: int
    cells: int
    stop_every: int
    score_bytes: int

    @property
    def overrun(self) -> int:
        """Columns that a finished row may go on to take until it is looked at."""
        return self.beams * (self.stop_every - 1)


def rungs(slots: int) -> list[int]:
    """The numbers of rows that a GPU's steps have: 1, 2, 3, 4, 6, 8, 12, ... up to all slots. So
    there are few kinds of steps, and at most a third of a step's rows are none."""
    found = sorted({2**i for i in range(20)} | {3 * 2**i for i in range(20)})
    return [rung for rung in found if rung < slots] + [slots]


def slots_of(config: JobConfig, device: str) -> int:
    """Rows that one micro-batch decodes at once; a replica has as many micro-batches as stages.

    Raises:
        ConfigError: where batch.lanes are fewer than a row in each.
    """
    beams, stages = config.decode.lanes, config.parallel.pipeline
    wanted, least = config.batch.lanes, beams * stages
    if isinstance(wanted, int) and wanted < least:
        raise ConfigError(
            f"batch.lanes={wanted}: a row in each stage takes decode.beams={beams} x "
            f"parallel.pipeline={stages} = {least} lanes. Legal: {least} or more, or auto."
        )
    lanes = wanted if isinstance(wanted, int) else max(AUTO_LANES[device], least)
    return lanes // least


def plan_generation(
    config: JobConfig,
    machine: Machine,
    devices: Sequence[DeviceSpec],
    workspace: int,
    slots: int,
    scores: int,
) -> Generation:
    """How `slots` rows a micro-batch are decoded in the memory that weights and `workspace` leave;
    `scores` are the bytes that attention takes a column.

    So that finished rows which have not been looked at fit too, their overrun is kept free for all
    slots.

    Raises:
        ConfigError: where nothing is left, with the numbers.
    """
    every, stages = config.batch.stop_every, config.parallel.pipeline
    columns = min(
        (machine.memory_bytes - d.weight_bytes - workspace)
        // (d.cache_bytes_per_token * stages + scores)
        for d in devices
    )
    room = Generation(
        slots=slots,
        beams=config.decode.lanes,
        refill=max(1, slots // AUTO_REFILL[machine.device]),
        cells=columns,
        stop_every=every if isinstance(every, int) else AUTO_STOP_EVERY[machine.device],
        score_bytes=scores,
    )
    cells = columns - slots * room.overrun
    if cells < 1:
        worst = max(d.weight_bytes for d in devices)
        raise ConfigError(
            f"cluster.memory_gb: a device has {machine.memory_bytes / 1e9:.3g} GB, weights take "
            f"{worst / 1e9:.3g} GB and workspace {workspace / 1e9:.3g} GB of them, and too little "
            f"is left for a cache of {slots} rows at once. Raise parallel.tensor or "
            "parallel.pipeline, or lower batch.lanes, batch.max_tokens or batch.stop_every."
        )
    return replace(room, cells=cells)
