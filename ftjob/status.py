"""A rank's status file: that it lives, what its devices did, and in the end its code and cause.

Written whole and renamed, by `rank` every few seconds and when it ends; `results.summary` merges
those of all ranks and attempts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from ftjob.batching import Chunk
from ftjob.device import DeviceThread
from ftjob.errors import Cause, RunFolderError
from ftjob.results.folder import RunFolder, born, write_json
from ftjob.telemetry import Phases


@dataclass
class DeviceState:
    """What the main thread knows of a device. `held` are the rows it has of each chunk, by the
    chunk's number, `largest_chunk` the tokens of the largest it is through with. `tokens` counts
    rows' tokens or, where rows are continued, the new ones, and `input_tokens` what they began
    with."""

    thread: DeviceThread
    name: str = ""
    weight_bytes: int = 0
    held: dict[int, int] = field(default_factory=dict)
    ready: bool = False
    rows: int = 0
    tokens: int = 0
    input_tokens: int = 0
    chunks: int = 0
    largest_chunk: int = 0
    busy_s: float = 0.0

    def take(self, chunk: Chunk | None) -> None:
        """Pass a chunk on to the device; None: there is no more to come."""
        if chunk is not None:
            if not self.held:
                self.thread.pulse.rest()
            self.held[chunk.sequence] = len(chunk.requests)
        self.thread.inbox.put(chunk)

    def done(self, chunk: Chunk, tokens: int, seconds: float) -> None:
        """The device is through with the rows of `chunk`, a chunk or a part of one."""
        self.rows += len(chunk.requests)
        self.tokens += tokens
        self.input_tokens += chunk.tokens
        self.largest_chunk = max(self.largest_chunk, chunk.tokens)
        self.busy_s += seconds
        self.held[chunk.sequence] -= len(chunk.requests)
        if not self.held[chunk.sequence]:
            del self.held[chunk.sequence]
            self.chunks += 1


@dataclass
class RankStatus:
    """What a rank's status file says. `rows` and `failed` count what its journal holds; `dataset`
    is a name, the rows passed so far, and whether these are all."""

    folder: RunFolder
    phases: Phases
    devices: Sequence[DeviceState]
    rows: int = 0
    failed: int = 0
    dataset: tuple[str, int, bool] = ("", 0, False)
    started: str = field(default_factory=lambda: now())

    def write(self, cause: Cause | None, code: int | None) -> None:
        """Write the file; `code` None means that the rank still runs.

        Raises:
            RunFolderError: where it cannot be written, and there is no cause yet that says more.
        """
        try:
            self._write(cause, code)
        except RunFolderError:
            if cause is None:
                raise

    def _write(self, cause: Cause | None, code: int | None) -> None:
        phases = self.phases
        write_json(
            self.folder.status(phases.rank, phases.attempt),
            {
                "rank": phases.rank,
                "attempt": phases.attempt,
                "code": code,
                "cause": cause.as_dict() if cause else None,
                "started": self.started,
                "heartbeat": now(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "born": born("self"),
                "rows": self.rows,
                "failed": self.failed,
                "dataset": dict(zip(("name", "total", "whole"), self.dataset, strict=True)),
                "elapsed_s": round(phases.now(), 3),
                "phases": phases.as_list(),
                "devices": [self._facts(device) for device in self.devices],
            },
        )

    def _facts(self, device: DeviceState) -> dict[str, Any]:
        return {
            "rank": self.phases.rank,
            "device": device.thread.spec.local,
            "name": device.name or device.thread.device.type,
            "attempt": self.phases.attempt,
            "rows": device.rows,
            "tokens": device.tokens,
            "input_tokens": device.input_tokens,
            "chunks": device.chunks,
            "largest_chunk": device.largest_chunk,
            "busy_s": round(device.busy_s, 4),
            "weight_bytes": device.weight_bytes,
            "spec": asdict(device.thread.spec),
        }


def now() -> str:
    """The time as an ISO string of whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
