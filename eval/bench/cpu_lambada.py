"""`python -m eval.bench.cpu_lambada`: LAMBADA scoring on two CPU cores beside the peers.

Every contender waits in its own process with its model warm; they pass over the same rows in
turn, round by round, so that a ratio compares neighbours in time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.metadata import version
from typing import Any

from eval.bench.contenders import ROWS, tokens
from eval.record import REPORTS, provenance, write_raw
from eval.render import render

# name, kind, size, OMP threads
CONTENDERS = (
    ("ftjob, two devices of one thread (cluster.devices_per_node=2)", "ftjob", "t1p1d2", 1),
    ("ftjob, one device of two threads (the default)", "ftjob", "t1p1d1", 2),
    ("CTranslate2 forward_batch, batch 32", "ctranslate2_forward", "32", 2),
    ("CTranslate2 forward_batch, batch 64", "ctranslate2_forward", "64", 2),
    ("CTranslate2 forward_batch, batch 128", "ctranslate2_forward", "128", 2),
    ("CTranslate2 score_batch, two workers, batch 8", "ctranslate2_score", "8", 1),
    ("CTranslate2 score_batch, two workers, batch 32", "ctranslate2_score", "32", 1),
    ("transformers, batch 32", "transformers", "32", 2),
)
TEXT = [
    "Teacher-forced scoring of the first 512 LAMBADA rows with the demo GPT in float32, from token "
    "ids to the decision, without loading. Tokens are real tokens. CTranslate2 is timed without "
    "copying its logits out, so its rows are not judged.",
]


def main() -> int:
    """Run the rounds, write raw JSON and report."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.cpu_lambada", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    workers = [_start(kind, size, threads) for _, kind, size, threads in CONTENDERS]
    seconds: list[list[float]] = [[] for _ in CONTENDERS]
    right = [-1] * len(CONTENDERS)
    for number in range(rounds):
        for i, worker in enumerate(workers):
            spent, found = _pass(worker)
            seconds[i].append(spent)
            right[i] = found
            print(f"round {number}: {spent:6.2f} s  {CONTENDERS[i][0]}", file=sys.stderr)
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait(60)
    rows: list[dict[str, Any]] = [
        {"name": name, "seconds": spent, "accuracy": None if found < 0 else found / ROWS}
        for (name, *_), spent, found in zip(CONTENDERS, seconds, right, strict=True)
    ]
    write_raw(
        "cpu_lambada",
        {
            "kind": "bench",
            "title": "CPU scoring beside the peers",
            "text": TEXT,
            "unit": "tokens/s",
            "work": tokens(),
            "peers": f"CTranslate2 {version('ctranslate2')}, transformers "
            f"{version('transformers')}",
            "contenders": rows,
            **provenance(f"python -m eval.bench.cpu_lambada --rounds {rounds}"),
        },
    )
    (REPORTS / "cpu_lambada.md").write_text(render("cpu_lambada"), encoding="utf-8")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
