"""Ranks on this machine: the words that start a command as several of them under mpirun, MPICH's or
Open MPI's. Campaigns, benchmarks and tests put their command behind them.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

# Runs its command with the one GPU of its rank.
ONE_GPU = Path(__file__).with_name("one_gpu.sh")
# Open MPI asks root to be sure, counts cores as places, binds a rank to one of them, and wants a
# way to other machines although there are none.
OPEN_MPI = (
    *("--allow-run-as-root", "--oversubscribe", "--bind-to", "none"),
    *("--mca", "plm_rsh_agent", "sh"),
)


def mpirun(ranks: int, *, one_gpu: bool = False) -> list[str]:
    """The words before a command. With `one_gpu` each rank sees but the GPU of its number.

    Raises:
        FileNotFoundError: where there is no mpirun beside the interpreter or on the path.
    """
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise FileNotFoundError("no mpirun was found: pip install 'ftjob[mpi]'")
    through = ["bash", str(ONE_GPU)] if one_gpu else []
    return [found, *(OPEN_MPI if _is_open_mpi(found) else ()), "-n", str(ranks), *through]


@functools.cache
def _is_open_mpi(program: str) -> bool:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return "Open MPI" in said.stdout + said.stderr
