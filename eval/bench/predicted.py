"""`python -m eval.bench.predicted`: what `plan` predicts for the workloads that H200s were timed
with, beside their times.

Reads reports/raw/h200.json and h200-x2.json and predicts their sizes and sets with the rates that a
plan has by default. With --fit it prints the rates that come nearest to all of the sizes: what
`ftjob/rates.py` has, rounded. Needs no GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.bench.newstest import Pair as Lengths
from eval.bench.newstest import read_pairs
from eval.bench.scoring import lambada_requests
from eval.bench.workloads import WORKLOADS
from eval.bench.workloads_x2 import PAIRS
from eval.record import REPORTS, heading, made_line, provenance, read_raw, write_raw
from ftjob.bench.cells import BASE, Cell, cell_job, sizes_of
from ftjob.config.compose import compose
from ftjob.job import Job, open_model, prepare
from ftjob.plan import Machine
from ftjob.predict import cell as predicted_cell
from ftjob.predict import predict
from ftjob.rates import Rates, rates_of

Numbers = np.ndarray[Any, np.dtype[np.float64]]

NAME = "predicted"
COMMAND = f"python -m eval.bench.{NAME}"
TITLE = "Predicted times beside measured ones"
TEXT = [
    "What `python -m ftjob plan` says of a layout before anything runs (`ftjob/predict.py`), with "
    "the rates it has by default, beside the medians of h200.md and h200-x2.md. The rates were "
    "fitted to the sizes of one batch here (`--fit`); sets of rows were not fitted. A set is "
    "predicted as rows of its mean lengths. Whole runs of the command over a data set are left "
    "out: reading, journal and start are not predicted.",
]
# A prediction that is so far off or less is a good one.
GOOD = 0.25
# One H200 of those that were timed.
MEMORY_BYTES = 139 * 2**30
# The rates that are fitted, besides the latency of sums within a process. No share is above 1. That
# of other kernels is not: in these sizes their number goes with that of the matrices.
FITTED = (
    *("weights_share", "cache_share", "product_share"),
    *("few_s", "matrix_s", "beams_s", "entry_s", "row_s"),
)
# Levenberg's damping to begin with. The search ends where it would have to be so much, or where a
# step makes the sum of squares better by so small a share.
DAMPED, MOST_DAMPED, SMALL = 1e-2, 1e6, 1e-6


@dataclass(frozen=True)
class Timed:
    """A side of a workload: what was timed, in seconds by what they are of (run, prefill, step or
    row), on so many GPUs, each a rank's own where `apart`."""

    title: str
    side: str
    overrides: tuple[str, ...]
    kind: str
    seconds: Mapping[str, float]
    gpus: int
    apart: bool = False
    lengths: tuple[Lengths, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A timed side, ready to be predicted: its job, and the size of a batch or the mean one."""

    timed: Timed
    job: Job
    cell: Cell

    def predicted(self, rates: Rates) -> dict[str, float]:
        """Seconds by what they are of."""
        job, cell = self.job, self.cell
        about = job.config, job.source.arch, job.plan, rates
        if self.timed.kind in ("size", "launched rows"):
            made = predicted_cell(*about, cell.batch, cell.input_len, cell.output_len)
            whole = {"run": made["seconds"], "row": made["seconds"]}
            return whole | {"prefill": made["prefill_s"], "step": made["step_s"]}
        tokens = sum(pair.source + pair.target for pair in self.timed.lengths)
        if job.plan.generation is not None:
            tokens = sum(pair.target for pair in self.timed.lengths)
        found = predict(*about, cell.input_len, cell.output_len, cell.batch)
        return {"run": tokens / found.tokens_s}


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, write raw file and report; or fit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--fit", action="store_true", help="print the rates nearest to the times")
    fits = parser.parse_args(arguments).fit
    asked = [ready(timed) for timed in timed_sides()]
    if fits:
        for name, value in fit([a for a in asked if a.timed.kind == "size"]).items():
            print(f"{name}: {value:.3g}")
        return 0
    cases = []
    for a in asked:
        found = a.predicted(wired(rates(a), a.timed.apart))
        cases += [
            {"title": a.timed.title, "side": a.timed.side, "of": of, "kind": a.timed.kind}
            | {"measured_s": seconds, "predicted_s": found[of]}
            for of, seconds in a.timed.seconds.items()
        ]
    raw = {"kind": NAME, "title": TITLE, "text": TEXT, **provenance(COMMAND), "cases": cases}
    write_raw(NAME, raw)
    report = REPORTS / f"{NAME}.md"
    report.write_text(render_predicted(NAME, raw), encoding="utf-8")
    print(report.read_text(encoding="utf-8"))
    return 0


def timed_sides() -> Iterator[Timed]:
    """What the two campaigns timed and `plan` predicts."""
    one = read_raw("h200")["workloads"]
    sets: dict[str, tuple[Lengths, ...]] = {
        "lambada": tuple(
            Lengths(r.scored_from, len(r.ids) - r.scored_from) for r in lambada_requests()
        ),
        "newstest": tuple(read_pairs()),
    }
    for work in WORKLOADS:
        made = next(c for c in one[work.name]["contenders"] if c["name"] == "ftjob")
        lengths = sets.get(work.kind, ())
        about = work.title, "one GPU", work.overrides, work.kind
        yield Timed(*about, _seconds(made, "run"), 1, lengths=lengths)
    two = read_raw("h200-x2")["workloads"]
    for pair in PAIRS:
        if pair.kind == "launched lambada" or pair.name not in two:
            continue
        lengths = pair.times * sets["lambada"] if pair.kind == "lambada" else ()
        if pair.kind == "set":
            lengths = pair.rows * (Lengths(pair.given, pair.new),)
        sizes: tuple[str, ...] = ()
        if pair.kind == "launched rows":
            wanted = ("batch=1", f"input_len={pair.given}", f"output_len={pair.new}")
            sizes = tuple(f"bench.{size}" for size in wanted)
        for side in pair.sides:
            made = next(c for c in two[pair.name]["contenders"] if c["name"] == side.name)
            gpus = 1 if side.name.startswith("one GPU") else 2
            yield Timed(
                pair.title,
                side.name,
                (*pair.overrides, *side.overrides, *sizes),
                pair.kind,
                _seconds(made, "row" if pair.figure == "row" else "run"),
                gpus,
                side.ranks > 1,
                lengths,
            )


def _seconds(made: Mapping[str, Any], whole: str) -> dict[str, float]:
    found = {whole: statistics.median(made["seconds"])}
    return found | {of: made[f"{of}_s"] for of in ("prefill", "step") if made[f"{of}_s"]}


def ready(timed: Timed) -> Asked:
    """Its job as it was then, for GPUs that need not be here."""
    devices = (1,) * timed.gpus if timed.apart else (timed.gpus,)
    machine = Machine(devices, "cuda", MEMORY_BYTES, "of those timed")
    if not timed.lengths:
        config = compose([*BASE, *timed.overrides])
        (size,) = sizes_of(config, open_model(config).arch.positions)
        return Asked(timed, *cell_job(config, size, machine))
    base = () if timed.kind == "lambada" else BASE
    job = prepare(compose([*base, *timed.overrides]), machine)
    given = round(statistics.fmean(pair.source for pair in timed.lengths))
    new = round(statistics.fmean(pair.target for pair in timed.lengths))
    room = job.plan.generation
    rows = job.plan.max_tokens // (given + new) if room is None else room.slots * job.plan.pipeline
    return Asked(timed, job, Cell(min(rows, len(timed.lengths)), given, new))


def rates(asked: Asked) -> Rates:
    """What a plan of it has by default."""
    found = rates_of(asked.job.config, "cuda")
    assert found is not None
    return found


def wired(known: Rates, apart: bool) -> Rates:
    """The same where ranks share a node, as those did that were timed."""
    if not apart:
        return known
    sums, sends = dict(known.reduce), dict(known.send)
    sums["nodes"], sends["nodes"] = sums["node"], sends["node"]
    return replace(known, reduce=sums, send=sends)


def fit(asked: Sequence[Asked]) -> dict[str, float]:
    """The rates for which predictions of prefill and step are off by the least mean square of the
    logarithm: Levenberg 1944, A Method for the Solution of Certain Non-Linear Problems in Least
    Squares, over the logarithms of the rates, from the default ones."""
    base = rates(asked[0])
    names = [*FITTED, "sum_s"]
    highest = np.array([0.0 if name.endswith("_share") else np.inf for name in names])

    def off(at: Numbers) -> Numbers:
        values = dict(zip(names, map(float, np.exp(at)), strict=True))
        wire = replace(base.reduce["process"], latency_s=values.pop("sum_s"))
        own: dict[str, Any] = {**values, "reduce": {**base.reduce, "process": wire}}
        made = replace(base, **own)
        errors = []
        for a in asked:
            found, seconds = a.predicted(made), a.timed.seconds
            errors += [math.log(found[of] / seconds[of]) for of in ("prefill", "step")]
        return np.array(errors)

    first = [getattr(base, name) for name in FITTED]
    at = np.log([*first, base.reduce["process"].latency_s])
    errors, damped, better = off(at), DAMPED, math.inf
    while better > SMALL * (errors @ errors):
        small = 1e-4 * np.eye(len(at))
        slopes = np.stack([(off(at - step) - errors) / -1e-4 for step in small], axis=1)
        better = 0.0
        while better <= 0 and damped < MOST_DAMPED:
            more = np.concatenate((slopes, math.sqrt(damped) * np.eye(len(at))))
            step = np.linalg.lstsq(more, np.concatenate((-errors, np.zeros(len(at)))))[0]
            tried = np.minimum(at + step, highest)
            found = off(tried)
            better = float(errors @ errors - found @ found)
            damped *= 0.1 if better > 0 else 10.0
        if better > 0:
            at, errors = tried, found
    values = dict(zip(names, map(float, np.exp(at)), strict=True))
    return values | {"off by, root mean square": math.sqrt(errors @ errors / len(errors))}


def render_predicted(name: str, raw: dict[str, Any]) -> str:
    """Every time beside its prediction."""
    lines = [
        *heading(raw, made_line(name, raw)),
        "| workload | side | time of | measured, ms | predicted, ms | predicted over measured "
        f"| within {GOOD:.0%} |",
        f"| {' | '.join(['---'] * 7)} |",
    ]
    for case in raw["cases"]:
        ratio = case["predicted_s"] / case["measured_s"]
        times = [f"{1e3 * case[which]:.3g}" for which in ("measured_s", "predicted_s")]
        good = "yes" if abs(ratio - 1) <= GOOD else "NO"
        cells = [case["title"], case["side"], case["of"], *times, f"{ratio:.2f}", good]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
