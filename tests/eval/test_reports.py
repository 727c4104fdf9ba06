"""The committed reports are what their raw figures render to, and the figures hold today.

Renders every report and the README's generated parts again, and scores the first rows of the
LAMBADA suite anew.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from eval import readme
from eval.record import REPORTS, read_raw
from eval.render import render
from eval.run import judge, load_suite

RAW = sorted(f.stem for f in (REPORTS / "raw").glob("*.json"))


@pytest.mark.parametrize("name", RAW)
def test_report_is_rendered_from_its_raw_figures(name: str) -> None:
    """No figure in a report was typed by hand."""
    assert (REPORTS / f"{name}.md").read_text(encoding="utf-8") == render(name)


def test_readme_parts_are_rendered_from_the_code() -> None:
    """The tables of the README are those `python -m eval.readme` makes."""
    text = readme.README.read_text(encoding="utf-8")
    assert text == readme.render(text)


def test_suite_holds() -> None:
    """Every job of the committed suite has figures, and they are as expected."""
    suite, made = load_suite("lambada_demo"), read_raw("lambada_demo")["jobs"]
    assert [sentence for job in suite["jobs"] for sentence in judge(job, made[job["name"]])] == []
    assert made["f32"]["rows"] == 5153
    assert made["f32"]["oracle"]["different"] == 0


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
