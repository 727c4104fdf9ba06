"""What every test gets: a machine without launcher, hub or tokens in its environment.

Set before anything is imported, because torch, huggingface_hub and MPI read it when they start.
Besides, a copy of the checkout as a fresh clone would have it, for what must not be tried in place,
and the machine to itself for a test that is marked `alone`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

LAUNCHERS = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "HYDRA_", "MPI_LOCAL", "CUDA_VISIBLE", "HF_")
ROOT = Path(__file__).resolve().parent.parent
# What .gitignore leaves out, and the history itself.
LEFT_OUT = ("__pycache__", "build", "dist", "runs")

_EMPTY = tempfile.TemporaryDirectory(prefix="ftjob-test-")

for _name in [n for n in os.environ if n.startswith(LAUNCHERS)]:
    del os.environ[_name]
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HOME=str(Path(_EMPTY.name) / "hf_home"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)
if not Path("/dev/nvidiactl").exists():  # no GPU: kernels run in Triton's interpreter
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before a time limit begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Where several workers share the machine, those tests that are `alone` wait until no other one
    runs, and the others until none of them waits."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    name = f"{tempfile.gettempdir()}/ftjob-tests-{os.getuid()}"
    with Path(f"{name}.gate").open("w") as gate, Path(f"{name}.room").open("w") as room:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        return (yield)


def in_a_clone(path: Path) -> bool:
    """Whether a clone would have the file: hidden folders are caches, but for .ci."""
    hidden = [p for p in path.parts[:-1] if p.startswith(".") and p != ".ci"]
    return not hidden and not any(p in LEFT_OUT or p.endswith(".egg-info") for p in path.parts)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's files; like git, it knows no empty folders."""
    copy = tmp_path_factory.mktemp("checkout") / "ftjob"
    for folder, names, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        names[:] = [n for n in names if in_a_clone(here / n / "file")]
        for name in filter(lambda n: in_a_clone(here / n), files):
            (copy / here).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / here / name, copy / here / name)
    return copy
