"""The scripts of slurm/, run by bash with fakes of what they call: srun, scontrol, docker, ...

A fake writes down what it was given; the one that plays the ranks leaves a status.json, as ftjob
would. On the cluster of tests/slurm run.sh runs for real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "slurm"
SCRIPTS = ("run.sh", "run_pyxis.sh", "run_docker.sh")
RANKS = """#!/bin/bash
# plays the ranks: FAKE_STATUS is the code that they leave, FAKE_CODE what the launcher makes of it
printf '%s\\0' "$(basename "$0")" "$@" >> "$FAKE_CALLS"; printf '\\n' >> "$FAKE_CALLS"
case "$*" in
  *"docker kill"* | *"docker rm"*) exit 0 ;;
  *" report "*) [ -z "$FAKE_REPORT" ] || printf '{\\n  "code": %s,\\n' "$FAKE_REPORT" \\
                  > "$FAKE_RUN/status.json"; exit 0 ;;
esac
[ -z "$FAKE_REFUSES" ] || exit "$FAKE_REFUSES"
mkdir -p "$FAKE_RUN/status"
echo > "$FAKE_RUN/status/rank0000.attempt$$.json"
[ -z "$FAKE_SLEEP" ] || { trap 'FAKE_STATUS=75' USR2; sleep "$FAKE_SLEEP" & wait; }
[ -z "$FAKE_STATUS" ] || printf '{\\n  "code": %s,\\n  "cause": {\\n    "code": 9,\\n' \\
  "$FAKE_STATUS" > "$FAKE_RUN/status.json"
exit "${FAKE_CODE:-0}"
"""
TELLS = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$@" >> "$FAKE_CALLS"; printf '\\n' >> "$FAKE_CALLS"
"""
SQUEUE = f'{TELLS}case "$*" in *%T*) echo "$FAKE_STATE" ;; *%e*) echo "$FAKE_END" ;; esac\n'


class Desk:
    """A folder with fakes on its PATH, in which a batch script is run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        for name in ("srun", "mpirun", "docker"):
            self.fake(name, RANKS)
        self.fake("python", RANKS)
        self.fake("scontrol", TELLS)
        self.fake("squeue", SQUEUE)
        for name in ("bash", "cat", "sed", "stat", "date", "mkdir", "ln", "dirname", "readlink"):
            (self.bin / name).symlink_to(str(shutil.which(name)))
        for name in ("basename", "sleep", "env", "find", "wc"):
            (self.bin / name).symlink_to(str(shutil.which(name)))

    def fake(self, name: str, text: str) -> None:
        """Put a program there."""
        (self.bin / name).write_text(text, encoding="utf-8")
        (self.bin / name).chmod(0o755)

    def start(self, script: str, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a script, as Slurm would: with no terminal, and its variables."""
        variables = {
            "PATH": str(self.bin),
            "HOME": str(self.folder),
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NUM_NODES": "2",
            "FAKE_CALLS": str(self.folder / "calls"),
            "FAKE_RUN": str(self.folder / "runs" / "job17"),
            "FAKE_STATE": "RUNNING",
            "FAKE_END": "2030-01-01T00:00:00",
            "FAKE_STATUS": "0",
            "FTJOB_IMAGE": "img",
            **env,
        }
        return subprocess.Popen(
            ["bash", str(SLURM / script), *words],
            cwd=self.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *words: str, **env: str) -> tuple[int, str]:
        """Run a script to its end: its code and what it said."""
        process = self.start(script, *words, **env)
        _, err = process.communicate(timeout=30)
        return process.returncode, err

    def calls(self, program: str) -> list[list[str]]:
        """What a fake was given, call by call."""
        text = (self.folder / "calls").read_text(encoding="utf-8")
        calls = [line.split("\0")[:-1] for line in text.split("\n") if line]
        return [call[1:] for call in calls if call[0] == program]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "a desk")


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    files = [*SLURM.glob("*.sh"), SLURM.parent / ".ci" / "run"]
    command = ["shellcheck", "--external-sources", *map(str, files)]
    done = subprocess.run(command, cwd=SLURM.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_sbatch_lines_come_first(script: str) -> None:
    """sbatch reads them up to the first command; a drain signal, append and requeue are there."""
    lines = (SLURM / script).read_text(encoding="utf-8").splitlines()
    asked = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(asked)] == [line for line in lines if line.startswith("#SBATCH")]
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(asked)
    assert any(word in asked for word in ("--signal=USR2@120", "--signal=B:USR2@120"))


def test_run(desk: Desk) -> None:
    """One rank a node, overrides as they are, a folder that a requeued job finds again."""
    words = ("model.name=a b", "dataset.expect={acc: 0.1}")
    code, _ = desk.run("run.sh", *words, SLURM_CPUS_PER_TASK="4", FTJOB_MPI="pmix")
    assert code == 0
    (call,) = desk.calls("srun")
    assert call == [
        *("--ntasks=2", "--ntasks-per-node=1", "--mpi=pmix", "--kill-on-bad-exit=1"),
        *("python", "-m", "ftjob", *words, "run.dir=runs/job17"),
    ]
    assert (desk.folder / "runs" / "latest").readlink() == Path("job17")
    assert desk.calls("scontrol") == []


def test_run_dir_is_the_users(desk: Desk) -> None:
    run = str(desk.folder / "my run")
    code, _ = desk.run("run.sh", f"run.dir='{run}'", FAKE_RUN=run, FAKE_STATUS="4", FAKE_CODE="137")
    assert code == 4, "the code is status.json's, not srun's"
    assert desk.calls("srun")[0][-1] == f"run.dir='{run}'"


@pytest.mark.parametrize("script", SCRIPTS)
def test_drained_and_requeued(desk: Desk, script: str) -> None:
    code, said = desk.run(script, FAKE_STATUS="75", FAKE_CODE="137")
    assert (code, desk.calls("scontrol")) == (75, [["requeue", "17"]])
    assert "job 17 is requeued" in said


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_cancelled_job_is_not_revived(desk: Desk, state: str) -> None:
    code, said = desk.run("run.sh", FAKE_STATUS="75", FAKE_STATE=state)
    assert (code, desk.calls("scontrol")) == (75, [])
    assert "not requeued" in said


def test_where_slurm_does_not_requeue(desk: Desk) -> None:
    desk.fake("scontrol", f"{TELLS}exit 1\n")
    code, said = desk.run("run.sh", FAKE_STATUS="75")
    assert code == 75
    assert "did not requeue" in said


def test_without_scontrol(desk: Desk) -> None:
    """As in a container: whoever started the script reads 75."""
    (desk.bin / "scontrol").unlink()
    (desk.bin / "squeue").unlink()
    code, said = desk.run("run.sh", FAKE_STATUS="75")
    assert code == 75
    assert "no scontrol" in said


def test_an_older_status_does_not_count(desk: Desk) -> None:
    """Rank 0 died without a word after an attempt that had drained: no requeue for ever."""
    run = desk.folder / "runs" / "job17"
    (run / "status").mkdir(parents=True)
    (run / "status.json").write_text('{\n  "code": 75,\n', encoding="utf-8")
    code, _ = desk.run("run.sh", FAKE_STATUS="", FAKE_CODE="137")
    assert (code, desk.calls("scontrol")) == (137, [])
    assert desk.calls("python") == [["-m", "ftjob", "report", "runs/job17", "report.over=true"]]
    code, _ = desk.run("run.sh", FAKE_STATUS="", FAKE_CODE="137", FAKE_REPORT="124")
    assert code == 124, "what the other ranks left, merged now"


def test_what_was_reported_on_the_way_is_no_end(desk: Desk) -> None:
    """Somebody looked on, by `report`, before rank 0 died without a word."""
    code, _ = desk.run("run.sh", FAKE_STATUS="null", FAKE_CODE="137", FAKE_REPORT="124")
    assert code == 124


def test_an_end_without_a_folder(desk: Desk) -> None:
    """Refused: nothing was made, srun's code is all there is."""
    desk.fake("srun", f"{TELLS}exit 2\n")
    code, said = desk.run("run.sh")
    assert code == 2
    assert "ends with 2; see what is said above" in said
    (desk.bin / "srun").write_text(f"{TELLS}exit 75\n", encoding="utf-8")
    assert desk.run("run.sh")[0] == 75


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_refusal_after_a_drained_attempt(desk: Desk, script: str) -> None:
    """No attempt began: what lies there is not this run's, and does not bring it back."""
    assert desk.run(script, FAKE_STATUS="75", FAKE_STATE="COMPLETING")[0] == 75
    code, _ = desk.run(script, FAKE_REFUSES="2", FAKE_REPORT="75")
    assert (code, desk.calls("scontrol")) == (2, [])


def test_end_of_the_job(desk: Desk) -> None:
    desk.fake("srun", f'{TELLS}printf "%s\\0\\n" end "$SLURM_JOB_END_TIME" >> "$FAKE_CALLS"\n')
    desk.run("run.sh", TZ="UTC")
    desk.run("run.sh", FAKE_END="N/A")
    desk.run("run.sh", SLURM_JOB_END_TIME="5")  # an outer job's
    (desk.bin / "squeue").unlink()
    desk.run("run.sh", SLURM_JOB_END_TIME="5")
    text = (desk.folder / "calls").read_text(encoding="utf-8")
    ends = [line.split("\0")[0] for line in text.splitlines()]
    assert [e for e in ends if e.isdigit() or not e] == ["1893456000", "", "1893456000", "5"]


def test_outside_of_a_job(desk: Desk) -> None:
    code, said = desk.run("run.sh", SLURM_JOB_ID="")
    assert code != 0
    assert "sbatch" in said


@pytest.mark.parametrize(("script", "number"), [("run.sh", "USR2"), ("run_docker.sh", "USR2")])
def test_a_signal_for_the_script(desk: Desk, script: str, number: str) -> None:
    """sbatch --signal=B:USR2@...: the ranks get it from the script."""
    process = desk.start(script, FAKE_SLEEP="5", FAKE_STATUS="0")
    end = time.monotonic() + 10
    while not (desk.folder / "runs" / "job17" / "status").exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR2)
    _, said = process.communicate(timeout=20)
    if script == "run.sh":
        assert process.returncode == 75, said
    else:
        told = [c for c in desk.calls("srun") if "kill" in c]
        assert told[0][-4:] == ["docker", "kill", f"--signal={number}", "ftjob-17"]


def test_pyxis(desk: Desk) -> None:
    code, _ = desk.run("run_pyxis.sh", "a=b", FTJOB_MOUNTS="/data:/data", FTJOB_PYTHON="python3")
    assert code == 0
    (call,) = desk.calls("srun")
    here = str(desk.folder)
    assert call[4:] == [
        *("--container-image=img", f"--container-mounts={here}:{here},/data:/data"),
        *(f"--container-workdir={here}", "python3", "-m", "ftjob", "a=b", "run.dir=runs/job17"),
    ]
    assert desk.run("run_pyxis.sh", FTJOB_IMAGE="")[0] != 0


def test_docker(desk: Desk) -> None:
    """mpirun starts a container on each host; PMI's address goes in by name."""
    more = {"FTJOB_MOUNTS": "/data:/data,/w:/w", "FTJOB_DOCKER_ARGS": "--gpus all"}
    assert desk.run("run_docker.sh", "a=b c", **more)[0] == 0
    (call,) = desk.calls("mpirun")
    assert call[:5] == ["-pmi-port", "-ppn", "1", "-n", "2"]
    assert call[5:7] == ["bash", "-c"]
    assert call[8:12] == ["rank", "docker", "run", "--rm"]
    text = json.dumps(call)
    for word in ("PMI_PORT", "PMI_ID", "SLURM_JOB_END_TIME"):
        assert f'"--env", "{word}"' in text
    for mount in (f"{desk.folder}:{desk.folder}", "/data:/data", "/w:/w"):
        assert f'"--volume", "{mount}"' in text
    assert call[-10:] == [
        *("--gpus", "all", "--name", "ftjob-17", "img", "python", "-m", "ftjob"),
        *("a=b c", "run.dir=runs/job17"),
    ]
    assert desk.calls("srun")[-1][-4:] == ["docker", "rm", "--force", "ftjob-17"]
    assert os.access(SLURM / "run_docker.sh", os.X_OK)
