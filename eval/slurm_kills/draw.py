"""What a seed decides: what happens to the job, on which node, in which phase and when.

Pure functions of (seed, sub-draw). The phases go by the seed in turn, so that each comes often
enough; all else is drawn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from eval.kills.draw import Layout, Shot
from ftjob.errors import DEADLINE, DONE, DRAINED, KILLED

# of sixteen seeds, which ones do not strike while rows are in flight
OTHER_PHASES = {0: "load", 5: "merge", 10: "report"}
# Survivors of a lost node are told to leave only when Slurm has noticed, later than run.deadline_s;
# a killed rank is lost at once, and its peers are told at once.
LOST = frozenset((KILLED, DEADLINE))


@dataclass(frozen=True)
class Event:
    """A thing that happens: how often it is drawn, the codes of an attempt that it meets at work,
    whether the job always comes back by itself. Otherwise the same command is given again where
    the job ended."""

    name: str
    weight: int
    codes: frozenset[int]
    comes_back: bool


EVENTS = (
    Event("drain signal", 4, frozenset((DRAINED,)), True),
    Event("requeue", 3, frozenset((DRAINED,)), True),
    Event("preemption", 3, frozenset((DRAINED,)), True),
    # the survivors may have ended before Slurm has noticed
    Event("crash", 3, LOST, False),
    Event("cut", 2, LOST, False),
    Event("scancel", 3, frozenset((DRAINED,)), False),
    Event("rank", 5, LOST, False),
    Event("slurmd", 2, frozenset((DONE,)), False),
)


@dataclass(frozen=True)
class Draw:
    """All of a seed: the event, the first layout's shot (its rank is the node struck), and the
    layout of the next attempt, where the command is given again."""

    event: Event
    shot: Shot
    first: Layout
    again: Layout


def draw(seed: int, sub: int = 0) -> Draw:
    """The seed's event; `sub` counts the draws whose moment was missed."""
    fixed = random.Random(f"slurm {seed}")
    phase = OTHER_PHASES.get(seed % 16, "score")
    # the job survives slurmd's end: that tells something only while it works
    possible = [e for e in EVENTS if phase == "score" or e.name != "slurmd"]
    (event,) = fixed.choices(possible, [e.weight for e in possible])
    nodes = fixed.choice((2, 2, 4))
    free = random.Random(f"slurm {seed}.{sub}")
    first, again = _layout(free, nodes), _layout(free, 4 if nodes == 2 else 2)
    shot = Shot(phase, event.name, free.randrange(nodes), free.random() * 0.9, free.random())
    return Draw(event, shot, first, again)


def _layout(free: random.Random, nodes: int) -> Layout:
    """A device a node, for there are two cores in all."""
    splits = [(t, p) for t in (1, 2, 4) for p in (1, 2, 4) if nodes % (t * p) == 0]
    tensor, pipeline = free.choice(splits)
    return Layout(
        nodes,
        1,
        tensor,
        pipeline,
        max_tokens=free.choice((48, 64, 96)),
        order=free.choice(("length", "dataset")),
        window=free.choice((50, 16384)),
    )
