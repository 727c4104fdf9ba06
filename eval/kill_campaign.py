"""`python -m eval.kill_campaign`: kill jobs at random moments, resume them, judge what comes out.

Every seed decides layouts, victim and moment by itself (`eval/kills`). Outcomes are lines of
DIR/seeds.jsonl, so that a campaign that was stopped goes on; `--report` makes the raw JSON and the
report of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from eval.kills.draw import SECOND_KILL
from eval.kills.seed import Seed
from eval.kills.work import DEADLINE_S, MALFORMED, ROWS, make_reference
from eval.record import REPORTS, provenance, write_raw
from eval.render import render

NAME = "kill_campaign"
TEXT = [
    f"Each seed starts a job ({ROWS} rows, {len(MALFORMED)} of them malformed, a tiny random GPT) "
    "under mpirun, kills it with SIGKILL at a random moment, resumes it under another layout and "
    f"number of ranks ({SECOND_KILL:.0%} of the seeds are killed a second time), and when it has "
    "ended compares it with a run that nobody disturbed: the same answers by the rule of "
    "`compare`, every row once, each journal whole up to a torn last line, each attempt's code in "
    "results.json.",
    "",
    "Struck: `rank`, one rank's process, and mpirun ends the others; `rank, alone`, the same while "
    "mpirun is frozen, so that the others must notice by themselves (run.deadline_s="
    f"{DEADLINE_S:g}); `launcher`, mpirun's own process; `all`, every process at once, as a lost "
    "node looks. Phases, rows done and rows in flight are what the disk showed at the kill: in "
    "flight are the rows of chunks that were handed out and not journaled. A layout is ranks x "
    "devices, tensor, pipeline and data split, tokens of a chunk.",
]


def read_outcomes(path: Path) -> list[dict[str, Any]]:
    """The outcomes so far; a torn last line is a seed that runs again."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def append_outcome(path: Path, outcome: dict[str, Any]) -> None:
    """Append one line and sync it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(outcome) + "\n")
        file.flush()
        os.fsync(file.fileno())


def run_seeds(work: Path, seeds: Sequence[int], jobs: int) -> Iterator[dict[str, Any]]:
    """Run those of `seeds` that have no outcome yet, `jobs` at a time; gives each new outcome,
    once it is on disk."""
    make_reference(work)
    path = work / "seeds.jsonl"
    there = {outcome["seed"] for outcome in read_outcomes(path)}
    commit = provenance("")["commit"]
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(Seed(work, seed).run) for seed in seeds if seed not in there]
        try:
            for done in as_completed(running):
                outcome = done.result() | {"commit": commit}
                append_outcome(path, outcome)
                yield outcome
        finally:  # where one fails or Ctrl-C comes, those that wait are not begun
            pool.shutdown(cancel_futures=True)


def write_report(work: Path, command: str) -> None:
    """Raw JSON and report of the outcomes that are there."""
    raw = {
        "kind": "kills",
        "title": "Jobs killed at random moments",
        "text": TEXT,
        "seeds": read_outcomes(work / "seeds.jsonl"),
        **provenance(command),
    }
    write_raw(NAME, raw)
    (REPORTS / f"{NAME}.md").write_text(render(NAME), encoding="utf-8")


def main() -> int:
    """Run the campaign or render it. Returns 0 when every seed that was asked for passed."""
    parser = argparse.ArgumentParser(prog="python -m eval.kill_campaign", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--only", type=int, nargs="+", help="these seeds instead")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--work", type=Path, default=Path("runs/kill_campaign"), metavar="DIR")
    parser.add_argument("--report", action="store_true", help="only render what DIR holds")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    seeds = arguments.only or range(arguments.seeds)
    if not arguments.report:
        for outcome in run_seeds(work, seeds, arguments.jobs):
            print(_line(outcome), file=sys.stderr, flush=True)
    if arguments.report:
        write_report(work, f"python -m eval.kill_campaign --seeds {arguments.seeds}")
    outcomes = [o for o in read_outcomes(work / "seeds.jsonl") if o["seed"] in seeds]
    failed = [o["seed"] for o in outcomes if o["problems"]]
    print(f"{len(outcomes)} seeds, failed: {failed or 'none'}", file=sys.stderr)
    return 1 if failed or len(outcomes) < len(seeds) else 0


def _line(outcome: dict[str, Any]) -> str:
    """A seed's outcome for a person who waits."""
    kills = [a["kill"] for a in outcome["attempts"] if a["kill"]]
    told = ", ".join(f"{k['victim']} in {k['phase']} at {k['done']} rows" for k in kills)
    problems = "".join(f"\n  {problem}" for problem in outcome["problems"])
    return f"seed {outcome['seed']}: {told}: codes {outcome['codes']}{problems}"


if __name__ == "__main__":
    sys.exit(main())
