"""`report RUN`: rebuild a run's results and report from its folder alone, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ftjob.errors import DONE, ConfigError
from ftjob.results.folder import RunFolder, write_json
from ftjob.results.summary import finish, merged_status, write_report


def main(arguments: Sequence[str]) -> int:
    """Rebuild, print the table, name the files. Returns the run's exit code."""
    if len(arguments) != 1 or "=" in arguments[0]:
        raise ConfigError(
            "usage: python -m ftjob report RUN, with RUN a run folder (runs/latest is the newest)."
        )
    path = Path(arguments[0]).expanduser()
    if not (path / "identity.json").is_file():
        raise ConfigError(f"report {path}: is not a run folder (it has no identity.json).")
    from ftjob.results.page import render_terminal

    folder = RunFolder(path)
    status = merged_status(folder)
    ended = status["code"] == DONE or _reached_end(folder, status["attempt"])
    results = finish(folder, final=ended)
    write_report(folder, results)
    write_json(
        folder.file("status.json"), status | {"code": results["code"], "cause": results["cause"]}
    )
    print(render_terminal(results))
    return int(results["code"])


def _reached_end(folder: RunFolder, attempt: int) -> bool:
    """Whether the attempt's own status says that every row was done."""
    data = json.loads(folder.status(0, attempt).read_text(encoding="utf-8"))
    return bool(data["code"] == DONE)
