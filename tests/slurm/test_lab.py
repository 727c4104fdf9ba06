"""The cluster of these tests: nodes of their own, MPI between them, and what can happen to one."""

from __future__ import annotations

import sys

import pytest
from cluster_jobs import Site, wait_until

pytestmark = pytest.mark.timeout(90)


def test_nodes(site: Site) -> None:
    """Each has a name, an address and memory files of its own."""
    done = site.tool("srun", "-N3", "-n3", "sh", "-c", "hostname; ls /dev/shm | wc -l; hostname -i")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert {w for w in words if w.startswith("node")} == {"node1", "node2", "node3"}
    assert len({w for w in words if w.startswith("198.18.")}) == 3


def test_mpi_over_nodes(site: Site) -> None:
    code = "from mpi4py import MPI; c = MPI.COMM_WORLD; print(c.size, c.allreduce(c.rank + 1))"
    command = ["srun", "-N2", "-n2", "--mpi=pmi2", sys.executable, "-c", code]
    done = site.tool(*command)
    assert done.stdout.split() == ["2", "3", "2", "3"], done.stderr


def test_a_node_goes_and_comes(site: Site) -> None:
    site.cluster.crash("node6")
    assert site.tool("srun", "-N1", "-w", "node1", "true").returncode == 0
    site.cluster.restore("node6")
    assert site.tool("srun", "-N1", "-w", "node6", "hostname").stdout == "node6\n"


def test_accounting(site: Site) -> None:
    """sacct knows of a job, a few seconds late."""
    done = site.tool("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "exit 3")
    ask = ["sacct", "-X", "-n", "-j", done.stdout.strip(), "-o", "State,ExitCode"]
    wait_until("sacct's word", lambda: "FAILED" in site.tool(*ask).stdout, 30)
    assert site.tool(*ask).stdout.split() == ["FAILED", "3:0"]
