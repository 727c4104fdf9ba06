"""How the ranks of a job end as one: who is lost, which cause counts, when all files are closed.

The first cause ends the job, whoever has it; only a drain gives way to the failure or the lost rank
that brought it about. `rank` calls this when its work is over, `commands/run.py` and
`commands/follow.py` when the report is written.
"""

from __future__ import annotations

import time

from ftjob.errors import DEADLINE, DRAINED, Cause
from ftjob.link import Closed, Link, Stop, Trouble

PAUSE_S = 0.005
# A rank that served and is silent this long while a drain goes on was lost, and the drain is its
# effect: Slurm tells the survivors of a lost rank to leave, and gives them some seconds for it.
LOST_IN_DRAIN_S = 2.0


def patience(limit_s: float, draining: bool) -> float:
    """Seconds of silence after which a rank counts as lost."""
    return min(LOST_IN_DRAIN_S, limit_s) if draining else limit_s


def lost_rank(rank: int, silent_s: float, phase: str) -> Cause:
    """The cause of a rank of which nothing is heard any more."""
    message = f"no sign of life for {silent_s:g} s (run.deadline_s)"
    return Cause(DEADLINE, message, rank, phase=phase, lost=True)


def first_cause(known: Cause | None, later: Cause) -> Cause:
    """The cause that counts of one known and one that came later."""
    return later if known is None or known.code == DRAINED else known


def close_all(link: Link, cause: Cause | None, limit_s: float) -> Cause | None:
    """Rank 0: tell everybody to stop, and wait until their files are closed or they are lost.
    Returns the cause that counts."""
    waiting = set(range(1, link.size))
    for rank in waiting:
        link.send(rank, Stop(cause))
    while waiting:
        for source, message in link.poll():
            if isinstance(message, Closed):
                waiting.discard(source)
            elif isinstance(message, Trouble):
                cause = first_cause(cause, message.cause)
        for rank in sorted(waiting):
            limit = patience(limit_s, cause is not None and cause.code == DRAINED)
            if link.silent_s(rank) > limit:
                waiting.discard(rank)
                cause = first_cause(cause, lost_rank(rank, limit, "close"))
        link.beat(None)
        time.sleep(PAUSE_S)
    return cause


def report_trouble(link: Link, cause: Cause, limit_s: float) -> Cause:
    """A follower that cannot go on tells rank 0, and waits to be told the job's cause."""
    link.send(0, Trouble(cause))
    while link.silent_s(0) <= limit_s:
        for _, message in link.poll():
            if isinstance(message, Stop):
                return message.cause or cause
        link.beat(None)
        time.sleep(PAUSE_S)
    return cause
