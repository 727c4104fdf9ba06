"""`report RUN`: rebuild a run's results and report from its folder alone, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftjob.errors import DONE, ConfigError
from ftjob.results.folder import RunFolder
from ftjob.results.page import render_terminal
from ftjob.results.summary import collect, finish, write_report


def main(arguments: Sequence[str]) -> int:
    """Rebuild, print the table, name the files. Returns the run's exit code."""
    if len(arguments) != 1 or "=" in arguments[0]:
        raise ConfigError(
            "usage: python -m ftjob report RUN, with RUN a run folder (runs/latest is the newest)."
        )
    path = Path(arguments[0]).expanduser()
    if not (path / "identity.json").is_file():
        raise ConfigError(f"report {path}: is not a run folder (it has no identity.json).")
    folder = RunFolder(path)
    results = finish(folder, collect(folder))
    write_report(folder, results)
    print(render_terminal(results))
    return int(results["code"] or DONE)  # a run that still goes on has no code
