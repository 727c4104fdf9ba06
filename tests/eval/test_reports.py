"""The committed reports are what their raw figures render to, and the figures hold today.

Renders every report and the README's generated parts again, and scores the first rows of the
LAMBADA suite anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from eval import readme
from eval.record import REPORTS, read_raw
from eval.render import render
from eval.run import judge, load_suite, recorded

RAW = sorted(f.stem for f in (REPORTS / "raw").glob("*.json"))


@pytest.mark.parametrize("name", RAW)
def test_report_is_rendered_from_its_raw_figures(name: str) -> None:
    """No figure in a report was typed by hand."""
    assert (REPORTS / f"{name}.md").read_text(encoding="utf-8") == render(name)


def test_readme_parts_are_rendered_from_the_code() -> None:
    """The tables of the README are those `python -m eval.readme` makes."""
    text = readme.README.read_text(encoding="utf-8")
    assert text == readme.render(text)


def test_readmes_times_of_a_gpu_are_those_of_its_report() -> None:
    """Of a run where the report has runs, of a step where it has steps."""
    report = (REPORTS / "h200.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in readme.gpus().splitlines()[2:]]
    assert len(rows) == len(read_raw("h200")["workloads"])
    for title, *times in rows:
        first = next(line for line in report if line.startswith(title)).split(" | ")
        assert times[:2] == [cell.partition(" ")[0] for cell in first[1:3]]


@pytest.mark.parametrize(
    ("name", "rows", "compared"),
    [
        ("lambada_demo", 5153, ["f32"]),
        ("multi30k_demo", 1000, ["greedy", "beam4"]),
        ("options_demo", 45, ["gpt"]),
        ("options_demo", 42, ["t5"]),
        ("options_demo", 16, ["beams"]),
    ],
)
def test_suite_holds(name: str, rows: int, compared: list[str]) -> None:
    """Every job of the committed suite has figures, and they are as expected."""
    suite, made = load_suite(name), read_raw(name)["jobs"]
    assert [sentence for job in suite["jobs"] for sentence in judge(job, made[job["name"]])] == []
    for job in compared:
        assert made[job]["rows"] == made[job]["oracle"]["rows"] == rows
        assert made[job]["oracle"]["different"] == 0


def test_raw_figures_hold_neither_texts_nor_paths() -> None:
    """Multi30k is not ours to ship, and a reader has other folders."""
    for job in read_raw("multi30k_demo")["jobs"].values():
        assert "/" not in job["command"]
        assert [len(d["sha256"]) for d in job["data"]] == [64, 64]
        for row in job["first_rows"]:
            assert not {"input", "target", "output"} & row.keys()
            assert row["output_ids"]


def test_overrides_are_recorded_without_folders(tmp_path: Path) -> None:
    file = tmp_path / "rows.en"
    file.write_bytes(b"A man.\n")
    told, data = recorded(["dataset=multi30k_en_de", f"dataset.path={file}"])
    assert told == ["dataset=multi30k_en_de", "dataset.path=rows.en"]
    assert data == [{"name": "rows.en", "sha256": hashlib.sha256(b"A man.\n").hexdigest()}]


def test_first_rows_anew(tmp_path: Path) -> None:
    """The first 20 rows give the committed answers again."""
    rows = read_raw("lambada_demo")["jobs"]["f32"]["first_rows"]
    folder = tmp_path / "run"
    subprocess.run(
        [sys.executable, "-m", "ftjob", f"dataset.limit={len(rows)}", f"run.dir={folder}"],
        check=True,
        cwd=tmp_path,
        timeout=100,
    )
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == len(rows) == 20
    for before, now in zip(rows, samples, strict=True):
        assert {k: now[k] for k in before if k != "logprob"} == {
            k: v for k, v in before.items() if k != "logprob"
        }
        assert math.isclose(now["logprob"], before["logprob"], abs_tol=1e-4)
