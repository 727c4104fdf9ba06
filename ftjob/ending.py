"""How the ranks of a job end as one: who is lost, which cause counts, when all files are closed.

The first cause ends the job, whoever has it; only a drain gives way to the failure or the lost rank
that brought it about. `rank` calls this when its work is over, `commands/run.py` and
`commands/follow.py` when the report is written.
"""

from __future__ import annotations

import math
import time

from ftjob.errors import DEADLINE, DRAINED, KILLED, Cause
from ftjob.link import Closed, Leave, Link, Start, Stop, Trouble

PAUSE_S = 0.005
# A rank that served and is silent this long while a drain goes on was lost, and the drain is its
# effect: Slurm tells the survivors of a lost rank to leave, and gives them some seconds for it.
LOST_IN_DRAIN_S = 2.0


def patience(limit_s: float, draining: bool) -> float:
    """Seconds of silence after which a rank counts as lost."""
    return min(LOST_IN_DRAIN_S, limit_s) if draining else limit_s


def lost_rank(
    rank: int, limit_s: float, phase: str, draining: bool = False, silent_s: float = 0.0
) -> Cause:
    """The cause of a rank of which nothing is heard any more; in a drain it was killed before.
    A rank that MPI cannot reach has been silent for ever."""
    if math.isinf(silent_s):
        return Cause(KILLED, "has gone: MPI cannot reach it any more", rank, phase=phase, lost=True)
    if draining:
        message = f"went silent before the others were told to stop ({patience(limit_s, True):g} s)"
        return Cause(KILLED, message, rank, phase=phase, lost=True)
    message = f"no sign of life for {limit_s:g} s (run.deadline_s)"
    return Cause(DEADLINE, message, rank, phase=phase, lost=True)


def first_cause(known: Cause | None, later: Cause) -> Cause:
    """The cause that counts of one known and one that came later."""
    return later if known is None or known.code == DRAINED else known


def close_all(link: Link, cause: Cause | None, limit_s: float) -> Cause | None:
    """Rank 0: tell everybody to stop, and wait until their files are closed or they are lost; one
    that lives and does not close counts as lost. Returns the cause that counts."""
    waiting = set(range(1, link.size))
    # devices may take the deadline once to end, and the files as long
    end = time.monotonic() + 2 * limit_s
    for rank in waiting:
        link.send(rank, Stop(cause))
    while waiting:
        for source, message in link.poll():
            if isinstance(message, Closed):
                waiting.discard(source)
            elif isinstance(message, Trouble):
                cause = first_cause(cause, message.cause)
        for rank in sorted(waiting):
            draining = cause is not None and cause.code == DRAINED
            silent_s = link.silent_s(rank)
            if silent_s > patience(limit_s, draining):
                waiting.discard(rank)
                lost = lost_rank(rank, limit_s, "close", draining, silent_s)
                cause = first_cause(cause, lost)
            elif time.monotonic() > end:
                waiting.discard(rank)
                text = f"did not end within {2 * limit_s:g} s (twice run.deadline_s)"
                late = Cause(DEADLINE, text, rank, phase="close", lost=True)
                cause = first_cause(cause, late)
        link.beat(None)
        time.sleep(PAUSE_S)
    return cause


def report_trouble(link: Link, cause: Cause, limit_s: float) -> Stop | Leave | None:
    """A follower that cannot go on tells rank 0, and waits for what it decides; None where nothing
    is heard of it any more. A start was sent before rank 0 knew."""
    link.send(0, Trouble(cause))
    while isinstance(told := await_leader(link, limit_s), Start):
        continue
    return told


def await_leader(link: Link, limit_s: float) -> Start | Stop | Leave | None:
    """A follower: what rank 0 decides; None where nothing is heard of it any more. What came right
    after it stays to be read: a stop may follow a start at once."""
    while link.silent_s(0) <= limit_s:
        found = link.poll()
        for at, (_, message) in enumerate(found, start=1):
            if isinstance(message, (Start, Stop, Leave)):
                link.put_back(found[at:])
                return message
        link.beat(None)
        time.sleep(PAUSE_S)
    return None
