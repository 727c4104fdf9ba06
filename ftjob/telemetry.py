"""What a run says about itself while it runs: named phases, log lines, progress.

Rank and device threads share one `Phases` and one `RunLog`; the phases end in the rank's status
file and become the report's time line.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ftjob.errors import writing

# A gap within a phase is kept where it is this share of the time so far: about a pixel of the
# report's time line. So the list grows with the logarithm of the time, not with the chunks.
SEEN_GAP = 0.002


@dataclass(frozen=True)
class Phase:
    """A named stretch of time, in seconds since rank 0's process started."""

    name: str
    rank: int
    device: int | None
    attempt: int
    start_s: float
    end_s: float


def process_start() -> float:
    """When this process started, on the clock of time.time(); the interpreter's own start counts.

    Source: proc(5), field 22 of /proc/PID/stat in clock ticks since boot.
    """
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


class Phases:
    """The phases of one rank's process. Threads may add at once. `origin`, on the clock of
    time.time(), is rank 0's start, from which all ranks count; None is this process's own."""

    def __init__(self, rank: int = 0, attempt: int = 0, origin: float | None = None) -> None:
        self.rank, self.attempt = rank, attempt
        self.origin = process_start() if origin is None else origin
        self._done: list[tuple[str, int | None, float, float]] = []
        self._last: dict[int | None, int] = {}  # device -> where its last phase is in `_done`
        self._open: dict[int, str | None] = {}
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since the origin."""
        return time.time() - self.origin

    @contextmanager
    def phase(self, name: str, device: int | None = None) -> Iterator[None]:
        """Time what happens inside as phase `name`; after an error the thread stays in it."""
        start = self.now()
        try:
            with self.within(name):
                yield
        finally:
            self.add(name, start, self.now(), device)

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """What happens inside belongs to phase `name`, which is timed elsewhere; after an error the
        thread stays in it."""
        me = threading.get_ident()
        before = self._open.get(me)
        self._open[me] = name
        yield
        self._open[me] = before

    def add(self, name: str, start_s: float, end_s: float, device: int | None = None) -> None:
        """Add a phase that was timed elsewhere; one that follows its like on the same device
        without a gap to be seen is joined to it."""
        with self._lock:
            at = self._last.get(device)
            if at is not None:
                last = self._done[at]
                if last[0] == name and start_s - last[3] < SEEN_GAP * end_s:
                    self._done[at] = (name, device, last[2], end_s)
                    return
            self._last[device] = len(self._done)
            self._done.append((name, device, start_s, end_s))

    def current(self) -> str | None:
        """The phase that the calling thread is in, or failed in."""
        return self._open.get(threading.get_ident())

    def as_list(self) -> list[dict[str, Any]]:
        """The phases so far, for the status file."""
        with self._lock:
            return [
                asdict(Phase(n, self.rank, d, self.attempt, round(a, 4), round(b, 4)))
                for n, d, a, b in self._done
            ]


class RunLog:
    """Lines of `time level rank device phase message` in the rank's log file; rank 0 shows
    those of level `note` and above on stderr too. What a disk does not take ends nothing here: the
    journal meets it next, and rank 0 shows its word."""

    SHOWN = ("note", "warning", "error")

    def __init__(self, path: Path, rank: int) -> None:
        self.rank = rank
        self._lock = threading.Lock()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(
        self, level: str, message: str, *, device: int | None = None, phase: str | None = None
    ) -> None:
        """One line; a message of several lines is indented."""
        when = datetime.now(timezone.utc).astimezone().isoformat(timespec="milliseconds")
        where = f"rank={self.rank} device={'-' if device is None else device} phase={phase or '-'}"
        text = message.replace("\n", "\n    ")
        with self._lock:
            with suppress(OSError):
                self._file.write(f"{when} {level} {where} {text}\n")
            if self.rank == 0 and level in self.SHOWN:
                print(f"ftjob: {message}", file=sys.stderr, flush=True)  # noqa: T201

    def close(self) -> None:
        """Flush to disk and close."""
        with self._lock, suppress(OSError), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


class Progress:
    """A bar where stderr is a terminal, else a whole line each `every_s` seconds."""

    def __init__(self, total: int | None, done: int, every_s: float) -> None:
        self._total, self._done, self._before = total, done, done
        self._tokens = self._failed = 0
        self._every, self._start = every_s, time.monotonic()
        self._next = self._start + every_s
        self._bar: Any = None
        if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit="row", dynamic_ncols=True)

    def set_total(self, total: int) -> None:
        """The number of rows, once it is known."""
        self._total = total
        if self._bar is not None:
            self._bar.total = total

    def add(self, rows: int, tokens: int, failed: int) -> None:
        """Count finished rows."""
        self._done, self._tokens = self._done + rows, self._tokens + tokens
        self._failed += failed
        if self._bar is not None:
            self._bar.update(rows)
            self._bar.set_postfix(tokens=self._tokens, failed=self._failed)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            print(self.line(), file=sys.stderr, flush=True)  # noqa: T201

    def line(self) -> str:
        """The state as one line with a fixed order of keys."""
        elapsed = max(1e-9, time.monotonic() - self._start)
        rate = (self._done - self._before) / elapsed
        left = (self._total - self._done) / rate if self._total and rate else None
        eta = "?" if left is None else f"{left:.0f}s"
        return (
            f"ftjob: rows={self._done}/{self._total or '?'} rows_per_s={rate:.1f} "
            f"tokens_per_s={self._tokens / elapsed:.0f} eta={eta} failed={self._failed}"
        )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
