"""What must hold when a job that was killed has ended: no row lost, none twice, the same answers.

Each check returns a sentence for everything that is wrong; nothing here starts a process.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.kills.evidence import Journal, answered
from ftjob.errors import DEADLINE, DONE, KILLED, JobError
from ftjob.results.compare import compare_runs

Json = dict[str, Any]
SHOWN = 5


def read_lines(path: Path) -> list[Json]:
    """A JSONL file that is whole."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def check_samples(reference: Path, run: Path, journals: Sequence[Journal]) -> list[str]:
    """samples.jsonl holds every row once, as it was journaled, with the reference's answers."""
    lines = (run / "samples.jsonl").read_bytes().splitlines(keepends=True)
    expected = [
        json.loads(line) for line in (reference / "samples.jsonl").read_bytes().splitlines()
    ]
    keys = {record["index"]: record["key"] for record in expected}
    try:
        samples = [json.loads(line) for line in lines]
    except ValueError as error:
        return [f"samples.jsonl holds a damaged line: {error}"]
    times = Counter(sample["index"] for sample in samples)
    journaled = {line for journal in journals for line in journal.lines}
    found = [
        ("rows lost", sorted(keys.keys() - times.keys())),
        ("rows of no data set", sorted(times.keys() - keys.keys())),
        ("rows twice", sorted(row for row, count in times.items() if count > 1)),
        ("rows of another key", [s["index"] for s in samples if keys.get(s["index"]) != s["key"]]),
        (
            "rows no journal holds",
            [s["index"] for s, line in zip(samples, lines, strict=True) if line not in journaled],
        ),
    ]
    problems = [f"{what}: {_shown(rows)}" for what, rows in found if rows]
    try:
        comparison = compare_runs(reference / "samples.jsonl", run / "samples.jsonl")
    except JobError as error:
        return [*problems, str(error)]
    if not comparison.same:
        differing = comparison.differences or comparison.excused
        problems.append(f"other answers: {'; '.join(differing[:SHOWN])}")
    if comparison.left_out:
        problems.append(f"fields of one run alone: {'; '.join(comparison.left_out)}")
    return problems


def check_journals(journals: Sequence[Journal], rows: int, in_flight: int) -> list[str]:
    """The journals hold every row, and twice at most those that were `in_flight` at a kill."""
    problems = []
    lost = sorted(set(range(rows)) - set(answered(journals)))
    if lost:
        problems.append(f"rows no attempt journaled: {_shown(lost)}")
    twice = answered_twice(journals)
    if twice > in_flight:
        problems.append(f"{twice} rows journaled twice, {in_flight} were in flight")
    return problems


def answered_twice(journals: Sequence[Journal]) -> int:
    """How many rows the journals hold more than once."""
    return sum(count > 1 for count in Counter(answered(journals)).values())


def check_codes(run: Path, phases: Sequence[str]) -> list[str]:
    """results.json and status.json: done now, and each killed attempt says so. `phases` are those
    of the kills; from the merge on an attempt's answers are complete, and its status may say it."""
    problems = []
    results = json.loads((run / "results.json").read_bytes())
    status = json.loads((run / "status.json").read_bytes())
    for name, code in (("results.json", results["code"]), ("status.json", status["code"])):
        if code != DONE:
            problems.append(f"{name}: code {code}: {status['cause']}")
    attempts = results["attempts"]
    if [a["attempt"] for a in attempts] != list(range(len(phases) + 1)):
        problems.append(f"results.json: attempts {[a['attempt'] for a in attempts]}")
    for fact, phase in zip(attempts, phases, strict=False):
        legal = {KILLED, DEADLINE} if phase in ("load", "score") else {DONE, KILLED, DEADLINE}
        if fact["code"] not in legal:
            told = f"code {fact['code']} ({fact['cause']})"
            problems.append(f"attempt {fact['attempt']}, killed in {phase}, says {told}")
    return problems


def _shown(rows: Sequence[int]) -> str:
    rest = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return ", ".join(map(str, rows[:SHOWN])) + rest
