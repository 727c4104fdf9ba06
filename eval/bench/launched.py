"""Whole runs of `python -m ftjob`, as one rank of two threads or as two ranks under mpirun: the
same command, timed from outside.

Rows one by one are timed by their coming to the journal, so that one launch gives many times; a set
of rows by results.json. `h200_x2` asks for them.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.bench.campaign import told
from eval.bench.passes import nothing
from eval.bench.workloads_x2 import Pair, Side
from eval.launch import mpirun
from ftjob.config.compose import compose
from ftjob.results.folder import read_json_file
from ftjob.tasks.rows import RowSource
from ftjob.tokenizer import NONE

# A launch that takes longer is ended.
LIMIT_S = 100.0
# Seconds between two looks at the journal.
LOOK_S = 0.001
# Ids that are no special ones of any model here.
LEAST_ID, IDS = 10, 8000
# The first rows' times are not counted: steps are captured then, and libraries warm up.
UNCOUNTED = 2


def launched(pair: Pair, rounds: int) -> list[dict[str, Any]]:
    """What each side took: of rows one by one, `rounds` times in one launch; of a set, one time."""
    with tempfile.TemporaryDirectory(prefix="ftjob-bench-") as scratch:
        folder = Path(scratch)
        overrides = [*pair.overrides, *_rows_file(pair, rounds, folder)]
        return [_side(pair, side, overrides, folder) for side in pair.sides]


def _side(pair: Pair, side: Side, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    made = nothing(side.name)
    run = folder / side.name
    try:
        times = _launch(side, [*overrides, *side.overrides, f"run.dir={run}"], run)
        results = read_json_file(run / "results.json")
        through = results["throughput"]
        made["seconds"] = [through["seconds"]]
        if pair.kind == "launched rows":
            if through["tokens"] != through["rows"] * pair.new:
                raise RuntimeError(f"{through['tokens']} new tokens of {through['rows']} rows")
            made["seconds"] = [b - a for a, b in itertools.pairwise(times)][UNCOUNTED:]
            through["tokens"] = pair.new
        phases = {}
        for phase in results["phases"]:
            if phase["device"] == 0 and phase["rank"] == 0 and phase["name"] in ("load", "warm-up"):
                phases[phase["name"]] = phase["end_s"] - phase["start_s"]
        return {**made, "phases": phases, "tokens": through["tokens"], "steps": None}
    except Exception as error:
        return {**made, "error": told(error), "phases": {}}


def _rows_file(pair: Pair, rounds: int, folder: Path) -> list[str]:
    """Writes the rows; the overrides that name them."""
    path = folder / "rows.jsonl"
    if pair.kind == "launched lambada":
        rows = [row.text for row in RowSource(compose(pair.overrides).dataset).rows()]
        text = "".join(f"{json.dumps({'text': t})}\n" for t in rows) * pair.times
        path.write_text(text, encoding="utf-8")
        return [f"dataset.path={path}"]
    drawn = random.Random(0)
    ids = [drawn.choices(range(LEAST_ID, IDS), k=pair.given) for _ in range(rounds + UNCOUNTED + 1)]
    path.write_text("".join(f"{json.dumps({'prompt_ids': i})}\n" for i in ids), encoding="utf-8")
    return [
        "dataset=prompts",
        f"dataset.path={path}",
        f"model.tokenizer={NONE}",
        f"decode.max_new_tokens={pair.new}",
        "batch.lanes=1",
    ]


def _launch(side: Side, overrides: Sequence[str], run: Path) -> list[float]:
    """Runs the command to its end; when each answer came to the journal, by time.monotonic().

    Raises:
        RuntimeError: for an exit code that is not 0, with the last words said.
    """
    words = mpirun(side.ranks, one_gpu=True) if side.ranks > 1 else []
    path = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    said = run.with_name(f"{run.name}.log")
    with said.open("wb") as log:
        process = subprocess.Popen(
            [*words, sys.executable, "-m", "ftjob", *overrides],
            cwd=run.parent,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            times = _watch(process, run)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        text = said.read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"{side.name}: exit {process.returncode}: {text[-400:]}")
    return times


def _watch(process: subprocess.Popen[bytes], run: Path) -> list[float]:
    """Times at which lines were found in the journals, while the process lives."""
    end = time.monotonic() + LIMIT_S
    seen, times = 0, list[float]()
    while process.poll() is None:
        now = time.monotonic()
        if now > end:
            raise RuntimeError(f"did not end within {LIMIT_S:g} s")
        found = 0
        for journal in run.glob("journal/rank*.jsonl"):
            found += max(0, journal.read_bytes().count(b"\n") - 1)  # the first line is its header
        times += [now] * (found - seen)
        seen = found
        time.sleep(LOOK_S)
    return times
