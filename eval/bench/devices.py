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
    """The device threads of a job on one rank, loaded and warm."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._outbox: queue.Queue[Message] = queue.Queue()
        self._specs, halt = job.plan.of_rank(0), threading.Event()
        pulses = {s.local: Pulse(halt) for s in self._specs}
        wires = Wiring(job.plan, 0, pulses, None, Pulse(halt), job.source.arch.hidden).wires
        self._threads = [
            DeviceThread(job, s, wires[s.local], pulses[s.local], self._outbox, Phases())
            for s in self._specs
        ]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._get()

    def answers(self, formed: Iterator[Chunk]) -> Iterator[tuple[Any, Any]]:
        """Every request of the chunks with its answer, as they come. A replica has one chunk more
        than its stages, a chunk being its own until the last row of it is answered."""
        waiting: dict[int, int] = {}  # chunk -> rows that are not answered
        chunk_of: dict[str, int] = {}

        def give(replica: int) -> None:
            if (following := next(formed, None)) is None:
                return
            waiting[following.sequence] = len(following.requests)
            chunk_of.update((r.key, following.sequence) for r in following.requests)
            for thread in self._threads:
                if thread.spec.data == replica:
                    thread.inbox.put(following)

        for _ in range(self.job.plan.pipeline + 1):
            for replica in range(self.job.plan.data):
                give(replica)
        while waiting:
            message = self._get()
            if not isinstance(message, Answered) or message.scored is None:
                continue
            for request, answer in zip(message.chunk.requests, message.scored, strict=True):
                sequence = chunk_of.pop(request.key)
                waiting[sequence] -= 1
                if not waiting[sequence]:
                    del waiting[sequence]
                    give(self._specs[message.device].data)
                yield request, answer

    def _get(self) -> Message:
        message = self._outbox.get()
        if isinstance(message, Failed):
            raise RuntimeError(str(message.cause))
        return message
