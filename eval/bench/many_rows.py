"""`python -m eval.bench.many_rows`: what millions of rows cost in memory, and in time to resume.

Short prompts of token ids through a tiny random model, a token each: a whole run of few rows, a run
of many that is killed near its end, and its resume, with the run folder's indexes and without.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.record import REPORTS, provenance, write_raw
from eval.render import render

FEW, MANY = 20_000, 2_000_000
KILLED_AT = 0.95
MODEL = (
    *("model=gpt2", "model.checkpoint=random", "model.tokenizer=none", "model.arch.layers=1"),
    *("model.arch.heads=1", "model.arch.hidden=8", "model.arch.vocab=64"),
    *("model.arch.positions=32", "dataset=prompts", "decode.max_new_tokens=1"),
    *("batch.max_tokens=8192", "batch.lanes=2048"),
)
TEXT = [
    "Rows of an id and three token ids each, one new token, a random GPT-2 of one layer, one "
    "process of one CPU device with a thread. The peak is the process's VmHWM at its end or kill, "
    "report and all. The run of many rows is ended by SIGKILL once 95 % of the rows are answered. "
    "Seconds to the first new row run from the start of the command to the first new answer on "
    "disk. Without indexes every line of the journal and every row of the data set is read.",
    "",
    "The bounds: at most 300 MB more for the many rows than for the few, at most 10 s to the first "
    "new row, at most 64 bytes of index a row.",
]


@dataclass(frozen=True)
class Made:
    """A process that ended: how long it ran, its peak memory, and when the condition held."""

    seconds: float
    peak_bytes: int
    held_s: float | None


def main() -> int:
    """Measure, write raw JSON and report."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.many_rows", description=__doc__)
    parser.add_argument("--rows", type=int, default=MANY)
    parser.add_argument("--work", type=Path, help="a folder with 3 GB to spare")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        cases, index = measure(Path(folder), arguments.rows)
    write_raw(
        "many_rows",
        {
            "kind": "rows",
            "title": "Memory and resume of millions of rows",
            "text": TEXT,
            "few": FEW,
            "many": arguments.rows,
            "index_bytes_a_row": index,
            "cases": cases,
            **provenance(f"python -m eval.bench.many_rows --rows {arguments.rows}"),
        },
    )
    (REPORTS / "many_rows.md").write_text(render("many_rows"), encoding="utf-8")
    return 0


def measure(folder: Path, many: int) -> tuple[list[dict[str, Any]], float]:
    """The cases, and the bytes of index a row answered."""
    cases: list[dict[str, Any]] = []

    def told(name: str, made: Made) -> None:
        cases.append({"name": name, **vars(made)})
        print(cases[-1], file=sys.stderr)

    for count in (FEW, many):
        write_rows(folder / f"{count}.jsonl", count)
    told(f"{FEW} rows, whole", run(folder, FEW, "few"))
    journal = folder / "many" / "journal"
    first, enough = Lines(journal / "rank0000.attempt0.jsonl"), KILLED_AT * many
    told(f"{many} rows, killed", run(folder, many, "many", lambda: first.count() > enough, True))
    index = sum(f.stat().st_size for f in journal.glob("*.index")) / (first.count() - 1)
    shutil.copytree(folder / "many", folder / "bare")
    for file in (folder / "bare" / "journal").glob("*.index"):
        file.unlink()

    def answered(run_dir: str) -> Callable[[], bool]:
        second = Lines(folder / run_dir / "journal" / "rank0000.attempt1.jsonl")
        return lambda: second.count() > 1

    told("resume", run(folder, many, "many", answered("many")))
    told("resume without indexes, killed", run(folder, many, "bare", answered("bare"), True))
    return cases, index


def write_rows(path: Path, count: int) -> None:
    """So many prompts of three token ids, no two alike up to 216,000."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            ids = f"[{i % 60}, {i // 60 % 60}, {i // 3600 % 60}]"
            file.write(f'{{"id": "r{i}", "prompt_ids": {ids}}}\n')


def run(
    folder: Path,
    count: int,
    run_dir: str,
    condition: Callable[[], bool] = lambda: False,
    kill: bool = False,
) -> Made:
    """A job over the file of `count` rows; killed once the condition holds, where asked."""
    data = (f"dataset.path={folder}/{count}.jsonl", f"run.dir={folder}/{run_dir}")
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "ftjob", *MODEL, *data],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    peak, held = 0, None
    while process.poll() is None:
        time.sleep(0.02 if held is None else 0.1)
        peak = max(peak, peak_bytes(process.pid))
        if held is None and condition():
            held = time.monotonic() - start
            if kill:
                process.send_signal(signal.SIGKILL)
    if process.returncode != (-signal.SIGKILL if kill else 0):
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    return Made(time.monotonic() - start, peak, held)


def peak_bytes(pid: int) -> int:
    """VmHWM of a process; 0 once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return 1024 * int(found[0]) if found else 0


class Lines:
    """Counts the lines of a growing file, each byte once."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._lines = path, 0, 0

    def count(self) -> int:
        """The lines so far."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                while part := file.read(1 << 20):
                    self._at += len(part)
                    self._lines += part.count(b"\n")
        return self._lines


if __name__ == "__main__":
    sys.exit(main())
