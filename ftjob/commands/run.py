"""`run`, the default command: from a configuration to a run folder with a report.

Rank 0's part: prepares the job, opens or resumes the folder, starts the other ranks (`follow`),
lets all work, merges what they journaled, and prints the result.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ftjob.checkpoint.manifest import check_manifest
from ftjob.commands.follow import follow
from ftjob.commands.plan import planned_model
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.environment import describe
from ftjob.errors import (
    BUG,
    DONE,
    DRAINED,
    Cause,
    ConfigError,
    NoProgress,
    ResumeRefused,
    Stopped,
    cause_of,
)
from ftjob.job import Job, identity_hash, prepare
from ftjob.launch.attend import attend
from ftjob.launch.meeting import open_meeting
from ftjob.launch.ranks import (
    CONNECT_S,
    bound_ranks,
    dismiss,
    gather_hellos,
    hello,
    open_link,
    sharing,
)
from ftjob.launch.requeue import STANDS_STILL, drain_moment, has_come_back, stands_still
from ftjob.launch.signals import Signals
from ftjob.launch.slurm import machine_to_submit, submit, submits
from ftjob.launch.world import (
    World,
    detect_world,
    make_machine,
    set_gpu_environment,
    set_thread_environment,
)
from ftjob.link import Link, Start
from ftjob.plan import make_plan
from ftjob.results.folder import (
    RunFolder,
    claim_attempt,
    is_running,
    open_folder,
    read_json_file,
    write_json,
    write_json_once,
    write_text,
)
from ftjob.results.journal import History, JournalWriter, read_history
from ftjob.results.page import render_terminal
from ftjob.results.seen import Before, Seen, read_seen
from ftjob.results.statuses import idle_device
from ftjob.results.summary import Score, collect, finish, write_report
from ftjob.tasks import make_task
from ftjob.tasks.files import Fingerprint, fingerprint
from ftjob.tasks.rows import RowSource
from ftjob.telemetry import Phases, RunLog


def main(overrides: Sequence[str], config_dirs: Sequence[str], *, sweep: bool = False) -> int:
    """Compose and run, or submit; the ranks but the first follow. A job of a sweep is submitted
    and not waited for. Returns the exit code."""
    world = detect_world(os.environ)
    if world.rank > 0:
        return follow(world)
    signals = Signals()
    link: Link | None = None
    limit_s = CONNECT_S
    lost = connecting = False
    try:
        phases = Phases()
        with phases.phase("compose"):
            config = compose(overrides, config_dirs)
        if submits(config, world):
            signals.restore()  # Ctrl-C leaves the job alone
            return _submit(config, overrides, config_dirs, follow=not sweep)
        limit_s, connecting = config.run.deadline_s, True
        with phases.phase("connect"):
            link = open_link(world, limit_s)
        code, lost = run(config, overrides, phases, signals, world, link)
    except Exception as raised:  # said before the others leave: then the launcher may end us
        error = signals.blamed(raised)
        if isinstance(error, Stopped) and error.code == DRAINED and has_come_back(os.environ):
            error = NoProgress(STANDS_STILL)
        if world.size == 1 or (connecting and link is None):  # there are no others to be told
            raise error from None
        signals.hold()
        cause = cause_of(error, world.rank, "prepare")
        print(f"ftjob: {cause.traceback or error}", file=sys.stderr, flush=True)
        code = cause.code
    finally:
        if world.size == 1:  # else the launcher's TERM, as soon as the first rank leaves, meets us
            signals.restore()
    dismiss(link or open_link(world, limit_s), code, limit_s, meet=not lost)
    return code


def _submit(
    config: JobConfig, overrides: Sequence[str], config_dirs: Sequence[str], *, follow: bool
) -> int:
    """Submit the job after a look at what can be refused now. Returns its code, where followed."""
    source = planned_model(config)
    make_plan(config, source.arch, source.rules, machine_to_submit(config))
    _check_expectations(config)
    job = submit(config, overrides, config_dirs, datetime.now())
    print(f"job {job.job_id}\nrun folder {job.folder.path}", flush=True)
    if not (follow and config.cluster.follow):
        return DONE
    return attend(job, config.run.progress_s)


def run(
    config: JobConfig,
    overrides: Sequence[str],
    phases: Phases,
    signals: Signals,
    world: World,
    link: Link,
) -> tuple[int, bool]:
    """Run a composed job. Returns the exit code, and whether a rank was lost."""
    hellos = gather_hellos(link, hello(os.environ), config.run.deadline_s)
    machine = make_machine(
        config.cluster,
        world,
        os.environ,
        gpus_of_rank=[h.gpus for h in hellos],
        free_of_rank=[h.free_bytes for h in hellos],
    )
    sharers = sharing(hellos, machine.devices_of_rank)
    set_thread_environment(sharers[0], os.environ)
    set_gpu_environment(machine, config.cluster.nccl_launch_mode, os.environ)
    with phases.phase("prepare"), link.keepalive():
        job = prepare(config, machine)
        if job.source.index is not None and config.model.verify:
            check_manifest(job.source.index.folder)
        _check_expectations(config)
        data = fingerprint(RowSource(config.dataset).files())
        seen = _seen(job, data)
        if seen is None:  # else an attempt checked these very bytes
            RowSource(config.dataset).check()
        folder = open_folder(config.run.dir, config.run.name or config.model.name, datetime.now())
        signals.remember()  # from here on a stop leaves a status
        history = _claim(folder, job)
        if has_come_back(os.environ) and stands_still(
            history.rows_of_attempts(), folder.attempts()
        ):
            raise NoProgress(f"run.dir={folder.path}: {STANDS_STILL}.")
        signals.drain_at(drain_moment(os.environ, config.run.drain_s, time.time()))
        phases.attempt = max(folder.attempts(), default=-1) + 1
        if not claim_attempt(folder, link.rank, phases.attempt):
            raise ResumeRefused(
                f"run.dir={folder.path}: another attempt began there this moment and still runs."
            )
        _describe(folder, job, overrides)
    with link.keepalive():
        meeting = open_meeting(job.plan, hellos)
    address = None if meeting is None else meeting.address
    start = Start(
        config.as_dict(),
        machine,
        sharers,
        str(folder.path.resolve()),
        phases.attempt,
        identity_hash(job.identity()),
        history.fences,
        phases.origin,
        address,
    )
    for rank in range(1, link.size):
        link.send(rank, start)
    log = RunLog(folder.file(f"logs/rank{link.rank:04d}.log"), link.rank)
    remark = bound_ranks(hellos) if link.size > 1 and machine.device == "cpu" else None
    if remark:
        log.write("note", remark)
    for said in job.remarks:
        log.write(said.level, said.text)
    for path in history.torn:
        log.write("warning", f"{path.name}: a torn last line was cut off; its rows run again")
    if len(history.entries):
        log.write("note", f"resuming {folder.path}: {len(history.entries)} rows are done")
    before, fences = Before(history.keys(), seen, data), history.fences
    del history, seen  # of millions of rows these are the largest things here
    cause, score = _work(job, folder, before, fences, log, phases, signals, link, address)
    with link.keepalive():
        results = finish(folder, score)
        write_report(folder, results)
    if cause is None:
        print(render_terminal(results), flush=True)
    if results["cause"]:
        log.write("error", results["cause"])
    if cause is not None and cause.traceback:
        log.write("error", cause.traceback)
    log.write("note", f"report: {folder.file('report.html')}")
    log.close()
    return int(results["code"]), cause is not None and cause.lost


def _work(
    job: Job,
    folder: RunFolder,
    before: Before,
    fences: dict[str, int],
    log: RunLog,
    phases: Phases,
    signals: Signals,
    link: Link,
    meeting: tuple[str, int] | None,
) -> tuple[Cause | None, Score]:
    """Let the ranks work to the end or first cause, merge, and write rank 0's status."""
    with phases.phase("import"), link.keepalive():
        from ftjob.rank import Rank
    identity = identity_hash(job.identity())
    journal = JournalWriter(folder, phases.rank, phases.attempt, identity, fences)
    rank = Rank(job, folder, journal, before, identity, log, phases, signals, link, meeting)
    cause = rank.run()
    newest = max(folder.attempts())
    if newest > phases.attempt:  # we were thought dead; what we say now would contradict it
        message = f"attempt {newest} began there meanwhile: it goes on, and makes the report"
        cause = Cause(ResumeRefused.code, message, link.rank, phase="merge")
        rank.status.write(cause, cause.code)
        raise ResumeRefused(f"run.dir={folder.path}: {message}.")
    with phases.phase("merge"), link.keepalive():
        rank.status.write(cause, cause.code if cause else None)
        score = collect(folder)
        cause = _second_thoughts(cause, job, folder, rank.handout.given, phases, score)
        rank.status.write(cause, cause.code if cause else DONE)
    return cause, score


def _second_thoughts(
    cause: Cause | None, job: Job, folder: RunFolder, given: int, phases: Phases, score: Score
) -> Cause | None:
    """The cause of an end that seemed a good one: a device did nothing of the `given` chunks, or a
    drained job gets nowhere."""
    if cause is None and given >= 2 * job.plan.data:
        idle = idle_device(folder.statuses(), phases.attempt)
        if idle is not None:
            message = f"did no work, though there were {given} chunks for {job.plan.data} replicas"
            return Cause(BUG, message, idle["rank"], idle["device"], phase="merge")
    still = stands_still(score.rows_of_attempts, folder.attempts())
    if cause is not None and cause.code == DRAINED and still:
        return replace(cause, code=BUG, message=f"{cause.message}: {STANDS_STILL}")
    return cause


def _seen(job: Job, data: Fingerprint | None) -> Seen | None:
    """What earlier attempts in run.dir saw of the data set."""
    wanted = job.config.run.dir
    if wanted is None or data is None:
        return None
    return read_seen(RunFolder(Path(wanted).expanduser()), identity_hash(job.identity()), data)


def _check_expectations(config: JobConfig) -> None:
    """dataset.expect gives least values: of a metric where less is better it would say nothing, and
    of one that the run does not compute it would be told when all is done."""
    metrics = make_task(config).metrics
    legal = ", ".join(n for n, m in metrics.items() if m.higher_is_better is not False)
    for name, least in config.dataset.expect.items():
        if name not in metrics:
            raise ConfigError(
                f"dataset.expect.{name}={least:g}: no such metric of this run. Legal: {legal}."
            )
        if metrics[name].higher_is_better is False:
            raise ConfigError(
                f"dataset.expect.{name}={least:g}: less is better there, and dataset.expect gives "
                f"least values. Legal: {legal}."
            )


def _claim(folder: RunFolder, job: Job) -> History:
    """Make a fresh folder this job's, or check that an old one is.

    Raises:
        ResumeRefused: naming each setting that shapes the answers and differs.
    """
    path, facts = folder.file("identity.json"), job.identity()
    limit = job.config.dataset.limit
    if not write_json_once(path, {"facts": facts, "dataset.limit": limit}):
        before = read_json_file(path)
        changed = [
            f"{name}: {before['facts'].get(name)} -> {facts.get(name)}"
            for name in sorted({*before["facts"], *facts})
            if before["facts"].get(name) != facts.get(name)
        ]
        if changed:
            raise ResumeRefused(
                f"run.dir={folder.path}: holds answers made with other settings "
                f"({'; '.join(changed)}). Use them again, or another run.dir."
            )
        old = before["dataset.limit"]
        if limit is not None and (old is None or limit < old):
            raise ResumeRefused(
                f"dataset.limit={limit}: {folder.path} was started with "
                f"{'all rows' if old is None else old}; a run can be extended, "
                "not cut."
            )
    for status in folder.statuses():
        if is_running(status):
            raise ResumeRefused(
                f"run.dir={folder.path}: attempt {status['attempt']} still runs there, as process "
                f"{status['pid']} of this machine. Wait for it, or stop it first."
            )
    return read_history(folder)


def _describe(folder: RunFolder, job: Job, overrides: Sequence[str]) -> None:
    """Write what the run is: identity, configuration, overrides, plan, environment."""
    from omegaconf import OmegaConf

    facts = {"facts": job.identity(), "dataset.limit": job.config.dataset.limit}
    write_json(folder.file("identity.json"), facts)
    write_text(folder.file("config.yaml"), OmegaConf.to_yaml(job.config.as_dict()))
    write_text(folder.file("overrides.txt"), "".join(f"{o}\n" for o in overrides))
    warnings = [remark.text for remark in job.remarks if remark.level == "warning"]
    write_json(
        folder.file("plan.json"),
        {"plan": job.plan.as_dict(), "model": job.model_facts(), "warnings": warnings},
    )
    write_json(folder.file("environment.json"), {**describe(os.environ), "argv": sys.argv[1:]})
