"""What happens to nodes and jobs: each scenario on nodes of its own, all at the same time.

Requeue, preemption, a crashed node, a cut cable, a killed rank, a killed slurmd: the job comes back
by itself or ends with the right code, and in the end every answer is there once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster_jobs import BatchJob, Site, wait_until
from harness import ROWS, lines
from slurmlab import Cluster

pytestmark = [pytest.mark.timeout(240), pytest.mark.alone]


@dataclass(frozen=True)
class Fault:
    """A scenario: the nodes it has, what is done to the job at work, and how the job ends then:
    the first attempt's codes that are right, and whether Slurm brings the job back."""

    nodes: str
    strike: Callable[[BatchJob], None]
    codes: tuple[int, ...]
    comes_back: bool = True


def requeue(job: BatchJob) -> None:
    """An operator's requeue."""
    job.site.tool("scontrol", "requeue", job.job_id)


def preempt(job: BatchJob) -> None:
    """A job of higher priority takes the nodes, for a moment."""
    job.site.tool(
        "sbatch", "-p", "urgent", "--exclusive", "-N2", "-w", "node[1-2]", "--wrap", "true"
    )


def crash(job: BatchJob) -> None:
    """The second node loses power, and comes back when Slurm has noticed."""
    job.site.cluster.crash("node4")
    wait_until("NODE_FAIL", lambda: job.state != "RUNNING", 60)
    job.site.cluster.restore("node4")


def cut(job: BatchJob) -> None:
    """The first node, rank 0's, loses its cable: what runs there runs on, alone."""
    job.site.cluster.cut("node5")
    wait_until("NODE_FAIL", lambda: job.state != "RUNNING", 60)
    job.site.cluster.restore("node5")


def ranks_on(cluster: Cluster, node: str, run: Path) -> list[int]:
    """The processes on a node that are ranks of this run."""
    mark = f"run.dir={run.name}".encode()
    found = []
    for pid in cluster.network.processes(node):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark in words and b"python" in words[0] and b"ftjob_slow" in b" ".join(words[:2]):
            found.append(pid)
    return found


def kill_rank(job: BatchJob) -> None:
    """kill -9 of the rank on the second node."""
    for pid in ranks_on(job.site.cluster, "node6", job.run):
        os.kill(pid, signal.SIGKILL)


def kill_slurmd(job: BatchJob) -> None:
    """slurmd of the second node dies; the ranks do not notice."""
    job.site.cluster.kill_slurmd("node4")
    wait_until("the end of the job", lambda: (job.run / "report.html").exists(), 60)
    job.site.cluster.restore("node4")


# first those of one round, then those of the other
ROUNDS: tuple[Mapping[str, Fault], ...] = (
    {
        "requeue": Fault("node[1-2]", requeue, (75,)),
        "crash": Fault("node[3-4]", crash, (75, 124, 137)),
        "cut": Fault("node[5-6]", cut, (75, 124, 137)),
    },
    {
        "preempt": Fault("node[1-2]", preempt, (75,)),
        "kill_slurmd": Fault("node[3-4]", kill_slurmd, (0,), comes_back=False),
        "kill_rank": Fault("node[5-6]", kill_rank, (137,), comes_back=False),
    },
)
NAMES = [name for faults in ROUNDS for name in faults]


@pytest.fixture(scope="module")
def ended(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, base: tuple[str, ...]
) -> dict[str, Future[BatchJob]]:
    """Every scenario's job, after its end."""
    # above the 10 s in which Slurm notices that a node is gone, and its ping before
    arguments = (*base, "batch.max_tokens=64", "run.deadline_s=25")

    def play(name: str, fault: Fault) -> BatchJob:
        site = Site(cluster, tmp_path_factory.mktemp(name))
        options = ["-N2", "-w", fault.nodes]
        job = site.sbatch(options, (*arguments, f"run.dir={name}"), slow=True)
        job.work()
        fault.strike(job)
        job.over(120)
        return job

    jobs: dict[str, Future[BatchJob]] = {}
    with ThreadPoolExecutor(4) as pool:
        for faults in ROUNDS:
            played = {name: pool.submit(play, name, fault) for name, fault in faults.items()}
            jobs |= played
            for future in played.values():
                future.exception()  # wait; the tests tell of it
    return jobs


@pytest.mark.parametrize("name", NAMES)
def test_fault(
    name: str,
    ended: dict[str, Future[BatchJob]],
    base: tuple[str, ...],
    finished: tuple[Path, str, str],
) -> None:
    job = ended[name].result()
    fault = next(faults[name] for faults in ROUNDS if name in faults)
    if fault.comes_back:
        assert job.state == "COMPLETED", job.output
        assert int(job.ask("Restarts")) == 1
    elif fault.codes != (0,):
        assert job.state == "FAILED", job.output
        assert int(job.ask("ExitCode").partition(":")[0]) in fault.codes
        site = job.site
        site(*base, "batch.max_tokens=64", f"run.dir={name}").expect(0)  # the same command goes on
    codes = job.codes()
    assert codes[0] in fault.codes, job.output
    assert codes[1:] == ([] if fault.codes == (0,) else [0])
    samples = lines(job.run / "samples.jsonl")
    assert len(samples) == len({s["key"] for s in samples}) == ROWS
    job.site("compare", name, str(finished[0] / "run")).expect(0)
