"""`python -m eval.bench.peer [--rounds N] [--peers eager static] KEY=VALUE...`: ftjob's bench and
transformers, in one process, on one device, in turn. The overrides are those of `ftjob bench`.

Both get the same token ids, and every row is made as long as asked; a ratio compares neighbours in
time. `h200` compares its sizes with `compare`.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from eval.bench import hf
from eval.bench.workloads import PEERS
from eval.record import provenance
from ftjob.batching import Chunk
from ftjob.bench.ceilings import measure_ceilings
from ftjob.bench.cells import BASE, Cell, Rows, check_overrides
from ftjob.bench.devices import LocalDevices
from ftjob.bench.measure import apart, ready_phases, run_once, torch_devices
from ftjob.commands.bench import out_file, planned
from ftjob.commands.layout import columns
from ftjob.config.compose import compose
from ftjob.device import DTYPES
from ftjob.errors import ConfigError, JobError
from ftjob.job import Job
from ftjob.results.folder import write_json
from ftjob.tasks.base import GenerateRequest, ScoreRequest
from ftjob.telemetry import Phases

SCORE_BATCH = 64


@dataclass
class Timed:
    """A contender and its seconds: of runs to the full length, of short ones, and of its first run
    with all that it made ready in it. An `error` ends its part."""

    name: str
    run: Callable[[Sequence[Chunk]], float]
    seconds: list[float] = field(default_factory=list)
    short_seconds: list[float] = field(default_factory=list)
    first_s: float | None = None
    error: str | None = None

    def turn(self, cell: Cell, rows: Rows, counted: bool) -> None:
        """A run of each length, on rows of its own."""
        for new, into in ((cell.output_len, self.seconds), (cell.short, self.short_seconds)):
            if new:
                seconds = self.run(rows.chunks(new)[0])
                self.first_s = seconds if self.first_s is None else self.first_s
                into += [seconds] if counted else []

    def as_dict(self, cell: Cell) -> dict[str, Any]:
        """Plain values, for JSON, with a step and the time to the first token apart."""
        facts = {k: v for k, v in vars(self).items() if k != "run"}
        step = first = None
        if self.seconds and self.error is None:
            step, first = apart(self.seconds, self.short_seconds, cell)
        return {**facts, "step_s": step, "prefill_s": first}


def compare(
    job: Job, cell: Cell, peers: Sequence[str], rounds: int, peer_rounds: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The contenders, ftjob first, and the seconds of the phases in which it was made ready. All
    run in turn for `peer_rounds`, ftjob alone for the rest of `rounds`. A peer that fails is
    recorded with its error.

    Raises:
        ConfigError: for more than one device, or a search that is not compared.
        Stopped, DeadlinePassed: where ftjob's device fails or falls silent.
    """
    if len(job.plan.devices) > 1:
        raise ConfigError(
            f"cluster.devices_per_node={len(job.plan.devices)}: transformers runs on one device "
            "here. Use cluster.devices_per_node=1."
        )
    hf.check_decode(job.config.decode)
    rows, phases = Rows(job, cell), Phases()
    with LocalDevices(job, phases) as devices:
        ours = Timed("ftjob", lambda chunks: run_once(devices, [chunks]))
        ours.turn(cell, rows, counted=False)
        others = _peers(job, peers)
        for number in range(max(rounds, peer_rounds) + 1):
            if number:
                ours.turn(cell, rows, counted=True)
            for other in others if number <= peer_rounds else ():
                _try(other, cell, rows, counted=number > 0)
    return [timed.as_dict(cell) for timed in (ours, *others)], ready_phases(phases)


def _try(other: Timed, cell: Cell, rows: Rows, counted: bool) -> None:
    """A peer's turn; what it fails with ends its part."""
    if other.error is not None:
        return
    try:
        other.turn(cell, rows, counted)
    except Exception as error:
        other.error = hf.told(error)


def _peers(job: Job, names: Sequence[str]) -> list[Timed]:
    """The peers, which share one model. Scoring has no cache, so but one way."""
    if not names:
        return []
    (device,) = torch_devices(job)
    model = hf.build_model(job, device, DTYPES[job.config.model.dtype])
    if job.plan.generation is None:
        return [Timed(PEERS["eager"], lambda chunks: _score(model, chunks))]
    decode = job.config.decode

    def run(static: bool) -> Callable[[Sequence[Chunk]], float]:
        def generate(chunks: Sequence[Chunk]) -> float:
            (chunk,) = chunks
            requests = [r for r in chunk.requests if isinstance(r, GenerateRequest)]
            start = time.perf_counter()
            made = hf.generate(model, requests, decode, static)
            seconds = time.perf_counter() - start
            wanted = len(requests) * decode.num_return_sequences
            if {len(row) for row in made} != {requests[0].max_new_tokens} or len(made) != wanted:
                raise RuntimeError("transformers made rows of another length")
            return seconds

        return generate

    return [Timed(PEERS[name], run(name == "static")) for name in names]


def _score(model: Any, chunks: Sequence[Chunk]) -> float:
    requests = [r for c in chunks for r in c.requests if isinstance(r, ScoreRequest)]
    start = time.perf_counter()
    hf.score(model, requests, SCORE_BATCH)
    return time.perf_counter() - start


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Their time over ours in the rounds that both have: median (lowest to highest)."""
    found = [their / our for our, their in zip(ours, theirs, strict=False)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def render(cells: Sequence[dict[str, Any]]) -> str:
    """A line a size and contender, as text."""
    table = [["batch", "in", "out", "contender", "median ms", "prefill", "step", "over ftjob's"]]
    for cell in cells:
        size = [str(cell[k]) for k in ("batch", "input_len", "output_len")]
        ours = cell["contenders"][0]
        for one in cell["contenders"]:
            if one["error"]:
                table.append([*size, one["name"], "-", "-", "-", one["error"]])
                continue
            over = "1" if one is ours else ratio(ours["seconds"], one["seconds"])
            median = statistics.median(one["seconds"])
            times = [_ms(median), _ms(one["prefill_s"]), _ms(one["step_s"])]
            table.append([*size, one["name"], *times, over])
    return "\n".join(columns(table)) + "\n"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.4g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare every size that the overrides ask for. Returns the exit code."""
    command = "python -m eval.bench.peer"
    parser = argparse.ArgumentParser(prog=command, description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = parser.parse_intermixed_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        check_overrides(given.overrides)
        config = compose([*BASE, *given.overrides])
        out, jobs = out_file("bench.out", config.bench.out), planned(config)
        said = [a for a in arguments if not a.startswith("bench.out=")]
        (device, *_), dtype = torch_devices(jobs[0][0]), DTYPES[config.model.dtype]
        made: dict[str, Any] = {
            **provenance(f"{command} {shlex.join(said)}"),
            "peers": [f"transformers {version('transformers')}"],
            "ceilings": measure_ceilings(device, dtype).as_dict(),
            "cells": [],
        }
        for job, cell in jobs:
            found, ready = compare(job, cell, given.peers, given.rounds, given.rounds)
            made["cells"].append({**cell.as_dict(), "phases": ready, "contenders": found})
            if out is not None:
                write_json(out, made)
    except JobError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return error.code
    print(render(made["cells"]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
