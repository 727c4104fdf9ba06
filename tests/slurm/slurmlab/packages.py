"""The Debian packages that a cluster needs, and how they are installed without starting daemons."""

from __future__ import annotations

import os
from pathlib import Path

from slurmlab.processes import run

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
# package -> a file that it installs
PACKAGES = {
    "munge": "/usr/sbin/munged",
    "slurmctld": "/usr/sbin/slurmctld",
    "slurmd": "/usr/sbin/slurmd",
    "slurm-client": "/usr/bin/srun",
    "iproute2": "/usr/sbin/ip",
    # srun's plugin opens pmix2/lib/libpmix.so by that name, which only the -dev package has
    "libpmix-dev": f"{LIBRARIES}/pmix2/lib/libpmix.so",
    "slurmdbd": "/usr/sbin/slurmdbd",
    "mariadb-server": "/usr/sbin/mariadbd",
    "slurm-wlm-mysql-plugin": f"{LIBRARIES}/slurm-wlm/accounting_storage_mysql.so",
}


def missing() -> list[str]:
    """Which of them are not installed."""
    return [package for package, file in PACKAGES.items() if not Path(file).exists()]


def install(*more: str) -> None:
    """Install what is missing, and `more`. Debian asks policy-rc.d before it starts a daemon of a
    package; where there is no such file, one that forbids it stands there meanwhile."""
    wanted = [*missing(), *more]
    if not wanted:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
        policy.chmod(0o755)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run("apt-get", "update", "-qq", env=env)
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted, env=env)
    finally:
        if made:
            policy.unlink()
