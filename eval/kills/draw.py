"""What a seed decides: the layouts of each attempt, whom a kill strikes, in which phase and when.

Pure functions of (seed, sub-draw). The phases depend on the seed alone, so that a draw whose moment
was missed and is drawn again does not leave out the phases that are hard to meet.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

PHASES = ("load", "score", "merge", "report")
PHASE_WEIGHTS = (5, 88, 3, 4)
# Whom a kill strikes. "rank": one rank's process, and the launcher ends the others; "rank, alone":
# the launcher is frozen meanwhile, so that the others must notice by themselves; "launcher":
# mpirun's own process; "all": every process at once, as a lost node or allocation looks.
VICTIMS = ("rank", "rank, alone", "launcher", "all")
VICTIM_WEIGHTS = (45, 15, 10, 30)
SECOND_KILL = 0.25
RANKS, RANK_WEIGHTS = (1, 2, 4), (5, 4, 2)
MAX_DEVICES = 4


@dataclass(frozen=True)
class Layout:
    """How one attempt runs: ranks, devices of each, their split, and how chunks are formed."""

    ranks: int
    devices: int
    tensor: int
    pipeline: int
    max_tokens: int
    order: str
    window: int

    @property
    def data(self) -> int:
        """Replicas."""
        return self.ranks * self.devices // (self.tensor * self.pipeline)

    @property
    def overrides(self) -> list[str]:
        """The layout as ftjob's command line states it."""
        return [
            f"cluster.devices_per_node={self.devices}",
            f"parallel.tensor={self.tensor}",
            f"parallel.pipeline={self.pipeline}",
            f"parallel.data={self.data}",
            f"batch.max_tokens={self.max_tokens}",
            f"batch.order={self.order}",
            f"batch.window={self.window}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"data": self.data}


@dataclass(frozen=True)
class Shot:
    """One kill: `moment` in [0, 1) is where in the phase, `delay` in [0, 1) how long after what
    can be seen of it on disk; `rank` is the rank struck where one is."""

    phase: str
    victim: str
    rank: int
    moment: float
    delay: float


@dataclass(frozen=True)
class Draw:
    """All of a seed: `shots[i]` strikes the attempt of `layouts[i]`; the last layout ends."""

    layouts: tuple[Layout, ...]
    shots: tuple[Shot, ...]


def draw(seed: int, sub: int = 0) -> Draw:
    """The seed's kills; `sub` counts the draws whose moment was missed."""
    fixed = random.Random(seed)
    phases = fixed.choices(PHASES, PHASE_WEIGHTS)
    if phases[0] in ("load", "score") and fixed.random() < SECOND_KILL:
        phases += fixed.choices(PHASES, PHASE_WEIGHTS)
    free = random.Random(f"{seed}.{sub}")
    layouts = [_layout(free, None)]
    shots = []
    for phase in phases:
        shots.append(_shot(free, phase, layouts[-1].ranks))
        layouts.append(_layout(free, layouts[-1]))
    return Draw(tuple(layouts), tuple(shots))


def _layout(free: random.Random, before: Layout | None) -> Layout:
    """A layout of another number of ranks than the one before."""
    ranks = before.ranks if before is not None else 0
    while ranks == (before.ranks if before is not None else 0):
        (ranks,) = free.choices(RANKS, RANK_WEIGHTS)
    devices = free.choice([n for n in (1, 2) if ranks * n <= MAX_DEVICES])
    total = ranks * devices
    splits = [(t, p) for t in (1, 2, 4) for p in (1, 2, 3, 4) if total % (t * p) == 0]
    tensor, pipeline = free.choice(splits)
    return Layout(
        ranks,
        devices,
        tensor,
        pipeline,
        max_tokens=free.choice((48, 64, 96, 160)),
        order=free.choice(("length", "dataset")),
        window=free.choice((50, 16384)),
    )


def _shot(free: random.Random, phase: str, ranks: int) -> Shot:
    (victim,) = free.choices(VICTIMS, VICTIM_WEIGHTS)
    if victim == "rank, alone" and ranks == 1:
        victim = "rank"  # nobody would be left
    return Shot(phase, victim, free.randrange(ranks), free.random(), free.random())
