"""What a job finds around it on this host: MPI library, Slurm's commands, shared memory, room for
its run folder. `doctor` prints it with the warnings that follow from it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftjob.config import JobConfig
from ftjob.launch.advice import Advice
from ftjob.launch.mpi import library_version

SHM = Path("/dev/shm")
# A container's own default of 64 MB is too little for NCCL and MPI between a node's processes.
LEAST_SHM_BYTES = 1 << 30
# Bytes free where the run folder goes; journals and samples of a million rows take a few GB.
LEAST_DISK_BYTES = 1 << 30
ASK_S = 10.0


@dataclass(frozen=True)
class Site:
    """Versions are lines of the programs' own; None where there is no such program. `mpi_kinds` are
    what srun's --mpi takes, bytes are free ones."""

    mpi_library: str | None
    slurm: str | None
    mpi_kinds: tuple[str, ...]
    shm_bytes: int | None
    folder: str
    writable: bool
    disk_bytes: int | None

    @property
    def suits(self) -> str | None:
        """The --mpi of srun that the MPI library knows."""
        if self.mpi_library is None:
            return None
        return "pmix" if "open mpi" in self.mpi_library.lower() else "pmi2"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def look_around(config: JobConfig) -> Site:
    """What this host has. Never raises; a program that hangs is as good as none."""
    folder = existing(Path(config.run.dir or "runs").expanduser())
    return Site(
        library_version(),
        _said("sbatch", "--version"),
        parse_kinds(_said("srun", "--mpi=list") or ""),
        _free(SHM),
        str(folder),
        folder.is_dir() and os.access(folder, os.W_OK | os.X_OK),
        _free(folder),
    )


def advise_on(site: Site, config: JobConfig) -> Iterator[Advice]:
    """Warnings on what is around."""
    mpi, ranks = config.cluster.mpi, "a job of several ranks"
    if site.mpi_library is None:
        yield Advice(
            "no MPI library was found",
            f"{ranks} is refused",
            "pip install 'ftjob[mpi]', or load your site's module",
        )
    elif site.slurm is not None and site.suits != mpi and mpi in ("pmi2", "pmix"):
        yield Advice(
            f"cluster.mpi={mpi}, and the MPI library is {site.mpi_library}",
            "every task would be a world of its own, so the job is refused",
            f"Set cluster.mpi={site.suits} (FTJOB_MPI for slurm/run.sh)",
        )
    if site.mpi_kinds and mpi not in site.mpi_kinds:
        yield Advice(
            f"cluster.mpi={mpi}: srun knows {', '.join(site.mpi_kinds)}",
            f"srun refuses {ranks}",
            "Choose one of them that the MPI library knows",
        )
    if site.shm_bytes is not None and site.shm_bytes < LEAST_SHM_BYTES:
        yield Advice(
            f"{SHM} has {site.shm_bytes / 1e6:.0f} MB free",
            "NCCL and MPI swap data there between processes of a node, and fail where it is full",
            "Start the container with --shm-size=1g or --ipc=host, or clear it",
        )
    if not site.writable:
        yield Advice(
            f"{site.folder} is not writable", "the run folder cannot be made", "Set run.dir"
        )
    elif site.disk_bytes is not None and site.disk_bytes < LEAST_DISK_BYTES:
        yield Advice(
            f"{site.folder} has {site.disk_bytes / 1e6:.0f} MB free",
            "the journal of a long run may not fit",
            "Clear it, or set run.dir to another file system",
        )


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above that exists."""
    found = folder.absolute()
    while not found.exists() and found != found.parent:
        found = found.parent
    return found


def parse_kinds(said: str) -> tuple[str, ...]:
    """The plugins in what `srun --mpi=list` prints: a line each, indented, behind a heading."""
    words = (line.strip() for line in said.splitlines())
    return tuple(word for word in words if re.fullmatch(r"[a-z]\w*", word))


def _said(*command: str) -> str | None:
    """What a program prints, on either stream; None where it is absent or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = _run(command)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout + done.stderr).strip()


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True)


def _free(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
