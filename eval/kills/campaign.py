"""What campaigns share: outcomes as lines on disk, the run over their seeds, report, command line.

Outcomes are lines of DIR/seeds.jsonl, so that a campaign that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.kills.work import make_reference
from eval.record import REPORTS, provenance, write_raw
from eval.render import render

Json = dict[str, Any]


def read_outcomes(path: Path) -> list[Json]:
    """The outcomes so far; a torn last line is a seed that runs again."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def append_outcome(path: Path, outcome: Json) -> None:
    """Append one line and sync it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(outcome) + "\n")
        file.flush()
        os.fsync(file.fileno())


def run_seeds(
    work: Path, seeds: Sequence[int], jobs: int, play: Callable[[Path, int], Json]
) -> Iterator[Json]:
    """Play those of `seeds` that have no outcome yet, `jobs` at a time; gives each new outcome,
    once it is on disk."""
    make_reference(work)
    path = work / "seeds.jsonl"
    there = {outcome["seed"] for outcome in read_outcomes(path)}
    commit = provenance("")["commit"]
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(play, work, seed) for seed in seeds if seed not in there]
        try:
            for done in as_completed(running):
                outcome = done.result() | {"commit": commit}
                append_outcome(path, outcome)
                yield outcome
        finally:  # where one fails or Ctrl-C comes, those that wait are not begun
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Campaign:
    """A campaign: its name, its report's opening, how many seeds, and how one is played."""

    name: str
    title: str
    text: list[str]
    seeds: int
    play: Callable[[Path, int], Json]

    def write_report(self, work: Path, command: str) -> None:
        """Raw JSON and report of the outcomes that are there."""
        raw = {
            "kind": "kills",
            "title": self.title,
            "text": self.text,
            "seeds": read_outcomes(work / "seeds.jsonl"),
            **provenance(command),
        }
        write_raw(self.name, raw)
        (REPORTS / f"{self.name}.md").write_text(render(self.name), encoding="utf-8")

    def main(self, doc: str | None) -> int:
        """Run the campaign or render it. Returns 0 when every seed that was asked for passed."""
        parser = argparse.ArgumentParser(prog=f"python -m eval.{self.name}", description=doc)
        parser.add_argument("--seeds", type=int, default=self.seeds, help="seeds 0 to SEEDS - 1")
        parser.add_argument("--only", type=int, nargs="+", help="these seeds instead")
        parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
        parser.add_argument("--work", type=Path, default=Path("runs") / self.name, metavar="DIR")
        parser.add_argument("--report", action="store_true", help="only render what DIR holds")
        arguments = parser.parse_args()
        work: Path = arguments.work.resolve()
        seeds = arguments.only or range(arguments.seeds)
        if not arguments.report:
            for outcome in run_seeds(work, seeds, arguments.jobs, self.play):
                print(_line(outcome), file=sys.stderr, flush=True)
        if arguments.report:
            self.write_report(work, f"python -m eval.{self.name} --seeds {arguments.seeds}")
        outcomes = [o for o in read_outcomes(work / "seeds.jsonl") if o["seed"] in seeds]
        failed = [o["seed"] for o in outcomes if o["problems"]]
        print(f"{len(outcomes)} seeds, failed: {failed or 'none'}", file=sys.stderr)
        return 1 if failed or len(outcomes) < len(seeds) else 0


def _line(outcome: Json) -> str:
    """A seed's outcome for a person who waits."""
    kills = [a["kill"] for a in outcome["attempts"] if a["kill"]]
    told = ", ".join(f"{k['victim']} in {k['phase']} at {k['done']} rows" for k in kills)
    problems = "".join(f"\n  {problem}" for problem in outcome["problems"])
    return f"seed {outcome['seed']}: {told}: codes {outcome['codes']}{problems}"
