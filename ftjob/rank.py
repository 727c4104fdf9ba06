"""One rank: starts its device threads, hands out chunks, writes the journal, fails as one.

The main thread alone handles signals, files and time; the devices only compute. It polls, so that
a signal or a silent device is noticed within a tenth of a second. The records it journals go to
`results.summary`.
"""

from __future__ import annotations

import os
import queue
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from ftjob.batching import Chunk, chunks
from ftjob.comm import Solo
from ftjob.device import Answered, DeviceThread, Failed, Message, Ready
from ftjob.errors import Cause, DeadlinePassed, JobError, ResumeRefused
from ftjob.job import Job
from ftjob.launch.signals import Signals
from ftjob.results.folder import RunFolder, write_json
from ftjob.results.journal import JournalWriter
from ftjob.tasks import make_task
from ftjob.tasks.base import KeyMaker, Row, ScoreRequest
from ftjob.tasks.rows import RowSource
from ftjob.telemetry import Phases, Progress, RunLog

POLL_S = 0.05
HEARTBEAT_S = 5.0
# Chunks a device may hold: the one it computes and the next, so that it never waits for us.
AHEAD = 2


@dataclass
class DeviceState:
    """What the main thread knows of a device."""

    thread: DeviceThread
    name: str = ""
    weight_bytes: int = 0
    held: list[Chunk] = field(default_factory=list)
    ready: bool = False
    rows: int = 0
    tokens: int = 0
    busy_s: float = 0.0


class Rank:
    """One attempt of one rank over one dataset."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        journal: JournalWriter,
        done: set[str],
        identity: str,
        log: RunLog,
        phases: Phases,
        signals: Signals,
    ) -> None:
        self.job, self.folder, self.journal = job, folder, journal
        self.log, self.phases, self.identity, self.signals = log, phases, identity, signals
        self.already, self.unseen = len(done), set(done)
        self.task = make_task(job.config.dataset)
        self.source = RowSource(job.config.dataset)
        self.rows = self.failed = 0
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.next_heartbeat = 0.0
        self.outbox: queue.Queue[Message] = queue.Queue()
        group = Solo()
        self.devices = [
            DeviceState(DeviceThread(job, spec, group, self.outbox, phases))
            for spec in job.plan.of_rank(phases.rank)
        ]
        self.progress = Progress(None, self.already, job.config.run.progress_s)

    def run(self) -> Cause | None:
        """Score every row that is missing. None when done, else why not."""
        try:
            self.write_status(None)
            for device in self.devices:
                device.thread.start()
            self._serve()
            return None
        except JobError as error:
            return Cause(error.code, str(error), self.phases.rank, phase=self.phases.current())
        except _DeviceFailed as error:
            return error.cause
        finally:
            self.progress.close()
            self.signals.restore()

    def _serve(self) -> None:
        """Hand out chunks and journal answers until all rows are done."""
        waiting = self._chunks()
        ended = False
        while True:
            if not ended and not self.signals.draining:
                ended = self._hand_out(waiting)
            if self.signals.interrupted:
                raise self.signals.stopped()
            if not any(d.held for d in self.devices):
                if self.signals.draining:
                    raise self.signals.stopped()
                if ended:
                    break
            self._collect()
        for device in self.devices:
            device.thread.inbox.put(None)
        for device in self.devices:
            device.thread.join(self.job.config.run.deadline_s)

    def _hand_out(self, waiting: Iterator[Chunk]) -> bool:
        """Fill every device's inbox, the emptiest first. True when no chunk is left."""
        while True:
            device = min(self.devices, key=lambda d: (len(d.held), sum(c.tokens for c in d.held)))
            if len(device.held) >= AHEAD:
                return False
            chunk = next(waiting, None)
            if chunk is None:
                return True
            if not device.held:
                device.thread.pulse()  # it was idle: its silence was ours
            device.held.append(chunk)
            device.thread.inbox.put(chunk)

    def _collect(self) -> None:
        """Wait a moment for news from the devices, and act on it."""
        try:
            message = self.outbox.get(timeout=POLL_S)
        except queue.Empty:
            message = None
        if isinstance(message, Failed):
            raise _DeviceFailed(message.cause)
        if isinstance(message, Ready):
            device = self.devices[message.device]
            device.ready, device.name = True, message.name
            device.weight_bytes = message.weight_bytes
            self._check_weight_bytes(message)
            self.log.write(
                "info",
                f"{message.name}: {message.weight_bytes} bytes of weights",
                device=message.device,
                phase="load",
            )
        if isinstance(message, Answered):
            self._answered(message)
        self._check_alive()
        if time.monotonic() >= self.next_heartbeat:
            self.write_status(None)

    def _check_weight_bytes(self, ready: Ready) -> None:
        """An ignored split would show here: a device must hold just what the plan says."""
        spec = self.devices[ready.device].thread.spec
        if ready.weight_bytes != spec.weight_bytes:
            raise _DeviceFailed(
                Cause(
                    1,
                    f"holds {ready.weight_bytes} bytes of weights, the plan "
                    f"says {spec.weight_bytes}",
                    device=ready.device,
                    phase="load",
                )
            )

    def _check_alive(self) -> None:
        limit = self.job.config.run.deadline_s
        for device in self.devices:
            silent = time.monotonic() - device.thread.last_pulse
            if (device.held or not device.ready) and silent > limit:
                raise _DeviceFailed(
                    Cause(
                        DeadlinePassed.code,
                        f"no sign of life for {limit:g} s (run.deadline_s)",
                        self.phases.rank,
                        device.thread.spec.local,
                        "score" if device.ready else "load",
                    )
                )

    def _answered(self, message: Answered) -> None:
        device, chunk = self.devices[message.device], message.chunk
        device.held.remove(chunk)
        device.rows += len(chunk.requests)
        device.tokens += chunk.tokens
        device.busy_s += message.seconds
        records = [
            self.task.record(r, s, self.job.tokenizer)
            for r, s in zip(chunk.requests, message.scored, strict=True)
        ]
        self.journal.append(records)
        self.rows += len(records)
        self.progress.add(len(records), chunk.tokens, 0)

    def _chunks(self) -> Iterator[Chunk]:
        batch = self.job.config.batch
        return chunks(
            self._requests(),
            window=batch.window,
            max_tokens=self.job.plan.max_tokens,
            by_length=batch.order == "length",
        )

    def _requests(self) -> Iterator[ScoreRequest]:
        """The rows still to be answered, prepared a window at a time; failed ones are journaled."""
        self._check_answered_rows()
        keys = KeyMaker(self.identity)
        rows: list[Row] = []
        names: list[str] = []
        reader = self.source.rows()
        while True:
            with self.phases.phase("read"):
                for row in reader:
                    key = keys.key(row.content)
                    if key in self.unseen:
                        self.unseen.remove(key)
                        continue
                    rows.append(row)
                    names.append(key)
                    if len(rows) == self.job.config.batch.window:
                        break
                prepared = self.task.prepare(
                    rows, names, self.job.tokenizer, self.job.source.arch.positions
                )
                failed = [p for p in prepared if isinstance(p, dict)]
            if failed:
                self._fail_rows(failed)
            yield from (p for p in prepared if isinstance(p, ScoreRequest))
            if not rows:
                limit = self.job.config.dataset.limit
                self.progress.set_total(min(self.source.total, limit or self.source.total))
                return
            rows, names = [], []

    def _check_answered_rows(self) -> None:
        """Before anything new is answered: every row answered before must still be there."""
        if not self.unseen:
            return
        with self.phases.phase("read"):
            keys, left = KeyMaker(self.identity), set(self.unseen)
            source = RowSource(self.job.config.dataset)
            for row in source.rows():
                left.discard(keys.key(row.content))
        if left:
            raise ResumeRefused(
                f"{self.folder.path}: {len(left)} rows answered there are not in {source.name} any "
                f"more (first key {min(left)}). Use the data set of the first attempt, or another "
                "run.dir."
            )

    def _fail_rows(self, records: list[dict[str, Any]]) -> None:
        self.journal.append(records)
        self.rows += len(records)
        self.failed += len(records)
        self.progress.add(len(records), 0, len(records))
        for record in records[:20]:
            self.log.write("warning", f"row refused: {record['error']}", phase="read")
        if len(records) > 20:
            self.log.write("warning", f"and {len(records) - 20} rows more", phase="read")

    def write_status(self, cause: Cause | None, code: int | None = None) -> None:
        """Write this rank's status file; `code` None means it still runs."""
        self.next_heartbeat = time.monotonic() + HEARTBEAT_S
        machine = self.job.plan.machine
        write_json(
            self.folder.status(self.phases.rank, self.phases.attempt),
            {
                "rank": self.phases.rank,
                "attempt": self.phases.attempt,
                "code": code,
                "cause": cause.as_dict() if cause else None,
                "started": self.started,
                "heartbeat": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "rows": self.rows,
                "failed": self.failed,
                "dataset": {"name": self.source.name, "total": self.source.total},
                "elapsed_s": round(self.phases.now(), 3),
                "phases": self.phases.as_list(),
                "devices": [
                    {
                        "rank": self.phases.rank,
                        "device": d.thread.spec.local,
                        "name": d.name or machine.device,
                        "attempt": self.phases.attempt,
                        "rows": d.rows,
                        "tokens": d.tokens,
                        "busy_s": round(d.busy_s, 4),
                        "weight_bytes": d.weight_bytes,
                        "spec": asdict(d.thread.spec),
                    }
                    for d in self.devices
                ],
            },
        )


class _DeviceFailed(Exception):
    """A device thread's first cause, on its way out of the main loop."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(str(cause))
        self.cause = cause
