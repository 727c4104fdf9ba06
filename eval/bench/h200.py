"""`python -m eval.bench.h200`: every workload of `workloads` on one GPU, beside transformers. It
writes the raw JSON after each, and the report in the end.

ftjob runs through all of them first, then again beside transformers, which takes most of the time.
A campaign that was interrupted goes on: what the raw file has of this commit and card stays, what
failed is tried again after all others. The card may be any; the report names the one that gave each
number.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from eval.bench.passes import lambada, newstest
from eval.bench.peer import compare
from eval.bench.workloads import WORKLOADS, Workload
from eval.bench.workloads_page import render_workloads
from eval.record import REPORTS, provenance
from ftjob.bench.ceilings import Ceilings, measure_ceilings
from ftjob.bench.cells import BASE
from ftjob.bench.measure import tokens_of, works
from ftjob.commands.bench import planned
from ftjob.config.compose import compose
from ftjob.results.folder import write_json

NAME = "h200"
COMMAND = f"python -m eval.bench.{NAME}"
RAW = REPORTS / "raw" / f"{NAME}.json"
TITLE = "One GPU beside transformers and FasterTransformer's figures"
TEXT = [
    "Random weights of the right shape in bf16, greedy unless said, every row as long as asked. A "
    "time runs from token ids on the host to answers on the host, without load, warm-up and "
    "capture, which are given apart. ftjob and transformers run in one process on the same ids, in "
    "turn; a ratio is of the rounds that both have. What is given was measured before on one H200 "
    "(`eval/bench/workloads.py` says how), whatever card gave the rest.",
]


def main(argv: Sequence[str] | None = None, workloads: Sequence[Workload] = WORKLOADS) -> int:
    """Run what is missing, write raw file and report. Returns 1 where a workload failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = _parsed(arguments, [w.name for w in workloads])
    raw_file: Path = given.raw
    if not raw_file.exists() and RAW.exists():
        shutil.copy(RAW, raw_file)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    ceilings = measure_ceilings(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    about = {
        **provenance(_command(given)),
        "peers": [f"transformers {version('transformers')}"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "ceilings": ceilings.as_dict(),
    }
    about["commit"] = about["commit"] or given.commit
    raw = read_campaign(raw_file)
    if not given.compiled:
        workloads = [replace(w, peers=tuple(p for p in w.peers if p == "eager")) for w in workloads]
    for workload, peer_rounds in campaign(workloads, raw["workloads"], given, about):
        beside = f" beside {', '.join(workload.peers)}" if peer_rounds else ""
        print(f"{COMMAND}: {workload.name}{beside}", file=sys.stderr, flush=True)
        start = time.monotonic()
        made = attempt(workload, ceilings, given.rounds, peer_rounds)
        made["took_s"] = round(time.monotonic() - start, 1)
        made["peer_rounds"] = peer_rounds
        known = {"title": workload.title, "figure": workload.figure}
        raw["workloads"][workload.name] = {
            **about,
            **known,
            "given": asdict(workload.given),
            **made,
        }
        write_json(raw_file, raw)
        if "error" in made:
            print(f"{workload.name}: {made['error']}", file=sys.stderr, flush=True)
            if device.type == "cuda" and not _alive(device):
                print(f"{COMMAND}: the GPU answers no more; run again", file=sys.stderr)
                return 1
    order = [w.name for w in workloads]
    raw["workloads"] = {n: raw["workloads"][n] for n in order if n in raw["workloads"]}
    write_json(raw_file, raw)
    report = REPORTS / f"{NAME}.md" if raw_file == RAW else raw_file.with_suffix(".md")
    report.write_text(render_workloads(NAME, raw), encoding="utf-8")
    print(report.read_text(encoding="utf-8"))
    return int(any("error" in made for made in raw["workloads"].values()))


def _parsed(arguments: Sequence[str], names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="run these anew")
    parser.add_argument("--rounds", type=int, default=5, help="ftjob's runs")
    parser.add_argument("--peer-rounds", type=int, default=3, help="transformers'; 0 is none")
    parser.add_argument(
        "--compiled", action="store_true", help="transformers compiled too, minutes a size"
    )
    parser.add_argument("--raw", type=Path, default=RAW, help="file to go on with and to write")
    parser.add_argument("--commit", help="the commit, where this is no checkout of git")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or not 0 <= given.peer_rounds <= given.rounds:
        parser.error("--rounds must be at least 1 and --peer-rounds from 0 to --rounds")
    if not given.raw.parent.is_dir():
        parser.error(f"--raw {given.raw}: {given.raw.parent} is no folder")
    return given


def _command(given: argparse.Namespace) -> str:
    """The command line without where files lie."""
    only = ["--only", *given.only] if given.only else []
    counts = ["--rounds", str(given.rounds), "--peer-rounds", str(given.peer_rounds)]
    compiled = ["--compiled"] if given.compiled else []
    return " ".join([COMMAND, *counts, *compiled, *only])


def read_campaign(file: Path) -> dict[str, Any]:
    """What a raw file has so far, under the title and text of now."""
    about = {"kind": "workloads", "title": TITLE, "text": TEXT}
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {**about, "workloads": before.get("workloads", {})}


def campaign(
    workloads: Sequence[Workload],
    made: dict[str, Any],
    given: argparse.Namespace,
    about: dict[str, Any],
) -> Iterator[tuple[Workload, int]]:
    """What is to run, one after the other, each with the rounds of its peers: at first none."""
    alone = to_run(workloads, made, given.only, about, 0)
    yield from ((workload, 0) for workload in alone)
    if given.peer_rounds:
        beside = [w for w in workloads if w.peers]
        for workload in to_run(beside, made, given.only, about, given.peer_rounds):
            yield workload, given.peer_rounds


def to_run(
    workloads: Sequence[Workload],
    made: dict[str, Any],
    only: Sequence[str] | None,
    about: dict[str, Any],
    peer_rounds: int,
) -> list[Workload]:
    """Those named by --only; else those without figures of this commit and card beside so many
    rounds of their peers, the ones that failed last: one that brings the GPU down must not keep the
    others from running."""
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
        elif entry["peer_rounds"] < peer_rounds:
            missing.append(workload)
    return missing + failed


def attempt(
    workload: Workload, ceilings: Ceilings, rounds: int, peer_rounds: int
) -> dict[str, Any]:
    """A workload's figures, or the error that it ended with."""
    try:
        return {"rounds": rounds, **run(workload, ceilings, rounds, peer_rounds)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[-500:]}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run(workload: Workload, ceilings: Ceilings, rounds: int, peer_rounds: int) -> dict[str, Any]:
    """The contenders' seconds, ftjob's phases before, the least time at the ceilings, and the
    tokens of a run."""
    if workload.kind == "lambada":
        return lambada(workload, ceilings, rounds, peer_rounds)
    if workload.kind == "newstest":
        return newstest(workload, rounds, peer_rounds)
    ((job, cell),) = planned(compose([*BASE, *workload.overrides]))
    peers = workload.peers if peer_rounds else ()
    found, phases = compare(job, cell, peers, rounds, peer_rounds)
    copy, product = ceilings.copy_bytes_s, ceilings.product_flop_s
    parts = {name: part.seconds(copy, product) for name, part in works(job, cell).items()}
    limit = sum(parts.values())
    if workload.figure == "step":
        limit = parts["decode"] / (cell.output_len - 1)
    return {
        "contenders": found,
        "phases": phases,
        "limit_s": limit,
        "tokens": tokens_of(job, cell),
        "steps": cell.output_len - 1,
    }


def _alive(device: torch.device) -> bool:
    """Whether the GPU still computes: after some errors every call of the process fails."""
    try:
        torch.ones(1, device=device).item()
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
