"""Commands and processes outside of Python: run one, tell whether one lives, wait for something.

Process ids come back, so a daemon is known by its id and the moment it started.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path


class ClusterError(RuntimeError):
    """The cluster cannot do what was asked."""


def run(
    *command: str, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end and keep what it prints.

    Raises:
        ClusterError: with what it said on stderr, where `check` and it did not exit 0.
    """
    done = subprocess.run(command, check=False, text=True, capture_output=True, env=env)
    if check and done.returncode:
        said = done.stderr.strip()
        raise ClusterError(f"{' '.join(command)}: exit {done.returncode}: {said}")
    return done


def start_time(pid: int) -> str | None:
    """When the process started, in clock ticks; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def tail(log: Path | None) -> str:
    """The last lines of a log, to be put behind a message."""
    if log is None or not log.exists():
        return ""
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    return "\n" + "\n".join(last)


def wait_until(
    what: str, test: Callable[[], bool], limit_s: float, log: Path | None = None
) -> None:
    """Wait until the test holds.

    Raises:
        ClusterError: naming what, with the end of `log`, after `limit_s` seconds.
    """
    end = time.monotonic() + limit_s
    while not test():
        if time.monotonic() > end:
            raise ClusterError(f"after {limit_s:g} s still waiting: {what}{tail(log)}")
        time.sleep(0.05)
