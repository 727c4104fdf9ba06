"""`python -m eval.run SUITE`: run a suite's jobs, judge them, write raw JSON and the report.

Each job is a command line of its own, as a user would type it; its results.json and its first
rows go into reports/raw/SUITE.json, from which `eval.render` makes the report.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.record import REPORTS, file_facts, provenance, read_raw, write_raw
from eval.render import render
from ftjob.results.folder import RunFolder, read_json_file
from ftjob.results.summary import load_config, read_samples

SUITES = Path(__file__).resolve().parent / "suites"
KEPT_ROWS = 20
# Those of them that the task has. No texts: not every data set is ours to ship.
KEPT_FIELDS = (
    *("index", "correct", "last_token_correct", "logprob", "output_ids"),
    *("finish_reason", "cum_logprob", "score", "chrf", "near_ties"),
)


def load_suite(name: str) -> dict[str, Any]:
    """A suite's YAML."""
    value: dict[str, Any] = yaml.safe_load((SUITES / f"{name}.yaml").read_text(encoding="utf-8"))
    return value


def run_job(job: dict[str, Any], where: dict[str, Any], more: Sequence[str] = ()) -> dict[str, Any]:
    """Run one job in a scratch folder, with `more` overrides than the suite's; what the report
    needs of it, and `where` it was made."""
    overrides = [*job["overrides"], *more]
    told, data = recorded(overrides)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        subprocess.run(
            [sys.executable, "-m", "ftjob", *overrides, f"run.dir={folder}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        results = read_json_file(folder / "results.json")
        (task,) = results["results"]
        rows = itertools.islice(read_samples(folder / "samples.jsonl"), KEPT_ROWS)
        made: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "ftjob", *told]),
            "task": task,
            "figures": results["results"][task],
            "metrics": results["metrics"],
            "rows": results["n-samples"][task]["effective"],
            "throughput": results["throughput"],
            "first_rows": [{k: row[k] for k in KEPT_FIELDS if k in row} for row in rows],
        }
        if data:
            made["data"] = data
        if job.get("oracle"):
            made["oracle"] = _oracle(folder)
    return where | made


def recorded(overrides: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """The overrides as a report may show them, files by their names alone; and what tells each
    file from another."""
    told: list[str] = []
    data: list[dict[str, str]] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        path = Path(value)
        told.append(f"{key}={path.name}" if equals and path.exists() else override)
        if equals and path.is_file():
            data.append(file_facts(path))
    return told, data


def _oracle(folder: Path) -> dict[str, Any]:
    from eval.oracle import compare_with_transformers

    found = compare_with_transformers(load_config(RunFolder(folder)), folder / "samples.jsonl")
    different = [*found.differences, *found.left_out]  # both were asked for the same
    return {
        "rows": found.rows,
        "different": len(different),
        "excused": found.excused,
        "first": different[:5],
    }


def judge(job: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """What is not as expected, a sentence each."""
    wrong = []
    for metric, bound in job.get("expect", {}).items():
        value = made["figures"].get(f"{metric},none")
        if value is None or abs(value - bound["value"]) > bound["tolerance"]:
            wrong.append(
                f"{job['name']}: {metric} is {value}, expected {bound['value']} +- "
                f"{bound['tolerance']}"
            )
    if job.get("oracle") and made["oracle"]["different"]:
        wrong.append(f"{job['name']}: {made['oracle']['different']} rows differ from transformers")
    return wrong


def main() -> int:
    """Run the suite named on the command line. Returns 0 when all is as expected."""
    parser = argparse.ArgumentParser(prog="python -m eval.run", description=__doc__)
    parser.add_argument("suite", choices=sorted(f.stem for f in SUITES.glob("*.yaml")))
    parser.add_argument("--jobs", nargs="*", help="only these jobs; the others are kept")
    parser.add_argument(
        "--override", nargs="+", default=[], metavar="KEY=VALUE", help="of all jobs"
    )
    arguments = parser.parse_args()
    suite = load_suite(arguments.suite)
    has_raw = (REPORTS / "raw" / f"{arguments.suite}.json").exists()
    made: dict[str, Any] = read_raw(arguments.suite)["jobs"] if has_raw else {}
    wrong: list[str] = []
    where = provenance("")  # before the raw file changes the checkout
    for job in suite["jobs"]:
        if arguments.jobs is None or job["name"] in arguments.jobs:
            print(f"{job['name']}: {job['note']}", file=sys.stderr, flush=True)
            made[job["name"]] = run_job(job, where, arguments.override)
            write_raw(arguments.suite, {"kind": "suite", "jobs": made})
        if job["name"] in made:
            wrong += judge(job, made[job["name"]])
    (REPORTS / f"{arguments.suite}.md").write_text(render(arguments.suite), encoding="utf-8")
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
