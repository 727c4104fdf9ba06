"""`python -m eval.bench.batch_one`: the share of rows whose answer changes with the batch, by
dtype, on the devices that a run takes by itself.

A product of many rows adds in another order than one of few, and half precision rounds coarsely, so
answers near a tie turn. Whole runs of the shipped models, each once as it comes and once with a row
in a batch, compared line by line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eval.record import REPORTS, heading, made_line, provenance
from ftjob.results.folder import write_json

NAME = "batch_one"
COMMAND = f"python -m eval.bench.{NAME}"
RAW = REPORTS / "raw" / f"{NAME}.json"
TITLE = "Answers that change with the batch"
TEXT = [
    "The shipped models, whole runs as they come beside runs of the same rows with a row in a "
    "batch. An answer is LAMBADA's two decisions, or all ids of a translation. In f32 only near "
    "ties may turn (`python -m ftjob compare`); half precision has more of them.",
]
# What a run is of, and what its answers are.
TASKS = MappingProxyType(
    {
        "LAMBADA, scored": (
            ("model=demo_gpt", "dataset=lambada"),
            ("correct", "last_token_correct"),
        ),
        "captions, greedy": (("model=demo_t5", "dataset=demo_en_de"), ("output_ids",)),
        "captions, four beams": (
            ("model=demo_t5", "dataset=demo_en_de", "decode=beam4"),
            ("output_ids",),
        ),
    }
)
LANES = MappingProxyType({"captions, greedy": 1, "captions, four beams": 4})
DTYPES = ("f32", "bf16", "f16")
LIMIT_S = 600


def main(argv: Sequence[str] | None = None) -> int:
    """Run all, write raw file and report. Returns 1 where a run failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="of each data set, at most")
    parser.add_argument("--at-once", type=int, default=4, help="runs at a time")
    parser.add_argument("--raw", type=Path, default=RAW, help="file to write")
    parser.add_argument("--commit", help="the commit, where git here does not know it")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of every run")
    given = parser.parse_intermixed_args(arguments)
    cases = list(itertools.product(TASKS, DTYPES, (False, True)))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.at_once) as pool:
        folders = [Path(folder) / str(i) for i in range(len(cases))]
        done = list(pool.map(lambda f, c: run(f, c, given), folders, cases))
        if failed := [text for text in done if text is not None]:
            print("\n".join(failed), file=sys.stderr)
            return 1
        status = json.loads((folders[0] / "status.json").read_text(encoding="utf-8"))
        found = [
            {"task": task, "dtype": dtype, **changed(folders[2 * i], folders[2 * i + 1], task)}
            for i, (task, dtype) in enumerate(itertools.product(TASKS, DTYPES))
        ]
    about = provenance(" ".join([COMMAND, f"--rows {given.rows}", *given.overrides]))
    about["commit"] = given.commit or about["commit"]
    raw = {
        **{"kind": NAME, "title": TITLE, "text": TEXT, **about},
        **{"devices": names(status), "cases": found},
    }
    write_json(given.raw, raw)
    report = REPORTS / f"{NAME}.md" if given.raw == RAW else given.raw.with_suffix(".md")
    report.write_text(render_batch_one(NAME, raw), encoding="utf-8")
    print(report.read_text(encoding="utf-8"))
    return 0


def run(folder: Path, case: tuple[str, str, bool], given: argparse.Namespace) -> str | None:
    """A run of a task in a dtype, perhaps with a row in each batch; what it said, if it failed."""
    task, dtype, alone = case
    command = [sys.executable, "-m", "ftjob", f"run.dir={folder}", *TASKS[task][0]]
    command += [f"model.dtype={dtype}", f"dataset.limit={given.rows}", *given.overrides]
    if alone:
        command.append("batch.max_tokens=1")
        command += [f"batch.lanes={LANES[task]}"] if task in LANES else []
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=os.environ
    )
    return None if done.returncode == 0 else f"{' '.join(command)}\n{done.stderr[-2000:]}"


def changed(whole: Path, alone: Path, task: str) -> dict[str, Any]:
    """How many rows there are, and how many have another answer."""
    fields = TASKS[task][1]
    found = [[tuple(map(row.get, fields)) for row in samples(run)] for run in (whole, alone)]
    return {"rows": len(found[0]), "changed": sum(a != b for a, b in zip(*found, strict=True))}


def samples(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run."""
    with (folder / "samples.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def names(status: dict[str, Any]) -> list[str]:
    """What the devices of a run are called, each name once."""
    devices = [device for rank in status["ranks"] for device in rank["devices"]]
    return sorted({str(device["name"]) for device in devices})


def render_batch_one(name: str, raw: dict[str, Any]) -> str:
    """A line a task and dtype."""
    lines = [
        *heading(raw, f"{made_line(name, raw)} Devices: {', '.join(raw['devices'])}."),
        "| task | dtype | rows | another answer than alone | share |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in raw["cases"]:
        share = f"{100 * case['changed'] / case['rows']:.2f} %"
        cells = (case["task"], case["dtype"], case["rows"], case["changed"], share)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
