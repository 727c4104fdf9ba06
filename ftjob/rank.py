"""One rank: runs its device threads, journals their answers, and ends with all others.

The main thread alone handles signals, messages, files and time; the devices only compute. It polls,
so that a signal, a silent device or a lost rank is noticed. Rank 0 besides hands out the chunks
(`handout`) and decides when the job ends (`ending`). The records journaled here go to
`results.summary`.
"""

from __future__ import annotations

import gc
import os
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

from ftjob.checkpoint.shared import SharedReads
from ftjob.comm import Pulse
from ftjob.comm.groups import GpuTerms, Wiring
from ftjob.device import DeviceThread
from ftjob.ending import close_all, lost_rank, patience, report_trouble
from ftjob.errors import BUG, DEADLINE, DONE, Cause, cause_of
from ftjob.feed import Feed
from ftjob.handout import Handout
from ftjob.job import Job
from ftjob.launch.signals import Signals
from ftjob.link import Asked, Beat, Closed, Done, Link, Stop, Trouble, Work
from ftjob.news import Failed, Message, Noted, Ready, Warned
from ftjob.preflight import machine_warnings
from ftjob.results.folder import RunFolder
from ftjob.results.journal import JournalWriter
from ftjob.results.seen import Before
from ftjob.status import DeviceState, RankStatus
from ftjob.tasks import make_task
from ftjob.telemetry import Phases, Progress, RunLog

# Seconds between two looks around: for one rank alone, and where messages come.
POLL_S, POLL_MESSAGES_S = 0.05, 0.005
HEARTBEAT_S = 5.0
GIVE_UP_S = 0.5


class Rank:
    """One attempt of one rank. Only rank 0 needs to know what was `before`. `meeting` is where its
    GPUs find those of other ranks."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        journal: JournalWriter,
        before: Before,
        identity: str,
        log: RunLog,
        phases: Phases,
        signals: Signals,
        link: Link,
        meeting: tuple[str, int] | None = None,
    ) -> None:
        self.job, self.journal, self.log, self.link = job, journal, log, link
        self.phases, self.signals = phases, signals
        self.limit_s = job.config.run.deadline_s
        self._serving = "decode" if job.config.dataset.generates else "score"
        self.task = make_task(job.config)
        self.outbox: queue.Queue[Message] = queue.Queue()
        self.halt = threading.Event()
        specs = job.plan.of_rank(link.rank)
        pulses = {spec.local: Pulse(self.halt) for spec in specs}
        cuda = job.plan.machine.device == "cuda"
        terms = GpuTerms(meeting, self.limit_s) if cuda else None
        self.wiring = Wiring(job.plan, link.rank, pulses, link.data, Pulse(self.halt), terms)
        wires = self.wiring.wires
        shared = SharedReads(job.source.rules, specs, job.plan.tensor)
        threads = [
            DeviceThread(job, s, wires[s.local], pulses[s.local], self.outbox, phases, shared)
            for s in specs
        ]
        self.devices = [DeviceState(thread) for thread in threads]
        self.status = RankStatus(folder, phases, self.devices)
        self.next_heartbeat = 0.0
        self.stuck: dict[int, float | None] = {}
        self.served: set[int] = set()  # ranks known to be past their start
        self.stop: Stop | None = None
        self.cause: Cause | None = None
        self.asked = False
        if link.rank == 0:
            self.feed = Feed(
                job,
                folder,
                self.task,
                job.limits(),
                identity,
                before,
                phases,
                link,
                self._refuse_rows,
            )
            self.handout = Handout(job.plan, job.config.batch, self.feed.requests(), link)
            self.progress = Progress(None, len(before.done), job.config.run.progress_s)

    def run(self) -> Cause | None:
        """Work until all rows are done or the job has a cause to end, which is returned. Then the
        journal is closed; rank 0 leaves its status to the caller, who has a report to write."""
        try:
            self.status.write(None, None)
            for text in machine_warnings(self.job.plan, self.link.rank, os.environ):
                self.log.write("warning", text, phase="preflight")
            for device in self.devices:
                device.thread.start()
            if self.wiring.courier is not None:
                self.wiring.courier.start()
            while self.stop is None:
                self._turn()
            self.cause = self.stop.cause
        except Exception as error:
            self.cause = self._cause_of(error)
        self._finish_devices()
        gc.unfreeze()
        self._end_as_one()
        return self.cause

    def _turn(self) -> None:
        """One look at everything."""
        self._listen()
        if self.link.rank == 0:
            self._lead()
            self._listen()  # the work it gave itself must not wait for the next turn
        elif self.signals.first is not None and not self.asked:
            self.asked = True
            self.link.send(0, Asked(self.signals.first))
        if self.stop is not None:
            return
        self._collect()
        self._check_devices()
        self._check_ranks()
        self.link.beat(self._stuck_s())
        if time.monotonic() >= self.next_heartbeat:
            self.next_heartbeat = time.monotonic() + HEARTBEAT_S
            self.status.write(None, None)

    def _listen(self) -> None:
        """Act on all messages that have come."""
        for source, message in self.link.poll():
            self._receive(source, message)

    def _lead(self) -> None:
        """Rank 0: hand out, and see whether the end has come."""
        self.signals.look_at_clock()
        if self.signals.interrupted:
            raise self.signals.stopped()
        if not self.signals.draining:
            self.handout.step()
            self.status.dataset = self.feed.name, self.feed.total, self.feed.exhausted
            if self.feed.exhausted:
                self.progress.set_total(self.feed.wanted)
        else:
            self.handout.close()
        if self.handout.idle:
            if self.signals.draining:
                raise self.signals.stopped()
            if self.handout.ended:
                self.stop = Stop(None)

    def _receive(self, source: int, message: object) -> None:
        """Act on a message; one that says nothing to this rank is a bug of ours."""
        match message:
            case Work():
                self.served.add(source)
                for device in self.devices:
                    if device.thread.spec.data == message.replica:
                        device.take(message.chunk)
            case Done():
                self.served.add(source)
                self.handout.done(message)
                self.progress.add(message.rows, message.tokens, 0)
            case Beat():
                self.stuck[source] = message.stuck_s
            case Asked():
                self.signals.note(message.signal)
            case Trouble():
                raise _Ended(message.cause)
            case Stop():
                self.stop = message
            case _:
                raise RuntimeError(f"rank {source} sent {type(message).__name__} out of turn")

    def _collect(self) -> None:
        """Wait a moment for news from the devices, and act on all there is."""
        pause = POLL_MESSAGES_S if self.link.size > 1 else POLL_S
        try:
            message = self.outbox.get(timeout=pause)
            while True:
                self._heard(message)
                message = self.outbox.get_nowait()
        except queue.Empty:
            pass

    def _heard(self, message: Message) -> None:
        """Act on a device's news: journal the answers, then tell rank 0."""
        device = self.devices[message.device]
        if isinstance(message, Failed):
            raise _Ended(message.cause)
        if isinstance(message, Ready):
            device.ready, device.name = True, message.name
            device.weight_bytes = message.weight_bytes
            self._check_weight_bytes(device)
            text = f"{message.name}: {message.weight_bytes} bytes of weights"
            self.log.write("info", text, device=message.device, phase="load")
            if all(d.ready for d in self.devices):
                # what is there by now stays; to look through it for garbage halts every thread
                gc.collect()
                gc.freeze()
            return
        if isinstance(message, Warned | Noted):
            level = "warning" if isinstance(message, Warned) else "info"
            self.log.write(level, message.text, device=message.device, phase=self._phase())
            return
        chunk = message.chunk
        device.done(chunk, message.tokens, message.seconds)
        if message.answers is not None:
            records = [
                self.task.record(r, a, self.job.tokenizer)
                for r, a in zip(chunk.requests, message.answers, strict=True)
            ]
            self.journal.append(records)
            self.status.rows += len(records)
            replica = device.thread.spec.data
            self.link.send(0, Done(replica, chunk.sequence, len(records), message.tokens))

    def _check_weight_bytes(self, device: DeviceState) -> None:
        """An ignored split would show here: a device must hold just what the plan says."""
        planned = device.thread.spec.weight_bytes
        if device.weight_bytes != planned:
            message = f"holds {device.weight_bytes} bytes of weights, the plan says {planned}"
            raise _Ended(self._of_device(BUG, message, device))

    def _check_devices(self) -> None:
        """A device that neither gives a sign of life nor waits for another one ends the job."""
        for device in self.devices:
            silent = device.thread.pulse.silent_s
            if (device.held or not device.ready) and silent > self.limit_s:
                message = f"no sign of life for {self.limit_s:g} s (run.deadline_s)"
                raise _Ended(self._of_device(DEADLINE, message, device))
        courier = self.wiring.courier
        if courier is not None and courier.error is not None:
            raise courier.error

    def _check_ranks(self) -> None:
        """Rank 0 watches all others, they watch rank 0; and nobody waits in a ring for ever."""
        for rank in range(1, self.link.size) if self.link.rank == 0 else (0,):
            draining = self.signals.draining and rank in self.served
            silent_s = self.link.silent_s(rank)
            if silent_s > patience(self.limit_s, draining):
                raise _Ended(lost_rank(rank, self.limit_s, self._phase(), draining, silent_s))
        if self.link.rank == 0:
            stuck = [s for s in (*self.stuck.values(), self._stuck_s()) if s is not None]
            if stuck and min(stuck) > self.limit_s:
                message = f"every device has waited for another one for {self.limit_s:g} s"
                raise _Ended(Cause(DEADLINE, f"{message} (run.deadline_s)", phase=self._phase()))

    def _stuck_s(self) -> float | None:
        """How long all devices that have something to do have been waiting; None where none has."""
        busy = [d.thread.pulse for d in self.devices if d.held or not d.ready]
        return min((pulse.waiting_s for pulse in busy), default=None)

    def _phase(self) -> str:
        """What the rank is about, for a cause that is no device's."""
        return self._serving if all(d.ready for d in self.devices) else "load"

    def _of_device(self, code: int, message: str, device: DeviceState) -> Cause:
        phase = self._serving if device.ready else "load"
        thread = device.thread
        return Cause(code, message, self.link.rank, thread.spec.local, phase, thread.request())

    def _cause_of(self, error: Exception) -> Cause:
        """The cause that an error of this thread is."""
        if isinstance(error, _Ended):
            return error.cause
        return cause_of(error, self.link.rank, self.phases.current() or self._phase())

    def _finish_devices(self) -> None:
        """Let the devices end and count their last work, or tell them to give up."""
        if self.cause is not None:
            self.halt.set()
        for device in self.devices:
            device.thread.inbox.put(None)
        limit_s = self.limit_s if self.cause is None else GIVE_UP_S
        for device in self.devices:
            if device.thread.ident is not None:
                device.thread.join(limit_s)
        courier = self.wiring.courier
        if courier is not None and courier.ident is not None:
            courier.finish()
            courier.join(limit_s)
        while self.cause is None and not self.outbox.empty():
            try:
                self._heard(self.outbox.get())
            except Exception as error:
                self.cause = self._cause_of(error)

    def _end_as_one(self) -> None:
        """Agree with the other ranks on the cause, and close the journal."""
        known = self.cause
        if known is not None:  # first of all the status, for those who wait for it
            self.status.write(known, known.code)
        if self.link.rank == 0:
            self.cause = close_all(self.link, known, self.limit_s)
            self.progress.close()
        elif self.stop is None and known is not None and not self.leaderless:
            told = report_trouble(self.link, known, self.limit_s)
            self.stop = told if isinstance(told, Stop) else None
            self.cause = (self.stop.cause if self.stop is not None else None) or known
        elif self.stop is not None and self.stop.cause is None and known is not None:
            self.link.send(0, Trouble(known))
        self.journal.close()
        if self.link.rank != 0:
            self.status.write(self.cause, self.cause.code if self.cause else DONE)
            self.link.send(0, Closed())

    @property
    def leaderless(self) -> bool:
        """Whether this rank ended because it lost rank 0, which then tells nobody when to leave."""
        cause = self.cause
        return self.stop is None and cause is not None and cause.lost and cause.rank == 0

    def _refuse_rows(self, records: Sequence[dict[str, Any]]) -> None:
        """Journal rows that cannot be requests."""
        self.journal.append(records)
        self.status.rows += len(records)
        failed = [r for r in records if r["error"] is not None]
        self.status.failed += len(failed)
        self.progress.add(len(records), 0, len(failed))
        for record in failed[:20]:
            self.log.write("warning", f"row refused: {record['error']}", phase="read")
        if len(failed) > 20:
            self.log.write("warning", f"and {len(failed) - 20} rows more", phase="read")
        if skipped := len(records) - len(failed):
            text = f"{skipped} rows left out (dataset.too_long=skip)"
            self.log.write("warning", text, phase="read")


class _Ended(Exception):
    """The cause to end, on its way out of the main loop."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(str(cause))
        self.cause = cause
