"""`compare RUN_A RUN_B`: are the answers of two runs the same? Prints every difference found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftjob.errors import BELOW_EXPECTATION, DONE, ConfigError
from ftjob.results.compare import compare_runs

SHOWN = 20


def main(arguments: Sequence[str]) -> int:
    """Compare and print. Returns 0 for the same answers, 5 for others."""
    if len(arguments) != 2 or any("=" in a for a in arguments):
        raise ConfigError("usage: python -m ftjob compare RUN_A RUN_B, both run folders.")
    first, second = (Path(a).expanduser() for a in arguments)
    for path in (first, second):
        if not (path / "samples.jsonl").is_file():
            raise ConfigError(
                f"compare {path}: has no samples.jsonl; a run that ended early gets "
                "one by `python -m ftjob report`."
            )
    found = compare_runs(first / "samples.jsonl", second / "samples.jsonl")
    for title, lines in (
        ("excused by a recorded near tie", found.excused),
        ("different", found.differences),
    ):
        for line in lines[:SHOWN]:
            print(f"{title}: {line}")
        if len(lines) > SHOWN:
            print(f"{title}: and {len(lines) - SHOWN} more")
    for line in found.left_out:
        print(f"left out: {line}")
    print(
        f"{found.rows} rows: {'the same answers' if found.same else 'NOT the same answers'} "
        f"({len(found.differences)} differences, {len(found.excused)} rows excused, "
        f"{found.allowed} allowed)"
    )
    return DONE if found.same else BELOW_EXPECTATION
