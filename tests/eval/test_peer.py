"""ftjob beside transformers with the demo models on the CPU: both make the same ids of the same
rows, at full length; and a campaign of tiny workloads is written as it goes, goes on where it was
interrupted, and is rendered from its raw file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.bench import campaign as campaigns
from eval.bench import h200, hf, passes, peer
from eval.bench.newstest import LENGTHS, Pair, random_ids, read_pairs
from eval.bench.workloads import PEERS, WORKLOADS, Given, Workload
from eval.bench.workloads_page import figures, render_workloads
from ftjob.bench.cells import BASE, Cell, Rows
from ftjob.bench.devices import LocalDevices
from ftjob.commands.bench import planned
from ftjob.config.compose import compose
from ftjob.errors import ConfigError
from ftjob.job import Job
from ftjob.tasks.base import Generated, GenerateRequest
from ftjob.telemetry import Phases

SMALL = ("bench.batch=3", "bench.input_len=9", "bench.output_len=6")
CPU = torch.device("cpu")


def job_of(*overrides: str) -> tuple[Job, Cell]:
    ((job, cell),) = planned(compose([*BASE, *SMALL, *overrides]))
    return job, cell


@pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])
@pytest.mark.parametrize(
    "overrides", [["model=demo_gpt"], ["model=demo_t5"], ["model=demo_t5", "decode=beam4"]], ids=str
)
def test_both_make_the_same_ids(overrides: list[str], static: bool) -> None:
    """Without an end token, at full length: what is timed is the same search over the same rows."""
    job, cell = job_of(*overrides)
    ((chunk,),) = Rows(job, cell).chunks(6)
    requests = [r for r in chunk.requests if isinstance(r, GenerateRequest)]
    found: dict[str, list[int]] = {}
    with LocalDevices(job, Phases()) as devices:
        devices.give(0, chunk)
        for done in devices.finished():
            for request, answer in zip(done.chunk.requests, done.answers or [], strict=True):
                assert isinstance(answer, Generated)
                found[request.key] = answer.hypotheses[0].ids
    model = hf.build_model(job, CPU, torch.float32)
    made = hf.generate(model, requests, job.config.decode, static)
    assert made == [found[request.key] for request in requests]
    assert {len(ids) for ids in made} == {6}


def test_random_weights_have_the_shape_of_the_job() -> None:
    for name in ("gpt124m", "t5_small", "flan_t5_small"):
        job, _ = job_of(f"model={name}", "model.checkpoint=random")
        model = hf.build_model(job, torch.device("meta"), torch.bfloat16)
        arch = job.source.arch
        tied = 0 if arch.tied_head else arch.vocab * arch.hidden  # transformers 5 ties every T5's
        made = sum(p.numel() for p in model.parameters())
        assert made == job.source.parameters - tied, name
        assert model.dtype == torch.bfloat16
        assert model.generation_config.eos_token_id is None


def test_peers_are_timed_in_turn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "peer.json"
    arguments = ["--rounds", "2", "model=demo_gpt", *SMALL, f"bench.out={out}"]
    assert peer.main(arguments) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(written)
    (cell,) = written["cells"]
    assert [c["name"] for c in cell["contenders"]] == ["ftjob", *PEERS.values()]
    for one in cell["contenders"]:
        assert len(one["seconds"]) == len(one["short_seconds"]) == 2
        assert one["first_s"] > 0
        assert one["step_s"] < min(one["seconds"])
    assert "load" in cell["phases"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[1:]] == ["ftjob", "transformers", "transformers,"]
    assert lines[1].split()[-1] == "1"


def test_scoring_is_compared_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert peer.main(["--rounds", "1", "bench.task=score", "model=demo_gpt", *SMALL]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_peer_that_fails_is_told_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true = hf.generate

    def broken(model: Any, rows: Any, decode: Any, static: bool) -> list[list[int]]:
        if static:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 1 GiB")
        return true(model, rows, decode, static)

    monkeypatch.setattr(hf, "generate", broken)
    assert peer.main(["--rounds", "1", "model=demo_gpt", *SMALL]) == 0
    *_, eager, static = capsys.readouterr().out.splitlines()
    assert static.endswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB")
    assert "-" not in eager.split()[4:7]


REFUSED = {
    "a data set": (["dataset=lambada"], "makes its own rows"),
    "several devices": (["cluster.devices_per_node=2"], "one device"),
    "another search": (["decode.repetition_penalty=1.2"], "repetition_penalty=1.2: is not handed"),
}


@pytest.mark.parametrize(("overrides", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert peer.main(["model=demo_gpt", *SMALL, *overrides]) == 2
    assert words in capsys.readouterr().err


def test_lengths_of_newstest() -> None:
    pairs = read_pairs()
    assert len(pairs) == 3004
    assert pairs[0] == Pair(15 + 5, 14 + 1)
    assert sum(p.target for p in pairs) == 83752 + 3004
    ids = random_ids(pairs[:5], 50)
    assert [len(row) for row in ids] == [p.source for p in pairs[:5]]
    assert all(3 <= i < 50 for row in ids for i in row)


def test_lengths_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("3 4\n5\n", encoding="ascii")
    with pytest.raises(ValueError, match=r"lengths\.txt:2: '5' is not two numbers"):
        read_pairs(file)


def test_each_row_of_a_translation_has_its_own_length() -> None:
    pairs = [Pair(9, 4), Pair(7, 6), Pair(12, 1)]
    job = passes.translation_job(["model=demo_t5"], pairs)
    assert job.source.specials.ends == ()
    ids = random_ids(pairs, 8000)
    model = hf.build_model(job, CPU, torch.float32)
    together = hf.translate(model, pairs, ids, 2)
    assert [len(row) for row in together] == [4, 6, 1]
    alone = [hf.translate(model, [p], [i], 1)[0] for p, i in zip(pairs, ids, strict=True)]
    assert together == alone


def test_known_workloads_fit_their_models() -> None:
    """Every override is a key, every size is planned, and names are told apart."""
    assert len({w.name for w in WORKLOADS}) == len({w.title for w in WORKLOADS}) == len(WORKLOADS)
    for workload in WORKLOADS:
        assert set(workload.peers) <= set(PEERS)
        if workload.kind == "size":
            extra = ["cluster.device=cpu", "cluster.memory_gb=80"]
            ((_, cell),) = planned(compose([*BASE, *workload.overrides, *extra]))
            assert cell.short
    assert len(read_pairs(LENGTHS)) == 3004


GIVEN = Given("1389 (268)", 223, 24, 1e9)
DEMO_T5 = "model=demo_t5"
TINY = (
    Workload("gpt", "GPT, 3 rows", "size", ("model=demo_gpt", *SMALL), GIVEN, tuple(PEERS)),
    Workload("rows", "LAMBADA", "lambada", ("model=demo_gpt", "dataset.limit=30"), GIVEN),
    Workload("pairs", "newstest2017", "newstest", (DEMO_T5,), replace(GIVEN, ft=None), batch=4),
    Workload("step", "a step", "size", (DEMO_T5, *SMALL), Given("-", 4.8, 3, 0), (), "step"),
)


@pytest.fixture
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "read_pairs", lambda: read_pairs()[:6])


@pytest.fixture
def campaign(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few_pairs: None
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs a campaign of tiny workloads with a raw file of its own."""
    monkeypatch.setattr(campaigns, "REPORTS", tmp_path / "none")
    raw = tmp_path / "h200.json"

    def run(*arguments: str, workloads: Sequence[Workload] = TINY) -> tuple[int, dict[str, Any]]:
        given = ["--rounds", "2", "--peer-rounds", "1", "--compiled", "--raw", str(raw)]
        given += arguments
        code = h200.main(given, workloads)
        return code, json.loads(raw.read_text(encoding="utf-8"))

    return run


def test_campaign(
    campaign: Callable[..., tuple[int, dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, raw = campaign()
    assert code == 0
    made = raw["workloads"]
    assert list(made) == ["gpt", "rows", "pairs", "step"]
    for name, entry in made.items():
        ours, *others = entry["contenders"]
        assert len(ours["seconds"]) == 2, name
        assert [len(o["seconds"]) for o in others] == [1] * len(others), name
        assert [o["error"] for o in others] == [None] * len(others), name
        assert "load" in entry["phases"], name
        assert {"commit", "date", "command", "packages", "ceilings", "device"} <= set(entry), name
    assert made["pairs"]["tokens"] == sum(p.target for p in read_pairs()[:6])
    assert figures(made["step"], "ftjob") == [
        pytest.approx((whole - short) / 5)
        for whole, short in zip(*[made["step"]["contenders"][0][k] for k in
                                  ("seconds", "short_seconds")], strict=True)
    ]  # fmt: skip
    assert str(tmp_path) not in json.dumps(raw)
    report = (tmp_path / "h200.md").read_text(encoding="utf-8")
    assert report == render_workloads("h200", raw)
    rows = [line for line in report.splitlines() if line.startswith("| GPT, 3 rows |")]
    assert len(rows) == 3
    assert rows[0].endswith("| 1e+09 | yes |")
    assert "| 223 |" in rows[0]
    assert next(x for x in report.splitlines() if x.startswith("| a step")).endswith("| NO |")

    capsys.readouterr()
    again, kept = campaign()
    assert (again, kept) == (0, raw)
    assert "gpt" not in capsys.readouterr().err


def test_campaign_goes_on(
    campaign: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workload that fails does not keep the others, and is tried again after them."""
    wrong = Workload("bad", "no such", "size", (*SMALL, "bench.input_len=600"), GIVEN)
    few = (replace(wrong, peers=()), replace(TINY[3], peers=()))
    code, raw = campaign(workloads=few)
    assert code == 1
    assert "512 positions" in raw["workloads"]["bad"]["error"]
    assert "contenders" in raw["workloads"]["step"]
    assert "no such: FAILED" in render_workloads("h200", raw)
    about = {k: raw["workloads"]["step"][k] for k in ("commit", "device")}
    missing = replace(TINY[0], name="missing")
    made = raw["workloads"]
    for todo, names in (
        (campaigns.to_run([*few, missing], made, None, about), ["missing", "bad"]),
        (campaigns.to_run(few, made, None, about | {"commit": "another"}), ["bad", "step"]),
        (campaigns.to_run(few, made, None, about, h200.has_rounds(1)), ["step", "bad"]),
        (campaigns.to_run(few, made, ["step"], about), ["step"]),
    ):
        assert [w.name for w in todo] == names


def test_campaign_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--only", "gpt345"], "gpt345m_b1"),
        (["--rounds", "0"], "at least 1"),
        (["--raw", "/nowhere/x.json"], "/nowhere is no folder"),
    ):
        with pytest.raises(SystemExit) as left:
            h200.main(arguments)
        assert left.value.code == 2
        assert words in capsys.readouterr().err


def test_refusals_of_compare_come_before_any_model() -> None:
    job, cell = job_of("model=demo_gpt", "cluster.devices_per_node=2")
    with pytest.raises(ConfigError, match="one device"):
        peer.compare(job, cell, ["eager"], 1, 1)
