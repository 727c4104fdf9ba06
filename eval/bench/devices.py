"""ftjob's own device threads in a layout, fed as the rank feeds them: what the contenders of ftjob
share. They stay warm between passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ftjob.batching import Chunk
from ftjob.bench.devices import LocalDevices
from ftjob.handout import chunks_ahead
from ftjob.job import Job
from ftjob.telemetry import Phases


def layout_overrides(layout: str) -> list[str]:
    """A layout such as t1p1d2 (tensor, pipeline, data) as overrides."""
    tensor, pipeline, data = map(int, re.findall(r"\d", layout))
    return [
        f"cluster.devices_per_node={tensor * pipeline * data}",
        f"parallel.tensor={tensor}",
        f"parallel.pipeline={pipeline}",
    ]


class Devices:
    """The device threads of a job on one rank. `start` makes them loaded and warm."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.phases = Phases()
        self._devices: LocalDevices | None = None

    def start(self) -> None:
        """Make the threads anew where they have ended: those that generate do with each pass."""
        if self._devices is None:
            self.phases = Phases()
            self._devices = LocalDevices(self.job, self.phases)
            self._devices.start()

    def answers(self, formed: Iterator[Chunk]) -> Iterator[tuple[Any, Any]]:
        """Every request of the chunks with its answer, as they come. Scored chunks go out as others
        are answered; those to be continued at once, to the replicas in turn, and then the end."""
        devices, plan = self._devices, self.job.plan
        assert devices is not None
        if plan.generation is not None:
            for number, chunk in enumerate(formed):
                devices.give(number % plan.data, chunk)
            for replica in range(plan.data):
                devices.give(replica, None)
        else:
            for _ in range(chunks_ahead(plan)):
                for replica in range(plan.data):
                    _give_next(devices, replica, formed)
        for done in devices.finished():
            if done.answers is None:
                continue
            if plan.generation is None:
                _give_next(devices, devices.replica_of(done.device), formed)
            yield from zip(done.chunk.requests, done.answers, strict=True)
        if plan.generation is not None:
            self.stop()

    def stop(self) -> None:
        """End the threads."""
        if self._devices is not None:
            self._devices.stop()
            self._devices = None


def _give_next(devices: LocalDevices, replica: int, formed: Iterator[Chunk]) -> None:
    """Give a replica the next chunk, if there is one."""
    chunk = next(formed, None)
    if chunk is not None:
        devices.give(replica, chunk)
