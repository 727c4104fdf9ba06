"""Contenders side by side: each waits in its own process with its model warm, and they pass over
the same rows in turn, round by round, so that a ratio compares neighbours in time.

The benchmarks name their contenders and write the report; `cpu_worker` is the process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from eval.bench.contenders import ROWS, tokens
from eval.record import REPORTS, provenance, write_raw
from eval.render import render

# name, kind, size or layout, OMP threads
Contender = tuple[str, str, str, int]


def benchmark(
    name: str,
    title: str,
    text: Sequence[str],
    contenders: Sequence[Contender],
    peers: Sequence[str] = (),
) -> int:
    """The main function of eval.bench.NAME: run the rounds, write raw JSON and report. `peers` are
    names and versions of what runs beside ftjob."""
    command = f"python -m eval.bench.{name}"
    parser = argparse.ArgumentParser(prog=command, description=title)
    parser.add_argument("--rounds", type=int, default=7)
    count = parser.parse_args().rounds
    write_raw(
        name,
        {
            "kind": "bench",
            "title": title,
            "text": list(text),
            "unit": "tokens/s",
            "work": tokens(),
            "peers": list(peers),
            "contenders": measure(contenders, count),
            **provenance(f"{command} --rounds {count}"),
        },
    )
    (REPORTS / f"{name}.md").write_text(render(name), encoding="utf-8")
    return 0


def measure(contenders: Sequence[Contender], rounds: int) -> list[dict[str, Any]]:
    """Seconds of each contender in each round, and the share of rows right where it judges them."""
    workers = [_start(kind, size, threads) for _, kind, size, threads in contenders]
    seconds: list[list[float]] = [[] for _ in contenders]
    right = [-1] * len(contenders)
    for number in range(rounds):
        for i, worker in enumerate(workers):
            spent, found = _pass(worker)
            seconds[i].append(spent)
            right[i] = found
            print(f"round {number}: {spent:6.2f} s  {contenders[i][0]}", file=sys.stderr)
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait(60)
    return [
        {"name": name, "seconds": spent, "accuracy": None if found < 0 else found / ROWS}
        for (name, *_), spent, found in zip(contenders, seconds, right, strict=True)
    ]


def _start(kind: str, size: str, threads: int) -> subprocess.Popen[str]:
    """Start a contender and wait until it is warm."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "eval.bench.cpu_worker", kind, size],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _read(worker, "ready")
    return worker


def _pass(worker: subprocess.Popen[str]) -> tuple[float, int]:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    spent, right = _read(worker, "").split()
    return float(spent), int(right)


def _read(worker: subprocess.Popen[str], expected: str) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline().strip()
    if not line or (expected and line != expected):
        raise SystemExit(f"{worker.args!r}: ended without an answer, printed {line!r}")
    return line
