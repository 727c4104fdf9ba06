"""The cluster of the campaign, cut into parts of four nodes; on each one job at a time."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eval.kills.work import environment

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "slurm"))

from slurmlab import Cluster  # noqa: E402
from slurmlab.files import Wanted  # noqa: E402

PART = 4
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE")


class Site:
    """A cluster that is up, and who may use which nodes of it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._parts: queue.Queue[list[str]] = queue.Queue()
        # starting a daemon writes into the cluster's state: one at a time
        self.lock = threading.Lock()
        names = cluster.wanted.names
        for first in range(0, len(names) - PART + 1, PART):
            self._parts.put(names[first : first + PART])

    @contextmanager
    def part(self) -> Iterator[list[str]]:
        """Four nodes, all of them idle."""
        nodes = self._parts.get()
        try:
            self._wait_idle(nodes)
            yield nodes
        finally:
            for node in nodes:
                if self.cluster.node_states().get(node, "down").startswith(("down", "drain")):
                    with self.lock:
                        self.cluster.restore(node)
            self._parts.put(nodes)

    def _wait_idle(self, nodes: Sequence[str]) -> None:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            states = self.cluster.node_states()
            if all(states.get(node) == "idle" for node in nodes):
                return
            time.sleep(0.2)
        raise OSError(f"nodes {nodes} are not idle: {self.cluster.node_states()}")

    def tool(self, *command: str) -> str:
        """What a command of Slurm's prints.

        Raises:
            OSError: where it fails.
        """
        env = environment() | {"SLURM_CONF": self.cluster.env()["SLURM_CONF"]}
        # UCX's long addresses break Slurm 22.05's PMI now and then; there is only TCP here
        env |= {"MPIR_CVAR_CH4_NETMOD": "ofi", "FTJOB_PYTHON": sys.executable}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
        if done.returncode:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def start(self, nodes: Sequence[str], arguments: Sequence[str], output: Path) -> Job:
        """Submit slurm/run.sh on these nodes."""
        options = ["--parsable", f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"]
        options += ["--time=10", f"--output={output}", f"--chdir={output.parent}"]
        script = str(ROOT / "slurm" / "run.sh")
        job_id = self.tool("sbatch", *options, script, *arguments).strip()
        return Job(self, job_id, list(nodes))

    def ranks_on(self, node: str, run: Path) -> list[int]:
        """The processes on a node that are ranks of the run."""
        mark = f"run.dir={run}".encode()
        found = []
        for pid in self.cluster.network.processes(node):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            if mark in words and words[1:3] == [b"-m", b"ftjob"] and b"report" not in words:
                found.append(pid)
        return found


class Job:
    """A job of the campaign."""

    def __init__(self, site: Site, job_id: str, nodes: list[str]) -> None:
        self.site, self.job_id, self.nodes = site, job_id, nodes

    def ask(self) -> tuple[str, int]:
        """Slurm's word for its state, and how often it was restarted."""
        words = self.site.tool("scontrol", "show", "job", self.job_id).split()
        facts = dict(word.partition("=")[::2] for word in words)
        return facts.get("JobState", "GONE"), int(facts.get("Restarts", 0))

    def ended_or_restarted(self, limit_s: float) -> float | None:
        """Wait until this run of the job is over. Returns how long it took, None: too long."""
        began = time.monotonic()
        while time.monotonic() - began < limit_s:
            state, _ = self.ask()
            if state not in ("RUNNING", "COMPLETING"):
                return time.monotonic() - began
            time.sleep(0.1)
        return None

    def over(self, limit_s: float) -> str:
        """Wait for the job's end; the state it then has, or had last."""
        began = time.monotonic()
        while (state := self.ask()[0]) not in OVER and time.monotonic() - began < limit_s:
            time.sleep(0.2)
        return state


@contextmanager
def campaign_site(nodes: int, name: str) -> Iterator[Site]:
    """The campaign's own cluster."""
    with Cluster(Wanted(nodes, gpus=0), name=name) as cluster:
        yield Site(cluster)


def name_of_session() -> str:
    """A cluster's name that no other campaign has."""
    return f"c{os.getpid() % 100000}"
