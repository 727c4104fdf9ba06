"""`--help`, `--cfg job` and `-m`: the command lines that go through Hydra's own front end.

A sweep runs its jobs one after the other, each like a command of its own; with cluster=slurm it
submits them, and they run as Slurm has room.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from ftjob.config.compose import check_overrides, packed_dir, store_defaults
from ftjob.errors import BUG, DONE, ConfigError, JobError
from ftjob.launch.world import detect_world

SWEEP = frozenset({"-m", "--multirun"})


def main(command: str, arguments: Sequence[str]) -> int:
    """Hand the command line to Hydra. Returns the worst exit code of a sweep's jobs."""
    import hydra

    sweep = bool(SWEEP.intersection(arguments))
    if sweep and detect_world(os.environ).size > 1:
        raise ConfigError(
            "-m under mpirun or srun: every rank would sweep. Start the sweep alone; "
            "each of its jobs starts its own ranks."
        )
    store_defaults()
    module = importlib.import_module(f"ftjob.commands.{command}")
    codes: list[int] = []

    def one_job(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        overrides = list(HydraConfig.get().overrides.task)
        try:
            check_overrides(overrides)
            one = {"sweep": True} if sweep and command == "run" else {}
            codes.append(int(module.main(overrides, [], **one)))
        except JobError as error:
            print(f"ftjob: {error}", file=sys.stderr)
            codes.append(error.code)

    decorated = hydra.main(
        config_path=str(packed_dir("conf")), config_name="config", version_base="1.3"
    )(one_job)
    before = sys.argv
    # Hydra itself writes a multirun.yaml for a sweep; the run folders say more.
    with tempfile.TemporaryDirectory() as scratch:
        sys.argv = [f"ftjob {command}", *arguments, f"hydra.sweep.dir={scratch}"]
        try:
            decorated()
        except SystemExit as leave:  # Hydra has printed its message
            return int(leave.code) if isinstance(leave.code, int) else BUG
        finally:
            sys.argv = before
    return next((c for c in codes if c != DONE), DONE)
