"""What a run was made on: versions, host, and the environment variables that matter.

Goes to environment.json and the report. Variables are taken from a list of known prefixes, and
whatever looks like a secret is left out.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "ftjob",
    "torch",
    "numpy",
    "tokenizers",
    "hydra-core",
    "mpi4py",
    "submitit",
    "datasets",
    "huggingface_hub",
)
PREFIXES = (
    "SLURM_",
    "OMP_",
    "MKL_",
    "NCCL_",
    "TORCH_NCCL_",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_",
    "FTJOB_",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "OMPI_COMM_WORLD_",
    "PMI_",
    "TOKENIZERS_",
)
SECRET = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASS|CRED|AUTH|COOKIE|JWT", re.IGNORECASE)
USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def describe(env: Mapping[str, str]) -> dict[str, Any]:
    """Versions, machine and variables, as plain values."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "git_hash": _git_hash(),
        "packages": versions,
        "variables": variables(env),
    }


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """The variables worth recording; names that may hold secrets are left out."""
    return {
        k: USER_IN_URL.sub("...", env[k])
        for k in sorted(env)
        if k.startswith(PREFIXES) and not SECRET.search(k)
    }


def _cpu() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found.group(1).strip() if found else platform.machine()


def _git_hash() -> str | None:
    """The commit of the checkout ftjob runs from, with + where files differ from it."""
    top = Path(__file__).resolve().parent.parent
    if not (top / ".git").exists():
        return None
    commit = _git(top, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git(top, "status", "--porcelain", "-uno") else "")


def _git(top: Path, *arguments: str) -> str | None:
    """What git prints, or None where it cannot be asked."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=top, timeout=5, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
