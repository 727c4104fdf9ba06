"""What every job of the campaign computes: a tiny random GPT over generated rows, and its command.

The model's sizes do not divide evenly by the splits drawn, and a few rows are malformed, so that
error records are killed and resumed too. Answers of one undisturbed run are the reference.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ftjob
from eval.launch import mpirun

ROWS = 300
MALFORMED = (7, 101, 202)
DEADLINE_S = 10.0
VOCABULARY = ("time", "house", "water", "light", "night", "woman", "child", "voice", "street")
LAUNCHERS = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "HYDRA_", "MPI_")
PACKAGE = Path(ftjob.__file__).resolve().parent


def write_rows(path: Path) -> None:
    """The data set: passages of 8 to 40 words, each with its number, so that all differ."""
    made = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            words = made.choices(VOCABULARY, k=made.randint(8, 40))
            row = {} if number in MALFORMED else {"text": f"{number} {' '.join(words)}"}
            file.write(json.dumps(row) + "\n")


def overrides(rows: Path, folder: Path) -> list[str]:
    """The overrides all jobs share."""
    return [
        "model=gpt2",
        "model.checkpoint=random",
        "model.arch.layers=5",
        "model.arch.heads=4",
        "model.arch.hidden=64",
        "model.arch.vocab=8193",
        "model.arch.positions=128",
        f"model.tokenizer={PACKAGE / 'demo' / 'demo_gpt' / 'tokenizer.json'}",
        f"dataset.path={rows}",
        "dataset.column=text",
        "cluster.device=cpu",
        f"run.dir={folder}",
        f"run.max_failed={len(MALFORMED)}",
        f"run.deadline_s={DEADLINE_S:g}",
    ]


def environment() -> dict[str, str]:
    """The environment of a job: this checkout's ftjob, one thread a device, no outer launcher."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(ranks: int, arguments: Sequence[str]) -> list[str]:
    """A job under mpirun."""
    return [*mpirun(ranks), sys.executable, "-m", "ftjob", *arguments]


def make_reference(work: Path) -> Path:
    """The folder of the undisturbed run, made where it is not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    reference, rows = work / "reference", work / "rows.jsonl"
    if not (reference / "summary.txt").exists():  # the last file of a run
        shutil.rmtree(reference, ignore_errors=True)
        write_rows(rows)
        subprocess.run(
            [sys.executable, "-m", "ftjob", *overrides(rows, reference)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=120,
        )
    return reference
