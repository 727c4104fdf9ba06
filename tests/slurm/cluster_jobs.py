"""Jobs on the cluster of the tests: submitted by sbatch or by ftjob itself, watched, ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import SLOW, Place, load
from slurmlab import Cluster

ROOT = Path(__file__).resolve().parents[2]
RUN_SH = ROOT / "slurm" / "run.sh"
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def wait_until(what: str, test: Callable[[], object], limit_s: float) -> None:
    """Wait until the test holds; the message names what was waited for."""
    end = time.monotonic() + limit_s
    while not test():
        assert time.monotonic() < end, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(0.1)


class Site(Place):
    """A folder from which jobs are submitted to the cluster."""

    def __init__(self, cluster: Cluster, cwd: Path) -> None:
        super().__init__(cwd)
        self.cluster = cluster
        self.env: dict[str, str | None] = {
            "SLURM_CONF": cluster.env()["SLURM_CONF"],
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "FTJOB_PYTHON": sys.executable,
            # UCX's long addresses break Slurm 22.05's PMI now and then; there is only TCP here
            "MPIR_CVAR_CH4_NETMOD": "ofi",
        }

    def tool(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of Slurm's."""
        env = {k: v for k, v in (os.environ | self.env).items() if v is not None}
        return subprocess.run(
            command, cwd=self.cwd, env=env, capture_output=True, text=True, timeout=60, check=False
        )

    def ftjob(self, *arguments: str) -> subprocess.Popen[str]:
        """ftjob on the login node."""
        return self.start(*arguments, env=self.env)

    def sbatch(
        self,
        options: Sequence[str],
        arguments: Sequence[str],
        *,
        slow: bool = False,
        ends_in_s: int | None = None,
    ) -> BatchJob:
        """Submit slurm/run.sh. A slow one takes a tenth of a second for a chunk. `ends_in_s` is
        how long it is told that it has: Slurm itself has minutes only."""
        if slow:
            self._slow_python(ends_in_s)
        done = self.tool("sbatch", "--parsable", *options, str(RUN_SH), *arguments)
        assert done.returncode == 0, done.stderr
        run = next(a.partition("=")[2] for a in arguments if a.startswith("run.dir="))
        return BatchJob(self, done.stdout.strip(), self.cwd / run)

    def _slow_python(self, ends_in_s: int | None) -> None:
        """An interpreter that runs a driver in place of `-m ftjob`; `report` is itself."""
        clock = f"export SLURM_JOB_END_TIME=$(($(date +%s) + {ends_in_s}))"
        script = self.driver("slow", SLOW).command[1]
        wrapper = self.cwd / "python"
        wrapper.write_text(
            f'#!/bin/sh\n[ "$3" = report ] && exec {sys.executable} "$@"\nshift 2\n'
            f"{'' if ends_in_s is None else clock}\n"
            f'exec {sys.executable} {script} "$@"\n',
            encoding="utf-8",
        )
        wrapper.chmod(0o755)
        self.env["FTJOB_PYTHON"] = str(wrapper)


@dataclass(frozen=True)
class BatchJob:
    """A job that was submitted, with its run folder."""

    site: Site
    job_id: str
    run: Path

    def ask(self, field: str) -> str:
        """A field of `scontrol show job`."""
        text = self.site.tool("scontrol", "show", "job", self.job_id).stdout
        return next((w.partition("=")[2] for w in text.split() if w.startswith(f"{field}=")), "")

    @property
    def state(self) -> str:
        """Slurm's word for it."""
        return self.ask("JobState")

    @property
    def rows(self) -> int:
        """Lines of all journals, headers included."""
        return sum(f.read_bytes().count(b"\n") for f in (self.run / "journal").glob("*.jsonl"))

    def work(self, rows: int = 8, limit_s: float = 60) -> None:
        """Wait until so many lines are journaled."""
        wait_until(f"{rows} lines journaled\n{self.output}", lambda: self.rows >= rows, limit_s)

    def wait(self, state: str, limit_s: float = 60) -> None:
        """Wait for a state; another end is an error."""

        def there() -> bool:
            now = self.state
            assert now == state or now not in OVER, f"{now}, not {state}\n{self.output}"
            return now == state

        wait_until(f"{state}, now {self.state}", there, limit_s)

    def over(self, limit_s: float = 90) -> int:
        """Wait for the end. Returns the batch script's exit code."""
        wait_until(f"an end of job {self.job_id}", lambda: self.state in OVER, limit_s)
        return int(self.ask("ExitCode").partition(":")[0])

    @property
    def output(self) -> str:
        """What the job has printed, in all of its runs."""
        path = self.site.cwd / f"ftjob-{self.job_id}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def status(self) -> dict[str, Any]:
        """status.json."""
        found: dict[str, Any] = load(self.run / "status.json")
        return found

    def codes(self) -> list[int]:
        """The code of each attempt, by results.json."""
        return [a["code"] for a in load(self.run / "results.json")["attempts"]]
