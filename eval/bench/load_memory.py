"""`python -m eval.bench.load_memory`: what loading takes of host memory, and what it reads.

Each case loads in a process of its own (`load_worker`), whose anonymous memory is looked at from
outside every two milliseconds; the kernel counts the bytes that its reads gave it.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.record import REPORTS, provenance, write_raw
from eval.render import render

EVERY_S = 0.002
MODEL = ("model=gpt345m", "model.tokenizer=builtin:gpt2")
# name, rank and nodes, overrides; f32 if not said otherwise
CASES: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("one device", 0, 1, ()),
    ("T=2, both devices", 0, 1, ("parallel.tensor=2",)),
    ("P=2, both stages", 0, 1, ("parallel.pipeline=2",)),
    ("P=4, all four stages", 0, 1, ("parallel.pipeline=4",)),
    ("T=2, one device of the two", 1, 2, ("parallel.tensor=2",)),
    ("P=4, the first stage alone", 0, 4, ("parallel.pipeline=4",)),
    ("P=4, the second stage alone", 1, 4, ("parallel.pipeline=4",)),
    ("P=4, the last stage alone", 3, 4, ("parallel.pipeline=4",)),
    ("one device, bf16", 0, 1, ("model.dtype=bf16",)),
    ("one device, int8", 0, 1, ("model.weights=int8",)),
)
# The random model's copy in the other formats, of which the cases that hold all of it are loaded:
# name -> overrides of convert
FORMATS: Mapping[str, tuple[str, ...]] = {
    "FasterTransformer, 4-gpu": ("convert.to=fastertransformer", "convert.tensor=4"),
    "Megatron-LM, 2 x 2": ("convert.to=megatron", "convert.tensor=2", "convert.pipeline=2"),
}
WHOLE = CASES[:4]
TEXT = [
    "The device threads of one node load gpt345m in float32 (or as said) on the CPU: random, and "
    "from a copy of the random model saved in float32, in several formats. The peak is that of "
    "RssAnon, memory that no file backs, sampled every 2 ms; interpreter, torch and tokenizer are "
    "in it. Before is RssAnon when all of these are loaded and no weight is. Weights are the "
    "plan's bytes of the node's devices. Bytes read are those of all read calls of the process "
    "during the load, per byte of the slices that its devices need, each slice counted once.",
    "",
    "The bound is a peak of 1.2 times the weights, all included; where what is there before is "
    "more than a fifth of the weights, it is what the load adds to it that must keep the bound.",
]


def main() -> int:
    """Measure every case, write raw JSON and report."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.load_memory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "hf"
        saved.mkdir()
        save_copy(saved, MODEL)
        kinds = [("random", "random", CASES), ("saved copy", str(saved), CASES)]
        for number, (form, how) in enumerate(FORMATS.items()):
            out = Path(folder) / str(number)
            convert_copy(saved, out, how)
            kinds.append((form, str(out), WHOLE))
        for weights, checkpoint, cases in kinds:
            for name, rank, nodes, overrides in cases:
                given = [*MODEL, f"model.checkpoint={checkpoint}", *overrides]
                made = [measure(rank, nodes, given) for _ in range(rounds)]
                worst = max(made, key=lambda figures: figures["peak_bytes"])
                worst["bytes_read"] = max(figures["bytes_read"] for figures in made)
                worst["seconds"] = min(figures["seconds"] for figures in made)
                rows.append({"name": name, "weights": weights, **worst})
                print(json.dumps(rows[-1]), file=sys.stderr)
    write_raw(
        "load_memory",
        {
            "kind": "load",
            "title": "Host memory and bytes read while loading",
            "text": TEXT,
            "rounds": rounds,
            "cases": rows,
            **provenance(f"python -m eval.bench.load_memory --rounds {rounds}"),
        },
    )
    (REPORTS / "load_memory.md").write_text(render("load_memory"), encoding="utf-8")
    return 0


def save_copy(folder: Path, overrides: Sequence[str]) -> None:
    """Save the random model of `overrides`, in a process of its own: it takes the memory."""
    subprocess.run(
        [sys.executable, "-m", "eval.random_copy", str(folder), *overrides], check=True, timeout=600
    )


def convert_copy(source: Path, out: Path, how: Sequence[str]) -> None:
    """The saved model in another format."""
    command = ("convert", f"model.checkpoint={source}", f"convert.out={out}", *how)
    subprocess.run([sys.executable, "-m", "ftjob", *command], check=True, timeout=600)


def measure(rank: int, nodes: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Load what node `rank` of `nodes` holds, in a fresh process with a compute thread a device.

    Gives the worker's figures, and RssAnon in bytes: before the load, at its peak, and after it.
    """
    worker = subprocess.Popen(
        [sys.executable, "-m", "eval.bench.load_worker", str(rank), str(nodes), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        if worker.stdout.readline() != "ready\n":
            raise RuntimeError(f"{worker.args!r} ended before the load")
        before = peak = anonymous_bytes(worker.pid)
        worker.stdin.write("go\n")
        worker.stdin.flush()
        while not select.select([worker.stdout], [], [], EVERY_S)[0]:
            peak = max(peak, anonymous_bytes(worker.pid))
        line = worker.stdout.readline()
        if not line:
            raise RuntimeError(f"{worker.args!r} ended during the load")
        after = anonymous_bytes(worker.pid)
        figures: dict[str, Any] = json.loads(line)
        return {
            "before_bytes": before,
            "peak_bytes": max(peak, after),
            "after_bytes": after,
            **figures,
        }
    finally:
        worker.stdin.close()
        worker.wait(60)
        worker.stdout.close()


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process; 0 once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return 1024 * int(found[0]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
