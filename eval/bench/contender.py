"""What a contender is: the spec that a benchmark lists, and what `cpu_worker` makes of it.

A module of contenders, such as `scoring`, has a table KINDS from a name to a function that makes a
model ready and gives a `Runner`. Only `run` is timed; `judge` counts and scores afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Contender:
    """KINDS[kind](*arguments) of eval.bench.MODULE, in a process of so many OMP threads. Those of a
    group are compared; `peer` is what is not ftjob."""

    name: str
    module: str
    kind: str
    arguments: tuple[str, ...]
    threads: int
    group: str = ""

    @property
    def peer(self) -> bool:
        """Whether this is another library."""
        return not self.kind.startswith("ftjob")


@dataclass(frozen=True)
class Outcome:
    """Real tokens of a pass, and how good its answers are where they were judged."""

    tokens: int
    quality: float | None


@dataclass(frozen=True)
class Runner:
    """One pass over all rows, and what its answers are worth. `ready` is called before the clock
    runs; the seconds that `apart` counts, in which later work is made fast, are no part of it."""

    run: Callable[[], Any]
    judge: Callable[[Any], Outcome]
    ready: Callable[[], None] = lambda: None
    apart: Callable[[], float] = lambda: 0.0


Kinds = Mapping[str, Callable[..., Runner]]
