"""One cluster for the session, or every test here skipped, with what is missing; jobs on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_jobs import Site
from job_fixtures import base, copied, finished, place, tiny
from slurmlab import Cluster, ClusterError, missing
from slurmlab.files import Wanted

__all__ = ["base", "copied", "finished", "place", "tiny"]
NODES = 6


def why_not() -> str | None:
    """Why there can be no cluster on this machine; None where there can."""
    if os.geteuid() != 0:
        return "a Slurm cluster needs root"
    if absent := missing():
        return f"Slurm is not installed: no {', '.join(absent)}"
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "a Slurm cluster needs unshare and nsenter (util-linux)"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if tried.returncode:
        return "a Slurm cluster needs network namespaces, which this machine does not allow"
    return None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, by a name that no other session has."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Cluster(Wanted(NODES, gpus=0, accounting=True), name=f"t{os.getpid() % 100000}")
    try:
        with made:
            yield made
    except ClusterError as error:
        pytest.fail(str(error))


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Site:
    """A folder of the test's own, from which it submits jobs."""
    return Site(cluster, tmp_path / "work")


def pytest_report_header() -> str:
    """Say at the top of the session whether these tests run."""
    reason = why_not()
    return f"slurm tests: {reason or f'on {NODES} nodes of their own'}, {Path(sys.executable).name}"
