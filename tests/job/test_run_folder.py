"""A finished run leaves the folder that DESIGN.md section 2 lists, and each of its files reads.

The tiny model repeats its last token, so the right rows, and with them the score and its standard
error, are known beforehand.
"""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import yaml
from harness import (
    EVERY_RIGHT,
    ROWS,
    Place,
    ended,
    gpt2_tensors,
    lines,
    load,
    text_of,
    write_gpt2,
)
from safetensors.torch import save_file

Finished = tuple[Path, str, str]
FILES = {
    "config.yaml",
    "overrides.txt",
    "plan.json",
    "environment.json",
    "identity.json",
    "logs/rank0000.log",
    "journal/rank0000.attempt0.jsonl",
    "journal/rank0000.attempt0.index",
    "journal/rows.attempt0.index",
    "status/rank0000.attempt0.json",
    "status.json",
    "samples.jsonl",
    "results.json",
    "report.md",
    "report.html",
    "summary.txt",
}


class Page(HTMLParser):
    """Collects a page's words, and whatever it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data") or (tag == "link" and name == "href"):
                self.fetched.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_files(finished: Finished) -> None:
    run = finished[0] / "run"
    assert {str(f.relative_to(run)) for f in run.rglob("*") if f.is_file()} == FILES


def test_json_and_yaml_parse(finished: Finished, base: tuple[str, ...]) -> None:
    run = finished[0] / "run"
    for file in [f for f in FILES if f.endswith(".json")]:
        assert isinstance(load(run / file), dict), file
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["checkpoint"] == base[1].partition("=")[2]
    assert config["run"] == {**config["run"], "dir": "run", "max_failed": 0, "deadline_s": 60.0}
    stated = (run / "overrides.txt").read_text(encoding="utf-8").splitlines()
    assert stated == [*base, "dataset.expect={acc: 0.33}", "run.dir=run"]
    device = load(run / "plan.json")["plan"]["devices"][0]
    assert (device["first_layer"], device["last_layer"]) == (0, 5)
    assert load(run / "environment.json")["argv"] == stated


def test_samples(finished: Finished) -> None:
    samples = lines(finished[0] / "run" / "samples.jsonl")
    assert [s["index"] for s in samples] == list(range(ROWS))
    for s in samples:
        context, _, word = text_of(s["index"]).rpartition(" ")
        right = s["index"] % EVERY_RIGHT == 0
        assert s["line"] == s["index"] + 1
        assert (s["input"], s["target"]) == (context, f" {word}")
        assert s["output"] == f" {context.split()[-1]}"
        assert len(s["output_ids"]) == s["target_tokens"] == 1
        assert (s["correct"], s["last_token_correct"]) == (right, right)
        assert (s["finish_reason"], s["error"], s["near_ties"]) == ("length", None, [])
        assert s["logprob"] > math.log(0.9) if right else s["logprob"] < math.log(0.1)
        assert s["id"] == s["key"]
        assert re.fullmatch(r"[0-9a-f]{32}", s["key"])
    assert len({s["key"] for s in samples}) == ROWS


def test_results(finished: Finished) -> None:
    run = finished[0] / "run"
    results, samples = load(run / "results.json"), lines(run / "samples.jsonl")
    score, share = results["results"]["lambada"], 1 / EVERY_RIGHT
    assert score["acc,none"] == share
    assert math.isclose(score["acc_stderr,none"], math.sqrt(share * (1 - share) / (ROWS - 1)))
    mean = sum(s["logprob"] for s in samples) / ROWS
    spread = sum((s["logprob"] - mean) ** 2 for s in samples) / ROWS / (ROWS - 1)
    assert math.isclose(score["perplexity,none"], math.exp(-mean))
    assert math.isclose(
        score["perplexity_stderr,none"], math.exp(-mean) * math.sqrt(spread), rel_tol=1e-6
    )
    assert results["n-samples"] == {"lambada": {"original": ROWS, "effective": ROWS}}
    assert results["higher_is_better"]["lambada"] == {
        "acc": True,
        "last_token_acc": True,
        "perplexity": False,
    }
    speed, tokens = results["throughput"], sum(s["tokens"] for s in samples)
    assert (speed["rows"], speed["tokens"]) == (ROWS, tokens)
    assert math.isclose(speed["tokens_per_s"], tokens / speed["seconds"], rel_tol=1e-3)
    phases = {p["name"] for p in results["phases"]}
    assert phases >= {"compose", "prepare", "import", "load", "warm-up", "read", "score"}
    assert all(0 < p["start_s"] <= p["end_s"] for p in results["phases"])
    assert (results["code"], results["cause"]) == (0, None)


def test_statuses(finished: Finished) -> None:
    run = finished[0] / "run"
    status, own = load(run / "status.json"), load(run / "status/rank0000.attempt0.json")
    assert (status["code"], status["cause"], status["attempt"]) == (0, None, 0)
    assert (own["code"], own["rows"], own["failed"], own["rank"]) == (0, ROWS, 0, 0)
    assert status["ranks"] == [own]


def test_report_pages(finished: Finished) -> None:
    run, page = finished[0] / "run", Page()
    page.feed((run / "report.html").read_text(encoding="utf-8"))
    page.close()
    words = " ".join(page.words)
    assert page.tags[0] == "html"
    assert "svg" in page.tags
    assert not [f for f in page.fetched if not f.startswith("data:")]
    assert "script" not in page.tags
    markdown = (run / "report.md").read_text(encoding="utf-8")
    summary = (run / "summary.txt").read_text(encoding="utf-8")
    assert "33.3%" in words
    assert "33.3%" in markdown
    assert "lambada acc : 0.333333" in summary
    for text in (words, markdown, summary):
        assert "python -m ftjob model=gpt2 model.checkpoint=" in text
    assert "Accuracy against context length" in words
    assert "Worst rows" in words


def test_streams(finished: Finished) -> None:
    cwd, out, err = finished
    assert "33.3%" in out
    assert "240 of 240 rows" in out
    assert "run/report.html" in err
    assert "33.3%" not in err
    log = (cwd / "run/logs/rank0000.log").read_text(encoding="utf-8").splitlines()
    assert log
    for line in log:
        assert re.match(r"\d{4}-\d\d-\d\dT\S+ (info|note|warning|error) rank=0 device=", line)


FIXED_CLOCK = """
import datetime
import ftjob.commands.run

class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

ftjob.commands.run.datetime = Clock
"""


def test_jobs_of_one_second_do_not_collide(place: Place, base: tuple[str, ...]) -> None:
    """Whatever the name holds, the folders lie in runs/ and can be typed; `latest` is one."""
    frozen = place.driver("fixed_clock", FIXED_CLOCK)
    name = "run.name='../../a run/$(touch owned)'"
    both = [frozen.start(*base, f"dataset.limit={n}", name) for n in (2, 3)]
    for process in both:
        ended(process).expect(0)
    assert {f.name for f in place.cwd.iterdir() if f.is_dir()} == {"runs"}
    assert not (place.cwd / "owned").exists()
    runs = sorted(f for f in (place.cwd / "runs").iterdir() if not f.is_symlink())
    dated = "2026-01-02_03-04-05_a_run_touch_owned"
    assert [r.name for r in runs] == [dated, f"{dated}.2"]
    assert sorted(len(lines(r / "samples.jsonl")) for r in runs) == [2, 3]
    latest = place.cwd / "runs" / "latest"
    assert latest.is_symlink()
    assert latest.resolve() in [r.resolve() for r in runs]
    place("report", "runs/latest").expect(0)


def test_sharded_checkpoint_gives_the_same(
    place: Place, finished: Finished, base: tuple[str, ...]
) -> None:
    """Two files and an index, under the prefix that newer releases write."""
    folder = write_gpt2(place.cwd / "sharded")
    (folder / "model.safetensors").unlink()
    tensors = {f"transformer.{n}": t for n, t in gpt2_tensors().items()}
    names = sorted(tensors)
    places: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    place(base[0], f"model.checkpoint={folder}", base[2], "run.dir=run").expect(0)
    place("compare", "run", str(finished[0] / "run")).expect(0)
