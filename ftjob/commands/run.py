"""`run`, the default command: from a configuration to a run folder with a report.

Prepares the job, opens or resumes the folder, lets the rank work, and prints the result.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime

from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.environment import describe
from ftjob.errors import BUG, DONE, Cause, ConfigError, ResumeRefused
from ftjob.job import Job, identity_hash, prepare
from ftjob.launch.signals import Signals
from ftjob.launch.world import detect_world, make_machine, set_thread_environment
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
from ftjob.results.summary import Score, collect, finish, write_report
from ftjob.tasks import make_task
from ftjob.tasks.rows import RowSource
from ftjob.telemetry import Phases, RunLog


def main(overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    """Compose and run. Returns the exit code."""
    signals = Signals()
    try:
        phases = Phases()
        with phases.phase("compose"):
            config = compose(overrides, config_dirs)
        return run(config, overrides, phases, signals)
    finally:
        signals.restore()


def run(config: JobConfig, overrides: Sequence[str], phases: Phases, signals: Signals) -> int:
    """Run a composed job. Returns the exit code."""
    world = detect_world(os.environ)
    machine = make_machine(config.cluster, world, os.environ)
    set_thread_environment(machine.devices_of_rank[world.rank], os.environ)
    with phases.phase("prepare"):
        job = prepare(config, machine)
        _refuse_many_devices(job)
        _check_expectations(config)
        RowSource(config.dataset).check()
        folder = open_folder(config.run.dir, config.run.name or config.model.name, datetime.now())
        signals.remember()  # from here on a stop leaves a status
        history = _claim(folder, job)
        phases.attempt = max(folder.attempts(), default=-1) + 1
        if not claim_attempt(folder, world.rank, phases.attempt):
            raise ResumeRefused(
                f"run.dir={folder.path}: another attempt began there this moment and still runs."
            )
        _describe(folder, job, overrides)
    log = RunLog(folder.file(f"logs/rank{world.rank:04d}.log"), world.rank)
    for path in history.torn:
        log.write("warning", f"{path.name}: a torn last line was cut off; its rows run again")
    if history.entries:
        log.write("note", f"resuming {folder.path}: {len(history.entries)} rows are done")
    cause, score = _work(job, folder, history, log, phases, signals)
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
    return int(results["code"])


def _work(
    job: Job,
    folder: RunFolder,
    history: History,
    log: RunLog,
    phases: Phases,
    signals: Signals,
) -> tuple[Cause | None, Score]:
    """Let the rank work to its end or first cause, merge, and write the rank's status."""
    with phases.phase("import"):
        from ftjob.rank import Rank
    identity = identity_hash(job.identity())
    journal = JournalWriter(folder, phases.rank, phases.attempt, identity, history.fences)
    rank = Rank(job, folder, journal, history.keys(), identity, log, phases, signals)
    try:
        cause = rank.run()
    except Exception as error:  # a bug of ours: keep the journal, say where
        cause = Cause(
            BUG,
            f"{type(error).__name__}: {error}",
            phases.rank,
            phase=phases.current(),
            traceback=traceback.format_exc(),
        )
    journal.close()
    if cause is not None:  # first of all the status, for those who wait for it
        rank.write_status(cause, cause.code)
    with phases.phase("merge"):
        score = collect(folder)
    rank.write_status(cause, cause.code if cause else DONE)
    return cause, score


def _check_expectations(config: JobConfig) -> None:
    """dataset.expect gives least values: of a metric where less is better it would say nothing."""
    metrics = make_task(config.dataset).metrics
    for name, least in config.dataset.expect.items():
        if name in metrics and not metrics[name].higher_is_better:
            legal = ", ".join(n for n, m in metrics.items() if m.higher_is_better)
            raise ConfigError(
                f"dataset.expect.{name}={least:g}: less is better there, and dataset.expect gives "
                f"least values. Legal: {legal}."
            )


def _refuse_many_devices(job: Job) -> None:
    """What this version does not run is refused by name, before anything starts."""
    plan = job.plan
    if plan.tensor * plan.pipeline > 1 or plan.machine.ranks > 1:
        raise ConfigError(
            f"parallel.tensor={plan.tensor} parallel.pipeline={plan.pipeline} on "
            f"{plan.machine.ranks} ranks: this version runs whole models in one rank "
            "(parallel.data); `python -m ftjob plan` sizes the others."
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
    write_json(folder.file("plan.json"), {"plan": job.plan.as_dict(), "model": job.model_facts()})
    write_json(folder.file("environment.json"), {**describe(os.environ), "argv": sys.argv[1:]})
