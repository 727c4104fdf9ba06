"""`report RUN`: rebuild a run's results and report from its folder alone, without torch.

`report PARENT` rebuilds nothing: it tabulates the runs of a folder as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ftjob.commands.layout import columns
from ftjob.errors import DONE, ConfigError
from ftjob.results.folder import RunFolder
from ftjob.results.ft_style import render_ft
from ftjob.results.page import render_terminal
from ftjob.results.runs import runs_in, tabulate_runs
from ftjob.results.statuses import merged_status
from ftjob.results.summary import collect, finish, read_samples, write_report

STYLE = "report.style"
OVER = "report.over"  # slurm/job.sh knows that no rank runs any more
LEGAL = MappingProxyType({STYLE: ("table", "ft"), OVER: ("false", "true")})


def main(arguments: Sequence[str]) -> int:
    """Rebuild, print the table, name the files. Returns the run's exit code, 0 for one that still
    runs. With report.style=ft the lines of FasterTransformer's scripts are printed in place of the
    table."""
    settings = dict(a.split("=", 1) for a in arguments if "=" in a)
    paths = [a for a in arguments if "=" not in a]
    for name, value in settings.items():
        if value not in LEGAL.get(name, ()):
            legal = ", ".join(f"{n}={v}" for n, values in LEGAL.items() for v in values)
            raise ConfigError(f"report {name}={value}: must be one of {legal}.")
    if len(paths) != 1:
        raise ConfigError(
            f"usage: python -m ftjob report RUN [{STYLE}=ft], with RUN a run folder (runs/latest "
            "is the newest) or the folder that several of them lie in."
        )
    path, now = Path(paths[0]).expanduser(), datetime.now(timezone.utc)
    if not (path / "identity.json").is_file():
        if not settings and (runs := runs_in(path)):
            print("\n".join(columns(tabulate_runs(runs, now))))
            return DONE
        raise ConfigError(
            f"report {path}: is not a run folder (it has no identity.json), and none lies in it."
        )
    if path.is_symlink():  # runs/latest, which will point at another run
        path = path.parent / path.readlink()
    folder = RunFolder(path)
    over = settings.get(OVER) == "true"
    results = _rebuilt(folder, None if over else now)
    if settings.get(STYLE) == "ft":
        print(render_ft(read_samples(folder.file("samples.jsonl")), results), end="")
    else:
        print(render_terminal(results))
    return int(results["code"] or DONE)  # a run that still goes on has no code


def _rebuilt(folder: RunFolder, now: datetime | None) -> dict[str, Any]:
    """Make everything anew; returns the results. Where the run ended meanwhile, what was written is
    not of its end, and may have taken the place of what was: then all is made once more."""
    while True:
        running = merged_status(folder, now)["code"] is None
        results = finish(folder, collect(folder), now)
        write_report(folder, results)
        if not running or merged_status(folder, now)["code"] is None:
            return results
