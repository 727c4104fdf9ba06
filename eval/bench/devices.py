"""ftjob's own device threads in a layout, fed as the rank feeds them: what the contenders of ftjob
share. They stay warm between passes.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator
from typing import Any

from ftjob.batching import Chunk
from ftjob.comm import Pulse
from ftjob.comm.groups import Wiring
from ftjob.device import Answered, DeviceThread, Failed, Message
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
        self._outbox: queue.Queue[Message] = queue.Queue()
        self._specs = job.plan.of_rank(0)
        self._threads: list[DeviceThread] = []

    def start(self) -> None:
        """Make the threads anew where they have ended: those that generate do with each pass."""
        if any(thread.is_alive() for thread in self._threads):
            return
        halt = threading.Event()
        pulses = {s.local: Pulse(halt) for s in self._specs}
        wires = Wiring(self.job.plan, 0, pulses, None, Pulse(halt)).wires
        self._threads = [
            DeviceThread(self.job, s, wires[s.local], pulses[s.local], self._outbox, Phases())
            for s in self._specs
        ]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._get()

    def answers(self, formed: Iterator[Chunk]) -> Iterator[tuple[Any, Any]]:
        """Every request of the chunks with its answer, as they come. Scored chunks go out as others
        are answered; those to be continued at once, to the replicas in turn, and then the end."""
        flying = 0
        if self.job.plan.generation is not None:
            for number, chunk in enumerate(formed):
                self._give(number % self.job.plan.data, chunk)
                flying += len(chunk.requests)
            for replica in range(self.job.plan.data):
                self._give(replica, None)
        else:
            for _ in range(self.job.plan.pipeline + 1):
                for replica in range(self.job.plan.data):
                    flying += self._next(replica, formed)
        while flying:
            message = self._get()
            if not isinstance(message, Answered) or message.answers is None:
                continue
            flying -= len(message.answers)
            if self.job.plan.generation is None:
                flying += self._next(self._specs[message.device].data, formed)
            yield from zip(message.chunk.requests, message.answers, strict=True)
        if self.job.plan.generation is not None:
            for thread in self._threads:
                thread.join()

    def _next(self, replica: int, formed: Iterator[Chunk]) -> int:
        """Give a replica the next chunk, if there is one; its number of rows."""
        chunk = next(formed, None)
        if chunk is None:
            return 0
        self._give(replica, chunk)
        return len(chunk.requests)

    def _give(self, replica: int, chunk: Chunk | None) -> None:
        for thread in self._threads:
            if thread.spec.data == replica:
                thread.inbox.put(chunk)

    def _get(self) -> Message:
        message = self._outbox.get()
        if isinstance(message, Failed):
            raise RuntimeError(str(message.cause))
        return message
