"""`python -m eval.bench.h200`: every workload of `workloads` on one GPU, beside transformers. It
writes the raw JSON after each, and the report in the end.

ftjob runs through all of them first, then again beside transformers, which takes most of the time.
A campaign that was interrupted goes on: what the raw file has of this commit and card stays, what
failed is tried again after all others. The card may be any; the report names the one that gave each
number.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from eval.bench.campaign import Campaign, Turn, machine_facts, to_run
from eval.bench.passes import lambada, newstest
from eval.bench.peer import compare
from eval.bench.workloads import WORKLOADS, Workload
from eval.bench.workloads_page import render_workloads
from ftjob.bench.ceilings import Ceilings
from ftjob.bench.cells import BASE
from ftjob.bench.measure import tokens_of, works
from ftjob.commands.bench import planned
from ftjob.config.compose import compose

CAMPAIGN = Campaign(
    "h200",
    "workloads",
    "One GPU beside transformers and FasterTransformer's figures",
    (
        "Random weights of the right shape in bf16, greedy unless said, every row as long as "
        "asked. A time runs from token ids on the host to answers on the host, without load, "
        "warm-up and capture, which are given apart. ftjob and transformers run in one process on "
        "the same ids, in turn; a ratio is of the rounds that both have. What is given was "
        "measured before on one H200 (`eval/bench/workloads.py` says how), whatever card gave the "
        "rest.",
    ),
    render_workloads,
)


def main(argv: Sequence[str] | None = None, workloads: Sequence[Workload] = WORKLOADS) -> int:
    """Run what is missing, write raw file and report. Returns 1 where a workload failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = _parsed(arguments, [w.name for w in workloads])
    peers = [f"transformers {version('transformers')}"]
    ceilings, about = machine_facts(_command(given), given.commit, peers)
    if not given.compiled:
        workloads = [replace(w, peers=tuple(p for p in w.peers if p == "eager")) for w in workloads]

    def turns(made: dict[str, Any]) -> Iterator[Turn]:
        for workload, peer_rounds in campaign(workloads, made, given, about):
            beside = f" beside {', '.join(workload.peers)}" if peer_rounds else ""
            known = {
                "figure": workload.figure,
                "given": asdict(workload.given),
                "rounds": given.rounds,
                "peer_rounds": peer_rounds,
            }
            work = partial(run, workload, ceilings, given.rounds, peer_rounds)
            yield Turn(workload, beside, known, work)

    return CAMPAIGN.carry_out(given, about, turns, [w.name for w in workloads])


def _parsed(arguments: Sequence[str], names: Sequence[str]) -> argparse.Namespace:
    parser = CAMPAIGN.parser(names, __doc__)
    parser.add_argument("--peer-rounds", type=int, default=3, help="transformers'; 0 is none")
    parser.add_argument(
        "--compiled", action="store_true", help="transformers compiled too, minutes a size"
    )
    given = parser.parse_args(arguments)
    CAMPAIGN.check(parser, given)
    if not 0 <= given.peer_rounds <= given.rounds:
        parser.error("--peer-rounds must be from 0 to --rounds")
    return given


def _command(given: argparse.Namespace) -> str:
    """The command line without where files lie."""
    only = ["--only", *given.only] if given.only else []
    counts = ["--rounds", str(given.rounds), "--peer-rounds", str(given.peer_rounds)]
    compiled = ["--compiled"] if given.compiled else []
    return " ".join([CAMPAIGN.command, *counts, *compiled, *only])


def campaign(
    workloads: Sequence[Workload],
    made: dict[str, Any],
    given: argparse.Namespace,
    about: dict[str, Any],
) -> Iterator[tuple[Workload, int]]:
    """What is to run, one after the other, each with the rounds of its peers: at first none."""
    for workload in to_run(workloads, made, given.only, about):
        yield workload, 0
    if given.peer_rounds:
        beside = [w for w in workloads if w.peers]
        for workload in to_run(beside, made, given.only, about, has_rounds(given.peer_rounds)):
            yield workload, given.peer_rounds


def has_rounds(peer_rounds: int) -> Callable[[dict[str, Any]], bool]:
    """Whether an entry has so many rounds of its peers."""
    return lambda entry: bool(entry["peer_rounds"] >= peer_rounds)


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


if __name__ == "__main__":
    sys.exit(main())
