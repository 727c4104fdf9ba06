"""A campaign of workloads on GPUs: each is run and recorded in the raw file at once, in the end all
are rendered. What was interrupted goes on: what the raw file has of this commit and card stays,
what failed is tried again after all others.

`h200` and `h200_x2` say what the workloads are and what running one gives.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from eval.record import REPORTS, provenance
from ftjob.bench.ceilings import Ceilings, measure_ceilings
from ftjob.results.folder import write_json


class Named(Protocol):
    """What every workload has: the name it is asked for by, and the title of its lines."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...


W = TypeVar("W", bound=Named)


@dataclass(frozen=True)
class Turn:
    """One workload's turn: what is said of it, what is known of it before, and what runs it."""

    workload: Named
    beside: str
    known: dict[str, Any]
    run: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Campaign:
    """A campaign by the name of its report and raw file; its module has _ for -."""

    name: str
    kind: str
    title: str
    text: tuple[str, ...]
    render: Callable[[str, dict[str, Any]], str]

    @property
    def command(self) -> str:
        """How it is called."""
        return f"python -m eval.bench.{self.name.replace('-', '_')}"

    @property
    def raw(self) -> Path:
        """The committed raw file."""
        return REPORTS / "raw" / f"{self.name}.json"

    def parser(self, names: Sequence[str], about: str | None) -> argparse.ArgumentParser:
        """The options that campaigns share."""
        parser = argparse.ArgumentParser(prog=self.command, description=about)
        parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="run anew")
        parser.add_argument("--rounds", type=int, default=5, help="ftjob's runs")
        parser.add_argument(
            "--raw", type=Path, default=self.raw, help="file to go on with and to write"
        )
        parser.add_argument("--commit", help="the commit, where git here does not know it")
        return parser

    def check(self, parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
        """End with the usage where what was given cannot be."""
        if given.rounds < 1:
            parser.error("--rounds must be at least 1")
        if not given.raw.parent.is_dir():
            parser.error(f"--raw {given.raw}: {given.raw.parent} is no folder")

    def read(self, file: Path) -> dict[str, Any]:
        """What a raw file has so far, under the title and text of now; a file of one's own begins
        with what is committed."""
        if not file.exists() and self.raw.exists():
            shutil.copy(self.raw, file)
        about = {"kind": self.kind, "title": self.title, "text": list(self.text)}
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return {**about, "workloads": before.get("workloads", {})}

    def carry_out(
        self,
        given: argparse.Namespace,
        about: dict[str, Any],
        turns: Callable[[dict[str, Any]], Iterable[Turn]],
        order: Sequence[str],
    ) -> int:
        """Take the turns that what is made so far leaves, write raw file and report. Returns 1
        where a workload failed."""
        raw = self.read(given.raw)
        for turn in turns(raw["workloads"]):
            name = turn.workload.name
            print(f"{self.command}: {name}{turn.beside}", file=sys.stderr, flush=True)
            start = time.monotonic()
            made = attempt(turn.run)
            made["took_s"] = round(time.monotonic() - start, 1)
            known = {"title": turn.workload.title, **turn.known}
            raw["workloads"][name] = {**about, **known, **made}
            write_json(given.raw, raw)
            if "error" in made:
                print(f"{name}: {made['error']}", file=sys.stderr, flush=True)
                if not _alive():
                    print(f"{self.command}: the GPU answers no more; run again", file=sys.stderr)
                    return 1
        raw["workloads"] = {n: raw["workloads"][n] for n in order if n in raw["workloads"]}
        write_json(given.raw, raw)
        committed = given.raw == self.raw
        report = REPORTS / f"{self.name}.md" if committed else given.raw.with_suffix(".md")
        report.write_text(self.render(self.name, raw), encoding="utf-8")
        print(report.read_text(encoding="utf-8"))
        return int(any("error" in made for made in raw["workloads"].values()))


def machine_facts(
    command: str, commit: str | None, peers: Sequence[str]
) -> tuple[Ceilings, dict[str, Any]]:
    """What the first device can do, and what every entry says of its making."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    ceilings = measure_ceilings(device, torch.bfloat16 if cuda else torch.float32)
    about = {
        **provenance(command),
        "peers": list(peers),
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "ceilings": ceilings.as_dict(),
    }
    about["commit"] = commit or about["commit"]
    return ceilings, about


def to_run(
    workloads: Sequence[W],
    made: dict[str, Any],
    only: Sequence[str] | None,
    about: dict[str, Any],
    enough: Callable[[dict[str, Any]], bool] = lambda entry: True,
) -> list[W]:
    """Those named by --only; else those without figures of this commit and card that are `enough`,
    the ones that failed last: one that brings the GPU down must not keep the others from running.
    """
    if only:
        return [w for w in workloads if w.name in only]
    failed, missing = [], []
    for workload in workloads:
        entry = made.get(workload.name)
        same = entry is not None and all(entry[key] == about[key] for key in ("commit", "device"))
        if entry is None or not same:
            missing.append(workload)
        elif "error" in entry:
            failed.append(workload)
        elif not enough(entry):
            missing.append(workload)
    return missing + failed


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A workload's figures, or the error that it ended with."""
    try:
        return run()
    except Exception as error:
        traceback.print_exc()
        return {"error": told(error)}
    finally:
        free_memory()


def free_memory() -> None:
    """Give back what torch keeps of GPUs' memory for later: a job is planned by what is free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[-500:]}"


def _alive() -> bool:
    """Whether the GPUs still compute: after some errors every call of the process fails."""
    try:
        for number in range(torch.cuda.device_count()):
            torch.ones(1, device=torch.device("cuda", number)).item()
            torch.cuda.synchronize(number)
    except RuntimeError:
        return False
    return True
