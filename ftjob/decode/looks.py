"""When the host looks at which rows are finished, so that it never waits for a step on a GPU.

The flags of every so many steps start for the host then and are looked at some steps later, at the
same steps on every device of a replica. A row that has all the tokens it may get needs no flag.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

# Steps that a GPU has ahead of it while flags travel.
LAG = 1
# Seconds between looks at whether something is here: a thread that looks all the time keeps the
# interpreter from the process' other devices, whose launches then come late.
PAUSE_S = 2e-5


class Fetched:
    """A tensor on its way to the host: `host`, as soon as it is `here`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self.host = tensor
        if tensor.is_cuda:
            self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def here(self) -> bool:
        """Whether `take` need not wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def take(self, check: Callable[[], None]) -> torch.Tensor:
        """The tensor, once it is here. `check` is called again and again until then; it may raise,
        but it must be no sign of life: a device that hangs has none."""
        while not self.here:
            check()
            time.sleep(PAUSE_S)
        return self.host


class Looks:
    """The looks at the flags of one micro-batch."""

    def __init__(self, every: int, lag: int, check: Callable[[], None]) -> None:
        self._every, self._lag, self._check = every, lag, check
        self._steps = 0
        self._waiting: tuple[int, Fetched] | None = None

    def after(self, flags: torch.Tensor, spent: Sequence[bool]) -> list[bool]:
        """A step is over, with these flags [n] of the rows that made it; `spent` says which rows
        have all their tokens. Gives which of the first rows leave now."""
        self._steps += 1
        if all(spent):
            self._waiting = None
            return list(spent)
        if self._steps % self._every == 0:
            self._waiting = self._steps + self._lag, Fetched(flags)
        if self._waiting is None or self._steps < self._waiting[0]:
            return []
        found: list[bool] = self._waiting[1].take(self._check).tolist()
        self._waiting = None
        found += [False] * (len(spent) - len(found))
        return [a or b for a, b in zip(found, spent, strict=True)]
