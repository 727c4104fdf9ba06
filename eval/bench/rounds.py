"""Contenders side by side: each waits in its own process with its model warm, and they pass over
the same rows in turn, round by round, so that a ratio compares neighbours in time.

The benchmarks name their contenders and write the report; `cpu_worker` is the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from eval.bench.contender import Contender
from eval.record import REPORTS, provenance, write_raw
from eval.render import render


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
    run(
        name,
        {
            "title": title,
            "text": list(text),
            "quality": "accuracy",
            "peers": list(peers),
            **provenance(f"{command} --rounds {count}"),
        },
        contenders,
        count,
    )
    return 0


def run(name: str, about: dict[str, Any], contenders: Sequence[Contender], rounds: int) -> None:
    """Measure, write raw JSON and report. `about` has title, text, what quality is called, peers
    and provenance."""
    measured = measure(contenders, rounds)
    write_raw(name, {"kind": "bench", "unit": "tokens/s", **about, "contenders": measured})
    (REPORTS / f"{name}.md").write_text(render(name), encoding="utf-8")


def measure(contenders: Sequence[Contender], rounds: int) -> list[dict[str, Any]]:
    """Seconds of each contender in each round, its tokens and quality; a group after the other,
    so that only the workers of one are in memory."""
    found: list[dict[str, Any]] = []
    for _, members in itertools.groupby(contenders, key=lambda c: c.group):
        group = list(members)
        passes: list[list[dict[str, Any]]] = [[] for _ in group]
        with _workers(group) as workers:
            for number in range(rounds):
                for contender, worker, made in zip(group, workers, passes, strict=True):
                    made.append(_pass(worker))
                    print(
                        f"round {number}: {made[-1]['seconds']:6.2f} s  {contender.name}",
                        file=sys.stderr,
                    )
        for contender, made in zip(group, passes, strict=True):
            found.append(
                {
                    "name": contender.name,
                    "group": contender.group,
                    "peer": contender.peer,
                    "seconds": [p["seconds"] for p in made],
                    "tokens": made[-1]["tokens"],
                    "quality": made[-1]["quality"],
                }
            )
    return found


@contextmanager
def _workers(contenders: Sequence[Contender]) -> Iterator[list[subprocess.Popen[str]]]:
    """A warm process for each contender, started one after another."""
    workers: list[subprocess.Popen[str]] = []
    try:
        for contender in contenders:
            workers.append(_start(contender))
            _read(workers[-1], "ready")
        yield workers
    finally:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait(60)


def _start(contender: Contender) -> subprocess.Popen[str]:
    about = (contender.module, contender.kind, *contender.arguments)
    return subprocess.Popen(
        [sys.executable, "-m", "eval.bench.cpu_worker", *about],
        env={**os.environ, "OMP_NUM_THREADS": str(contender.threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _pass(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    said: dict[str, Any] = json.loads(_read(worker, ""))
    return said


def _read(worker: subprocess.Popen[str], expected: str) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline().strip()
    if not line or (expected and line != expected):
        raise SystemExit(f"{worker.args!r}: ended without an answer, printed {line!r}")
    return line
