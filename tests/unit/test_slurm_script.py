"""The batch script of cluster=slurm, as text: what the keys become, and what cannot get into it."""

from __future__ import annotations

import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ftjob.config import build
from ftjob.config.compose import packed_dir
from ftjob.config.groups import JobConfig
from ftjob.errors import ConfigError
from ftjob.launch.slurm import batch_script, machine_to_submit, submit, submits
from ftjob.launch.world import World

NOW = datetime(2026, 1, 2, 3, 4, 5)
SCRIPT = """#!/bin/bash

# Parameters
#SBATCH --account=acc
#SBATCH --comment='a b'
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=16
#SBATCH --exclude='n[1-3]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=a_b
#SBATCH --mail-type=END
#SBATCH --mail-user=me@x.org
#SBATCH --mem=100G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/f/run/submit/%j/%j_0_log.out
#SBATCH --partition=p
#SBATCH --qos=q
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1-02:00:00
#SBATCH --wckey=submitit

# setup
. JOB_SH
ftjob_begin run.dir=/f/run

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /f/run/submit/%j/%j_%t_log.out --mpi=pmix --kill-on-bad-exit=1 \
'--cpu-bind=none; x' PYTHON -u -m submitit.core._submit /f/run/submit/%j


# teardown
ftjob_end $? PYTHON -m ftjob"""
ALL: dict[str, Any] = {
    "name": "slurm",
    "nodes": 2,
    "time": "1-02:00:00",
    "partition": "p",
    "account": "acc",
    "qos": "q",
    "constraint": "a100|h100",
    "exclude": "n[1-3]",
    "gpus_per_node": 8,
    "cpus_per_node": 16,
    "mem_per_node_gb": 100,
    "exclusive": True,
    "mail_user": "me@x.org",
    "mail_type": "END",
    "comment": "a b",
    "mpi": "pmix",
    "srun_args": ["--cpu-bind=none; x"],
}


def config(run: dict[str, Any], **cluster: Any) -> JobConfig:
    """A configuration with these keys of two groups."""
    return build({"model": {"checkpoint": "somewhere"}, "cluster": cluster, "run": run})


def test_every_key() -> None:
    text = batch_script(config({"dir": "/f/run", "drain_s": 300, "name": "a b"}, **ALL), NOW)
    paths = {"JOB_SH": packed_dir("slurm") / "job.sh", "PYTHON": sys.executable}
    expected = SCRIPT
    for word, path in paths.items():
        expected = expected.replace(word, shlex.quote(str(path)))
    assert text.rstrip("\n") == expected


def test_defaults() -> None:
    """What is not asked for is left to Slurm; the folder gets a name of its own."""
    text = batch_script(config({}, name="slurm"), NOW)
    options = [line.split("=")[0] for line in text.splitlines() if line.startswith("#SBATCH")]
    words = "job-name nodes ntasks-per-node open-mode output requeue signal wckey"
    assert " ".join(options).replace("#SBATCH --", "") == words
    assert f"ftjob_begin run.dir={Path.cwd()}/runs/2026-01-02_03-04-05_model\n" in text
    assert " --mpi=pmi2 " in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("comment", "a\nrm -rf b"),
        ("partition", "a\rb"),
        ("account", ""),
        ("srun_args", ["--a", "b\nc"]),
        ("mpi", "pmi2\n"),
        ("time", "1:2"),
        ("time", "1 hour"),
        ("time", "1\n"),
    ],
)
def test_lines_that_would_break_the_script(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"cluster.{key}="):
        config({}, name="slurm", **{key: value})


@pytest.mark.parametrize("time", ["5", "5:30", "1:02:03", "1-0", "1-02:30", "2-00:00:00"])
def test_slurms_times(time: str) -> None:
    assert config({}, time=time).cluster.time == time


@pytest.mark.parametrize("folder", ["runs/100%", "a\nb"])
def test_folders_that_slurm_would_rename(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.dir="):
        batch_script(config({"dir": folder}, name="slurm"), NOW)


def test_hostile_folder() -> None:
    text = batch_script(config({"dir": '/f/it\'s; $(x) `y` "z"'}, name="slurm"), NOW)
    begin = next(line for line in text.splitlines() if line.startswith("ftjob_begin"))
    assert shlex.split(begin) == ["ftjob_begin", 'run.dir=/f/it\'s; $(x) `y` "z"']


def test_who_submits() -> None:
    slurm, local = config({}, name="slurm"), config({})
    assert submits(slurm, World(0, 1, "none"))
    assert not submits(slurm, World(0, 1, "srun"))
    assert not submits(local, World(0, 1, "none"))


@pytest.mark.parametrize(
    ("cluster", "devices", "device"),
    [
        ({"nodes": 2}, (1, 1), "cpu"),
        ({"nodes": 2, "gpus_per_node": 4}, (4, 4), "cuda"),
        ({"nodes": 2, "device": "cuda", "devices_per_node": 8}, (8, 8), "cuda"),
        ({"devices_per_node": [2, 1]}, (2, 1), "cpu"),
    ],
)
def test_machine(cluster: dict[str, Any], devices: tuple[int, ...], device: str) -> None:
    made = config({}, name="slurm", **cluster)
    machine = machine_to_submit(made)
    assert (machine.devices_of_rank, machine.device) == (devices, device)
    assert made.cluster.nodes_to_submit == len(devices)
    asked = {"gpus_per_node": 4}.items() <= cluster.items()
    assert (made.cluster.gpus_to_submit or 0) == (4 if asked else 8 * (device == "cuda"))


def test_what_sbatch_says_where_it_refuses_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, script in (("srun", "exit 0"), ("sbatch", "echo 'no such account' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    asked = config({"dir": str(tmp_path / "run")}, name="slurm")
    with pytest.raises(ConfigError, match=r"Slurm refused the job: no such account$"):
        submit(asked, [], [], NOW)
    assert capfd.readouterr() == ("", "")
