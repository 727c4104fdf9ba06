"""How the ranks of a job come together and part: connect, say hello, wait for the start, leave.

Rank 0 (`commands/run.py`) composes the job and starts the others (`commands/follow.py`), or
dismisses them where it is refused. With one rank nothing of MPI is touched.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence

from ftjob.ending import lost_rank
from ftjob.errors import DeadlinePassed, Stopped
from ftjob.launch.nvml import free_bytes
from ftjob.launch.world import World, visible_gpus
from ftjob.link import Hello, Leave, Link, LocalLink, Trouble

PAUSE_S = 0.005
# How long a rank waits for the others while it does not know run.deadline_s yet.
CONNECT_S = 120.0


def open_link(world: World, limit_s: float) -> Link:
    """The link to the other ranks; MPI is started where there are any.

    Raises:
        ConfigError: where MPI and the launcher disagree, or MPI is missing.
    """
    if world.size == 1:
        return LocalLink()
    from ftjob.launch.mpi import connect

    return connect(world.rank, world.size, world.launcher, limit_s)


def hello(env: Mapping[str, str]) -> Hello:
    """What this rank says first."""
    cores = frozenset(os.sched_getaffinity(0))
    free = free_bytes(env)
    return Hello(
        host=socket.gethostname(),
        gpus=visible_gpus(env),
        free_bytes=None if free is None else tuple(free),
        cores=cores,
        host_cores=os.cpu_count() or 1,
    )


def gather_hellos(link: Link, own: Hello, limit_s: float) -> list[Hello]:
    """Rank 0: every rank's hello, in rank order.

    Raises:
        Stopped: with the cause of a rank that could not start.
        DeadlinePassed: naming the rank of which nothing is heard.
    """
    found = {0: own}
    while len(found) < link.size:
        for source, message in link.poll():
            if isinstance(message, Hello):
                found[source] = message
            elif isinstance(message, Trouble):
                raise Stopped(str(message.cause), message.cause.code)
        for rank in range(1, link.size):
            if rank not in found and link.silent_s(rank) > limit_s:
                raise DeadlinePassed(str(lost_rank(rank, limit_s, "start")))
        link.beat(None)
        time.sleep(PAUSE_S)
    return [found[rank] for rank in range(link.size)]


def sharing(hellos: Sequence[Hello], devices_of_rank: Sequence[int]) -> tuple[int, ...]:
    """By rank: the devices of all ranks that may run on one of its cores."""
    return tuple(
        sum(
            devices
            for other, devices in zip(hellos, devices_of_rank, strict=True)
            if other.host == mine.host and other.cores & mine.cores
        )
        for mine in hellos
    )


def bound_ranks(hellos: Sequence[Hello]) -> str | None:
    """A remark on a host most of whose cores no rank may use; None where there is none."""
    for host in {h.host: None for h in hellos}:
        ranks = [rank for rank, h in enumerate(hellos) if h.host == host]
        free = frozenset[int]().union(*(hellos[rank].cores for rank in ranks))
        cores = hellos[ranks[0]].host_cores
        if 2 * len(free) <= cores:
            return (
                f"the ranks on {host} ({', '.join(map(str, ranks))}) may use {len(free)} of its "
                f"{cores} cores: their launcher binds them. Open MPI does so unless told "
                "`mpirun --bind-to none`; under srun ask with --cpus-per-task"
            )
    return None


def dismiss(link: Link, code: int, limit_s: float, *, meet: bool = True) -> None:
    """Rank 0: everybody leaves with the job's code. Where a rank is lost they cannot meet: then
    all of them are aborted, and this does not return."""
    for rank in range(1, link.size):
        link.send(rank, Leave(code, meet))
    link.leave(code, meet, limit_s)
