"""Many runs side by side: a line for each run folder below a parent, as it stands now.

A run that reached a report is told by its results.json, another one by its status files.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ftjob.errors import RunFolderError
from ftjob.results.folder import RunFolder, read_json_file
from ftjob.results.page.formats import measured, number
from ftjob.results.statuses import cause_text, merged_status, throughput

HEADER = ("run", "code", "attempts", "rows", "score", "tokens/s", "model", "cause")
CAUSE_WIDTH = 60


def runs_in(parent: Path) -> list[RunFolder]:
    """The run folders right below a folder, by name; links to them, such as latest, are none."""
    if not parent.is_dir():
        return []
    found = [p for p in parent.iterdir() if not p.is_symlink() and _is_run(p)]
    return [RunFolder(p) for p in sorted(found)]


def _is_run(path: Path) -> bool:
    return (path / "identity.json").is_file()


def tabulate_runs(runs: Sequence[RunFolder], now: datetime) -> list[list[str]]:
    """The table's cells: the header, then a row for each run as it stands `now`."""
    return [list(HEADER), *(_row(run, now) for run in runs)]


def _row(run: RunFolder, now: datetime) -> list[str]:
    try:
        status = merged_status(run, now)
    except RunFolderError as error:
        return [run.path.name, "?", *["-"] * 5, str(error)[:CAUSE_WIDTH]]
    code, cause = status["code"], cause_text(status["cause"])
    speed = throughput(status["ranks"])
    rows, score, model = str(sum(s["rows"] for s in status["ranks"])), "-", "-"
    path = run.file("results.json")
    results: dict[str, Any] = read_json_file(path) if path.is_file() else {}
    told = results and results["code"] is not None  # else a report that was made on the way
    if told and results["attempts"][-1]["attempt"] == status["attempt"]:
        code, cause, speed = results["code"], results["cause"], results["throughput"]
        (figures,) = results["results"].values()
        rows = str(figures["sample_len"])
        score = _headline(results, figures)
    if results:
        model = str(results["model"]["name"])
    state = "runs" if code is None else str(code)
    text = "-" if cause is None else " ".join(cause.split())[:CAUSE_WIDTH]
    attempts = str(len(run.attempts()))
    rate = number(speed["tokens_per_s"])
    return [run.path.name, state, attempts, rows, score, rate, model, text]


def _headline(results: dict[str, Any], figures: dict[str, Any]) -> str:
    """The first of the task's figures."""
    for name in results["headline"]:
        value = figures.get(f"{name},none")
        if value is not None:
            unit = str(results["metrics"][name]["unit"])
            return f"{name} {measured(value, unit, figures.get(f'{name}_stderr,none'))}"
    return "-"
