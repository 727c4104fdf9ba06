"""The device threads of a job of one rank, fed by hand: what benchmarks drive in a rank's place.

`DeviceThread` is used as `rank` uses it: chunks into each inbox, answers out of the one outbox. The
threads stay loaded and warm until `stop`.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Iterator
from types import TracebackType

from ftjob.batching import Chunk
from ftjob.checkpoint.shared import SharedReads
from ftjob.comm import Pulse
from ftjob.comm.groups import GpuTerms, Wiring
from ftjob.device import DeviceThread
from ftjob.errors import ConfigError, DeadlinePassed, Stopped
from ftjob.job import Job
from ftjob.news import Answered, Failed, Message, Noted, Ready, Warned
from ftjob.telemetry import Phases

POLL_S = 0.5
GIVE_UP_S = 5.0


class LocalDevices:
    """The threads of rank 0. As a context they are started and, whatever happens, stopped.

    `held` counts the rows that each device, by its local number, is not through with.
    """

    def __init__(self, job: Job, phases: Phases) -> None:
        self.job = job
        self._halt = threading.Event()
        specs = job.plan.of_rank(0)
        self._pulses = {s.local: Pulse(self._halt) for s in specs}
        cuda = job.plan.machine.device == "cuda"
        terms = GpuTerms(None, job.config.run.deadline_s) if cuda else None
        wires = Wiring(job.plan, 0, self._pulses, None, Pulse(self._halt), terms).wires
        shared = SharedReads(job.source.rules, specs, job.plan.tensor)
        self._outbox: queue.Queue[Message] = queue.Queue()
        self._threads = [
            DeviceThread(
                job, s, wires[s.local], self._pulses[s.local], self._outbox, phases, shared
            )
            for s in specs
        ]
        self.held = {s.local: 0 for s in specs}
        self.names: dict[int, str] = {}

    def start(self) -> None:
        """Start the threads and wait until all are loaded and warm.

        Raises:
            Stopped: with the cause and exit code of a device that failed.
            DeadlinePassed: where one is silent for run.deadline_s.
        """
        for thread in self._threads:
            thread.start()
        while len(self.names) < len(self._threads):
            busy = [t.spec.local for t in self._threads if t.spec.local not in self.names]
            message = self._get(busy)
            assert isinstance(message, Ready)
            self.names[message.device] = message.name
        gc.collect()
        gc.freeze()  # as a rank does

    def give(self, replica: int, chunk: Chunk | None) -> None:
        """A chunk into the inbox of each device of a replica; None: there is no more to come."""
        for thread in self._threads:
            if thread.spec.data != replica:
                continue
            if chunk is not None:
                if not self.held[thread.spec.local]:
                    thread.pulse.rest()
                self.held[thread.spec.local] += len(chunk.requests)
            thread.inbox.put(chunk)

    def finished(self) -> Iterator[Answered]:
        """What the devices answer, as it comes, until none of them holds a row.

        Raises:
            Stopped, DeadlinePassed: as `start`.
        """
        while busy := [local for local, rows in self.held.items() if rows]:
            message = self._get(busy)
            assert isinstance(message, Answered)
            self.held[message.device] -= len(message.chunk.requests)
            yield message

    def replica_of(self, device: int) -> int:
        """The replica that a device belongs to."""
        return next(t.spec.data for t in self._threads if t.spec.local == device)

    def stop(self) -> None:
        """End the threads, and forget them with what they hold. Python's collector looks at all
        of the process again, what other devices hold included."""
        gc.unfreeze()
        for thread in self._threads:
            thread.inbox.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(GIVE_UP_S if self._halt.is_set() else self.job.config.run.deadline_s)
        self._threads = []

    def __enter__(self) -> LocalDevices:
        try:
            self.start()
        except BaseException:
            self._halt.set()
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._halt.set()
        self.stop()

    def _get(self, busy: list[int]) -> Message:
        """The next message; `busy` are the devices that have something to do."""
        limit = self.job.config.run.deadline_s
        while True:
            try:
                message = self._outbox.get(timeout=POLL_S)
            except queue.Empty:
                self._check(busy, limit)
                continue
            if isinstance(message, Failed):
                cause = message.cause
                raise Stopped(cause.traceback or str(cause), cause.code)
            if isinstance(message, Noted):
                continue
            if isinstance(message, Warned):  # halves are not what was to be timed
                raise Stopped(message.text, ConfigError.code)
            return message

    def _check(self, busy: list[int], limit: float) -> None:
        pulses = [self._pulses[local] for local in busy]
        silent = max(pulse.silent_s for pulse in pulses)
        waiting = min(pulse.waiting_s for pulse in pulses)
        if max(silent, waiting) > limit:
            raise DeadlinePassed(
                f"run.deadline_s={limit:g}: no sign of life for so long from one of the devices "
                f"{', '.join(map(str, busy))}, which hold "
                f"{sum(self.held[local] for local in busy)} rows."
            )
