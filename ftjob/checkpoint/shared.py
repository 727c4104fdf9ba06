"""Slices that several devices of a node hold are read once: norms and positions by tensor ranks, a
tied embedding by the first and the last stage, everything by replicas.

`rank` makes one `SharedReads` for its device threads, whose `load.FileSource`s ask it; a copy in
the stored dtype is kept until the last of them has taken it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from ftjob.checkpoint.shard import Region, TensorRule
from ftjob.plan import DeviceSpec, stage_tensors

Key = tuple[str, tuple[tuple[int, int], ...]]
# How long a device waits for others to take what is kept, before it reads for itself alone.
_PATIENCE_S = 2.0
_GLANCE_S = 0.02
# Kept at most, beside the largest slice: devices of different stages ask in different orders.
_ROOM = 64 << 20


def key_of(name: str, region: Region) -> Key:
    """What tells a slice from others."""
    return name, tuple((s.start, s.stop) for s in region)


class SharedReads:
    """The slices that more than one of a node's devices needs, each to be read by the first."""

    def __init__(
        self, rules: tuple[TensorRule, ...], specs: Sequence[DeviceSpec], ways: int
    ) -> None:
        counts: Counter[Key] = Counter()
        for spec in specs:
            for placed in stage_tensors(rules, spec):
                regions = placed.rule.cut.regions(placed.rule.shape, spec.tensor, ways)
                counts.update(key_of(n, r) for n in placed.sources for r in regions)
        self._left = {key: count for key, count in counts.items() if count > 1}
        self._kept: dict[Key, torch.Tensor] = {}
        self._reading: set[Key] = set()
        self._change = threading.Condition()

    def read(
        self,
        key: Key,
        out: torch.Tensor,
        dtype: torch.dtype,
        read: Callable[[torch.Tensor], None],
        pulse: Callable[[], None],
    ) -> None:
        """Fill `out` with a slice: by `read`, or from the copy of the device that read it first.
        `pulse` is called while another one reads."""
        if key not in self._left:
            read(out)
            return
        if (copy := self._take(key, pulse)) is None:
            copy = torch.empty(out.shape, dtype=dtype, device=torch.device("cpu"))
            try:
                read(copy)
            except BaseException:
                self._finish(key)
                raise
            self._keep(key, copy, pulse)
        out.copy_(copy)

    def _take(self, key: Key, pulse: Callable[[], None]) -> torch.Tensor | None:
        """The kept copy; None makes the caller the one that reads."""
        while True:
            with self._change:
                if key not in self._reading:
                    copy = self._kept.get(key)
                    if copy is None:
                        self._reading.add(key)
                        return None
                    self._left[key] -= 1
                    if self._left[key] == 0:
                        del self._kept[key]
                        self._change.notify_all()
                    return copy
                self._change.wait(_GLANCE_S)
            pulse()

    def _keep(self, key: Key, copy: torch.Tensor, pulse: Callable[[], None]) -> None:
        """Keep what was read for those who still need it, as soon as there is room."""
        limit = time.monotonic() + _PATIENCE_S
        while True:
            with self._change:
                last = self._left[key] == 1
                held = sum(kept.nbytes for kept in self._kept.values())
                fits = not self._kept or held + copy.nbytes <= _ROOM
                if last or fits or time.monotonic() >= limit:
                    self._left[key] -= 1
                    if fits and not last:
                        self._kept[key] = copy
                    break
                self._change.wait(_GLANCE_S)
            pulse()
        self._finish(key)

    def _finish(self, key: Key) -> None:
        with self._change:
            self._reading.discard(key)
            self._change.notify_all()
