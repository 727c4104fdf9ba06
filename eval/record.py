"""Where a figure was made: command, commit and machine, for every raw JSON under reports/raw."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ftjob.environment import describe
from ftjob.results.folder import write_json

REPORTS = Path(__file__).resolve().parent / "reports"


def provenance(command: str) -> dict[str, Any]:
    """What a raw file says of its making; no host name, no path."""
    facts = describe(os.environ)
    return {
        "command": command,
        "commit": facts["git_hash"],
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu": facts["cpu"],
        "cores": facts["cores"],
        "python": facts["python"],
        "packages": facts["packages"],
    }


def file_facts(file: Path) -> dict[str, str]:
    """What a raw file says of data that does not travel with the project: name and checksum."""
    return {"name": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def write_raw(name: str, value: dict[str, Any]) -> None:
    """Write reports/raw/NAME.json."""
    write_json(REPORTS / "raw" / f"{name}.json", value)


def read_raw(name: str) -> dict[str, Any]:
    """Read reports/raw/NAME.json."""
    value: dict[str, Any] = json.loads((REPORTS / "raw" / f"{name}.json").read_text())
    return value


def made_line(name: str, raw: dict[str, Any], commit: str | None = None) -> str:
    """The sentence of a report that names its raw file, command, commit and machine."""
    return (
        f"Rendered by `python -m eval.render` from `raw/{name}.json`; made by `{raw['command']}` "
        f"on {raw['date']}, commit {commit or raw['commit']}, {raw['cpu']}, {raw['cores']} cores, "
        f"torch {', '.join([raw['packages']['torch'], *raw.get('peers', [])])}."
        f"{data_sentence(raw.get('data', []))}"
    )


def heading(raw: dict[str, Any], made: str) -> list[str]:
    """The lines that a report begins with: title, text, and what was `made` how."""
    return [f"# {raw['title']}", "", *raw["text"], "", made, ""]


def data_sentence(data: Sequence[Mapping[str, str]]) -> str:
    """The files that the figures were made from, by name and checksum."""
    if not data:
        return ""
    return " Data: " + ", ".join(f"{d['name']} (sha256 {d['sha256'][:16]})" for d in data) + "."
