"""Submission to Slurm: `cluster=slurm` becomes a batch script, made and submitted by submitit.

The job is an ordinary command line whose ranks srun starts, one a node; around them the script has
the same beginning and end as slurm/run.sh (slurm/job.sh). `launch/attend.py` follows the job.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ftjob.config import JobConfig
from ftjob.config.compose import packed_dir
from ftjob.errors import ConfigError
from ftjob.launch.world import World, make_machine
from ftjob.plan import Machine
from ftjob.results.folder import SUBMISSION, RunFolder, fresh_name, open_folder

# Those that submitit swallows, or answers by requeueing on its own terms.
SUBMITITS_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT)


@dataclass(frozen=True)
class Submitted:
    """A job that Slurm has accepted. `attempts` is how many the folder held before, `limit` the
    rows asked for."""

    job_id: str
    folder: RunFolder
    attempts: int
    limit: int | None


@dataclass(frozen=True)
class RankTask:
    """What submitit calls in every task of the job: ftjob's command line, in its process."""

    arguments: tuple[str, ...]

    def __call__(self) -> int:
        """Run as a rank. A code other than 0 ends the process with it, as it would a command."""
        from ftjob.__main__ import main

        for number in SUBMITITS_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        sys.argv = ["ftjob", *self.arguments]
        code = main(self.arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        if code:
            os._exit(code)
        return code


def submits(config: JobConfig, world: World) -> bool:
    """Whether this process is to submit the job: the ranks that srun or mpirun started are it."""
    return config.cluster.name == "slurm" and world.launcher == "none"


def machine_to_submit(config: JobConfig) -> Machine:
    """The machine that the job will find, as far as the configuration tells."""
    cluster = config.cluster
    nodes = cluster.nodes_to_submit
    world = World(0, nodes, "slurm")
    gpus = (cluster.gpus_to_submit or 0,) * nodes
    return make_machine(cluster, world, {}, gpus_of_rank=gpus, for_plan=True)


def parameters(config: JobConfig, folder: Path) -> dict[str, Any]:
    """What the batch script says, in submitit's words; `folder` is the run folder, absolute.

    Raises:
        ConfigError: for a folder whose name Slurm would change.
    """
    cluster = config.cluster
    if "%" in str(folder) or not str(folder).isprintable():
        raise ConfigError(
            f"run.dir={str(folder)!r}: Slurm gives % in names of files a meaning of its own, and "
            "line breaks end a line of the batch script. Name another folder."
        )
    job = shlex.quote(str(packed_dir("slurm") / "job.sh"))
    words = {
        "job_name": re.sub(r"[^\w.+-]+", "_", config.run.name or config.model.name) or "ftjob",
        "nodes": cluster.nodes_to_submit,
        "ntasks_per_node": 1,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "gpus_per_node": cluster.gpus_to_submit,
        "cpus_per_task": cluster.cpus_per_node,
        "mem": f"{cluster.mem_per_node_gb}G" if cluster.mem_per_node_gb else None,
        "exclusive": cluster.exclusive or None,
        "mail_user": cluster.mail_user,
        "mail_type": cluster.mail_type,
        "comment": cluster.comment,
        "signal_delay_s": max(1, round(config.run.drain_s)),
        "stderr_to_stdout": True,
        "srun_args": [f"--mpi={cluster.mpi}", "--kill-on-bad-exit=1", *(cluster.srun_args or ())],
        "setup": [f". {job}", f"ftjob_begin {shlex.quote(f'run.dir={folder}')}"],
        "teardown": [f"ftjob_end $? {shlex.quote(sys.executable)} -m ftjob"],
        "additional_parameters": {"requeue": True},
    }
    return words


def batch_script(config: JobConfig, now: datetime) -> str:
    """The script that a submission at this moment would have."""
    from submitit.slurm.slurm import _make_sbatch_string

    name = config.run.name or config.model.name
    wanted = Path(config.run.dir or f"runs/{fresh_name(name, now)}")
    folder = wanted.expanduser().resolve()
    submission = folder / SUBMISSION / "%j"
    interpreter = shlex.quote(sys.executable)
    command = f"{interpreter} -u -m submitit.core._submit {shlex.quote(str(submission))}"
    text: str = _make_sbatch_string(command, submission, **parameters(config, folder))
    return text


def submit(
    config: JobConfig, overrides: Sequence[str], config_dirs: Sequence[str], now: datetime
) -> Submitted:
    """Make the run folder and submit the job.

    Raises:
        ConfigError: without Slurm here, or with what sbatch said where it refused.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if SlurmExecutor.affinity() < 0:
        raise ConfigError("cluster=slurm: no srun is on this machine's PATH; use cluster=local.")
    opened = open_folder(config.run.dir, config.run.name or config.model.name, now)
    folder = RunFolder(opened.path.resolve())
    path = str(folder.path).replace("\\", "\\\\").replace("'", "\\'")
    arguments = [*overrides, f"run.dir='{path}'"]
    for config_dir in config_dirs:
        arguments += ["--config-dir", str(Path(config_dir).resolve())]
    attempts = len(folder.attempts())
    executor = SlurmExecutor(folder.path / SUBMISSION / "%j", max_num_timeout=0)
    executor.update_parameters(**parameters(config, folder.path))
    printed = io.StringIO()  # what sbatch said where it refused submitit prints and raises
    try:
        with redirect_stderr(printed):
            job = executor.submit(RankTask(tuple(arguments)))
    except (FailedJobError, FailedSubmissionError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"cluster=slurm: Slurm refused the job: {said}") from None
    sys.stderr.write(printed.getvalue())
    return Submitted(str(job.job_id), folder, attempts, config.dataset.limit)
