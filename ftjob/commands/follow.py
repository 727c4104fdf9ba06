"""What every rank but the first does under `run`: wait for rank 0's start, work, leave with it.

It composes nothing and makes no folder. What goes wrong here is told to rank 0, which ends the job;
where rank 0 is lost, this rank writes its status and aborts the others.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ftjob.config import build
from ftjob.ending import await_leader, lost_rank, report_trouble
from ftjob.errors import Cause, CheckpointError, RunFolderError, WrongWorld, cause_of
from ftjob.job import identity_hash, prepare
from ftjob.launch.ranks import CONNECT_S, hello, open_link
from ftjob.launch.signals import Signals
from ftjob.launch.world import World, set_gpu_environment, set_thread_environment
from ftjob.link import Closed, Leave, Link, Start, Stop
from ftjob.results.folder import RunFolder
from ftjob.results.journal import JournalWriter
from ftjob.results.seen import Before
from ftjob.telemetry import Phases, RunLog


def follow(world: World) -> int:
    """Take part in rank 0's job. Returns the job's exit code."""
    signals = Signals()
    try:
        link = open_link(world, CONNECT_S)
    except WrongWorld as error:
        return error.code  # rank 0 finds the same, and says so
    limit_s, lost = CONNECT_S, None
    try:
        link.send(0, hello(os.environ))
        told = await_leader(link, limit_s)
        if isinstance(told, Start):
            limit_s = build(told.config).run.deadline_s
            lost = _work(world, told, link, signals)
            told = None if lost else await_leader(link, limit_s)
    except Exception as raised:
        reason = signals.blamed(raised)
        signals.hold()
        told = report_trouble(link, cause_of(reason, world.rank, "prepare"), limit_s)
        if isinstance(told, Stop):
            link.send(0, Closed())
            told = await_leader(link, limit_s)
    if not isinstance(told, Leave):
        lost = lost or lost_rank(0, limit_s, "serve")
        if world.rank == 1:
            print(f"ftjob: {lost}", file=sys.stderr, flush=True)
        told = Leave(lost.code, meet=False)
    link.leave(told.code, told.meet, limit_s)
    return told.code


def _work(world: World, start: Start, link: Link, signals: Signals) -> Cause | None:
    """Build this rank's part of the job and run it. Returns the cause if rank 0 was lost."""
    phases = Phases(world.rank, start.attempt, start.origin)
    config = build(start.config)
    set_thread_environment(start.sharing[world.rank], os.environ)
    set_gpu_environment(start.machine, config.cluster.nccl_launch_mode, os.environ)
    with link.keepalive(), phases.phase("prepare"):
        folder = RunFolder(Path(start.folder))
        if not folder.file("identity.json").is_file():
            raise RunFolderError(
                f"{start.folder}: is not the folder that rank 0 made. run.dir must lie on a file "
                "system that all nodes share."
            )
        job = prepare(config, start.machine)
        if identity_hash(job.identity()) != start.identity:
            raise CheckpointError(
                f"{job.source.origin}: holds another model or tokenizer on this node than on "
                "rank 0's."
            )
    signals.remember()
    with link.keepalive(), phases.phase("import"):
        from ftjob.rank import Rank
    log = RunLog(folder.file(f"logs/rank{world.rank:04d}.log"), world.rank)
    journal = JournalWriter(folder, world.rank, start.attempt, start.identity, start.fences)
    about = (Before(), start.identity, log, phases, signals, link, start.meeting)
    rank = Rank(job, folder, journal, *about)
    cause = rank.run()
    if cause is not None:
        log.write("error", str(cause))
        if cause.traceback:
            log.write("error", cause.traceback)
    log.close()
    return cause if rank.leaderless else None
