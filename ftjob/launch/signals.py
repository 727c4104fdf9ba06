"""Stop signals: at once while a job is being prepared, between polls while it runs.

Ctrl-C leaves now (exit 130); TERM and USR2, which Slurm sends before it takes the node, ask for a
drain (exit 75), as the end of the job's time does. `commands/run.py` installs the handlers, `rank`
asks them between polls.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from ftjob.errors import DRAINED, INTERRUPTED, Stopped


class Signals:
    """Remembers the first stop signal. Until `remember` is called a signal raises `Stopped` where
    it strikes, since nothing is in flight that could be saved."""

    CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.first: int | None = None
        self._drain_at: float | None = None
        self._timed = False
        self._raising, self._raised = True, False
        self._before = {s: signal.signal(s, self._note) for s in self.CAUGHT}

    def note(self, number: int) -> None:
        """Count a signal that reached another rank as if it had come here."""
        if self.first is None:
            self.first = number

    def drain_at(self, moment: float | None) -> None:
        """Drain at this moment, on the clock of time.time(), where no signal comes before."""
        self._drain_at = moment

    def look_at_clock(self) -> None:
        """Count the moment to drain, once it has come, as the signal to."""
        if self.first is None and self._drain_at is not None and time.time() >= self._drain_at:
            self._timed = True
            self.note(signal.SIGUSR2)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.note(number)
        if self._raising:
            self._raised = True
            raise self.stopped()

    def remember(self) -> None:
        """From now on only remember. Raises for a signal that a library has swallowed."""
        self._raising = False
        if self.first is not None:
            raise self.stopped()

    def blamed(self, error: Exception) -> Exception:
        """What `error` really was: whoever caught the stop raised in it may have made another error
        of it, such as that of a file that cannot be read."""
        return self.stopped() if self._raised else error

    def hold(self) -> None:
        """From now on only remember, and raise nothing: the end has begun."""
        self._raising = False

    def restore(self) -> None:
        """Put the handlers from before back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        """Leave now; what the devices are computing is dropped."""
        return self.first == signal.SIGINT

    @property
    def draining(self) -> bool:
        """Finish the chunks in flight, then leave to be requeued."""
        return self.first in (signal.SIGTERM, signal.SIGUSR2)

    def stopped(self) -> Stopped:
        """The exception that ends the run for the first signal."""
        if self.interrupted:
            return Stopped(
                "interrupted (Ctrl-C); the journal holds every finished row", INTERRUPTED
            )
        name = signal.Signals(self.first or signal.SIGTERM).name
        why = "before the job's time limit (run.drain_s)" if self._timed else f"on {name}"
        return Stopped(f"drained {why}; run the same command again to go on", DRAINED)
