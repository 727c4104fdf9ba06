"""The campaign of two GPUs, with tiny pairs on the CPU's devices: every kind is timed on both
sides, a side that fails keeps no other from running, and the report is rendered from the raw file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.bench import campaign as campaigns
from eval.bench import h200_x2
from eval.bench.sides_page import over, render_sides
from eval.bench.workloads_page import figures
from eval.bench.workloads_x2 import (
    DATA,
    DATA_RANKS,
    ONE,
    PAIRS,
    PIPELINE,
    TENSOR,
    TENSOR_RANKS,
    Pair,
    Side,
)
from ftjob.bench.cells import BASE
from ftjob.commands.bench import planned
from ftjob.config.compose import compose

pytestmark = pytest.mark.timeout(120)
CPU = "cluster.device=cpu"
SMALL = ("bench.batch=2", "bench.input_len=9", "bench.output_len=6")
DEMO = (CPU, "model=demo_gpt")
SPLIT = Side("tensor 2", TENSOR, over=1e-9)
TINY = (
    Pair(
        "step",
        "a step",
        "size",
        (*DEMO, *SMALL),
        (Side("one GPU", ONE, ft=4.8, reach=1e9), replace(SPLIT, ft=3.8)),
        figure="step",
    ),
    Pair(
        "rows",
        "LAMBADA",
        "lambada",
        (*DEMO, "dataset=lambada", "dataset.limit=8"),
        (Side("one GPU", ONE), Side("data 2", DATA, over=1e9)),
        times=2,
    ),
    Pair(
        "set",
        "a set",
        "set",
        (*DEMO, "batch.lanes=4"),
        (Side("one GPU", ONE), Side("pipeline 2", PIPELINE)),
        rows=10,
        given=7,
        new=5,
    ),
    Pair(
        "launches",
        "rows one by one",
        "launched rows",
        DEMO,
        (Side("threads", TENSOR), Side("ranks", TENSOR_RANKS, ranks=2)),
        figure="row",
        given=8,
        new=4,
    ),
)
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a campaign with a raw file of its own."""
    monkeypatch.setattr(campaigns, "REPORTS", tmp_path / "none")
    raw = tmp_path / "h200-x2.json"

    def run(pairs: Sequence[Pair], *arguments: str) -> tuple[int, dict[str, Any]]:
        code = h200_x2.main(["--rounds", "2", "--raw", str(raw), *arguments], pairs)
        return code, json.loads(raw.read_text(encoding="utf-8"))

    return run


def test_campaign(campaign: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = TINY[:3]
    code, raw = campaign(pairs)
    assert code == 0, capsys.readouterr().err
    made = raw["workloads"]
    assert list(made) == ["step", "rows", "set"]
    for pair in pairs:
        entry = made[pair.name]
        assert [side["name"] for side in entry["contenders"]] == [s.name for s in pair.sides]
        for side in entry["contenders"]:
            assert side["error"] is None
            assert len(side["seconds"]) == 2
            assert min(side["seconds"]) > 0
            assert "load" in side["phases"]
            assert len(figures(entry, side["name"])) == 2
    assert made["step"]["steps"] == 5
    assert {side["tokens"] for side in made["set"]["contenders"]} == {50}
    assert str(tmp_path) not in json.dumps(raw)
    report = (tmp_path / "h200-x2.md").read_text(encoding="utf-8")
    assert report == render_sides("h200-x2", raw)
    lines = [line.split(" | ") for line in report.splitlines() if line.startswith("| a step |")]
    assert [line[5:8] for line in lines[:2]] == [
        ["1e+09 ms", "yes", "4.8"],
        ["1e-09 times as fast", "yes", "3.8"],
    ]
    (data,) = [line for line in report.splitlines() if "| data 2 |" in line]
    assert "| 1e+09 times as fast | NO |" in data

    again, kept = campaign(pairs)
    assert (again, kept) == (0, raw)


def test_launches(campaign: Run) -> None:
    """Whole runs, as threads and as ranks: a time for each row that counts."""
    code, raw = campaign(TINY[3:])
    assert code == 0, raw["workloads"]["launches"]
    for side in raw["workloads"]["launches"]["contenders"]:
        assert len(side["seconds"]) == 2
        assert sum(side["seconds"]) > 0
        assert side["tokens"] == 4
        assert set(side["phases"]) == {"load", "warm-up"}


def test_a_side_that_fails(campaign: Run) -> None:
    """Its error is told, the other side has its times, and the pair is tried again at last."""
    wrong = Side("wrong", (*TENSOR, "bench.input_len=600"))
    few = (replace(TINY[0], sides=(TINY[0].sides[0], wrong)), replace(TINY[2], rows=3))
    code, raw = campaign(few)
    assert code == 1
    fine, failed = raw["workloads"]["step"]["contenders"]
    assert len(fine["seconds"]) == 2
    assert "512 positions" in failed["error"]
    assert "error" not in raw["workloads"]["set"]
    report = render_sides("h200-x2", raw)
    assert "| a step | step | wrong | failed |" in report
    assert "a step: FAILED, wrong: ConfigError" in report
    about = {k: raw["workloads"]["set"][k] for k in ("commit", "device")}
    missing = replace(TINY[1], name="missing")
    todo = campaigns.to_run([*few, missing], raw["workloads"], None, about)
    assert [pair.name for pair in todo] == ["missing", "step"]


def test_a_launch_that_fails(campaign: Run) -> None:
    """The command's last words are kept."""
    wrong = Side("ranks", (*DATA_RANKS, "parallel.data=3"), ranks=2)
    code, raw = campaign([replace(TINY[3], sides=(wrong,))])
    assert code == 1
    assert "exit 2" in raw["workloads"]["launches"]["error"]
    assert "parallel.data=3" in raw["workloads"]["launches"]["error"]


def test_known_pairs_fit_their_models() -> None:
    """Every override is a key, every size is planned, and names are told apart."""
    assert len({p.name for p in PAIRS}) == len({p.title for p in PAIRS}) == len(PAIRS)
    for pair in PAIRS:
        assert len({side.name for side in pair.sides}) == len(pair.sides) >= 2
        for side in pair.sides:
            more = (CPU, "cluster.memory_gb=80")
            overrides = [*pair.overrides, *side.overrides, *more]
            if pair.kind == "size":
                ((job, cell),) = planned(compose([*BASE, *overrides]))
                assert cell.short
                assert job.plan.data == 1
            else:
                compose([*BASE, *overrides])


def test_ratio_is_of_rounds_that_both_have() -> None:
    assert over([4.0, 6.0, 9.0], [2.0, 2.0]) == 2.5
    assert over([], [1.0]) is None
