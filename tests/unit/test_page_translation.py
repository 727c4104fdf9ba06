"""The report of a translation run, from journal to page: what was generated is called so, speed is
that of output tokens, BLEU has signature and interval, rows left out are told.

page/translation_summary.txt is the recorded summary of `generated_run`, sacrebleu's version apart.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from generated_run import translation_run
from page_samples import HERE, parsed

from ftjob.config import build
from ftjob.results.exports import export
from ftjob.results.folder import RunFolder, read_json_file, write_text
from ftjob.results.page import render_terminal
from ftjob.results.summary import Score, collect, read_samples, verdict
from ftjob.tasks.base import Summary

VERSION = re.compile(r"version:[\d.]+")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("translation") / "run"
    return path, translation_run(path)


def test_summary_is_as_recorded(run: tuple[Path, dict[str, Any]]) -> None:
    text = (run[0] / "summary.txt").read_text("utf-8").replace(str(run[0]), "RUN")
    recorded = (HERE / "translation_summary.txt").read_text("utf-8")
    assert VERSION.sub("version:N", text).splitlines() == recorded.splitlines()


def test_results_hold_the_score_with_interval_and_signature(
    run: tuple[Path, dict[str, Any]],
) -> None:
    results = run[1]
    figures = results["results"]["translation"]
    low, high = results["intervals"]["bleu"]
    assert low < figures["bleu,none"] < high
    assert figures["sample_len"] == results["n-samples"]["translation"]["effective"] == 60
    assert (results["skipped"], results["failed"]["count"], results["code"]) == (2, 0, 0)
    assert results["mode"] == "generate"
    assert results["attempts"][0]["rows"] == 62  # skipped ones are journaled: none is asked again
    assert results["throughput"] == {
        "rows": 60,
        "tokens": 477,
        "input_tokens": 597,
        "seconds": 5.0,
        "rows_per_s": 12.0,
        "tokens_per_s": 95.4,
    }
    skipped = [s for s in read_samples(run[0] / "samples.jsonl") if s["finish_reason"] == "skip"]
    assert len(skipped) == 2
    assert all("tokens, dataset.max_source_tokens is 14" in s["skipped"] for s in skipped)


def test_the_page_states_what_was_measured(run: tuple[Path, dict[str, Any]]) -> None:
    page = (run[0] / "report.html").read_text("utf-8")
    words = parsed(page).words
    text = " ".join(" ".join(words).split())
    for said in (
        "BLEU 84.0 ± 1.7",
        "Standard error 1.7; 95% interval 80.8 to 87.1",
        "Signature: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:",
        "Generated: 60 of 62 rows, 2 left out",
        "2 rows were too long and left out (dataset.too_long=skip)",
        "output tokens per second 95.40",
        "input tokens 597",
        "pipeline bubble 40.0%",
        "chrF against source length",
        "Worst translations",
        "Best translations",
        "Hypotheses",
        "prefill",
        "decode",
    ):
        assert said in text, said
    for wrong in ("Scored", "predicted", "micro-batch", "Idle, predicted"):
        assert wrong not in text, wrong
    # known phases have colours of their own
    assert page.count('class="p8"') >= 3
    assert page.count('class="p9"') >= 3
    markdown = (run[0] / "report.md").read_text("utf-8")
    assert r"tok:13a\|smooth:exp" in markdown
    assert "| 0 | 0 | 60 | 597 | 477 | 159 | 3.00 s | 10 B |" in markdown
    assert "| 0 | 0-0 | 40.0% |\n" in markdown


def test_the_terminal_says_so_too(run: tuple[Path, dict[str, Any]]) -> None:
    text = render_terminal(run[1])
    assert "\nbleu              84.0 +- 1.7 (95%: 80.8 to 87.1)\n" in text
    assert "generated: 60 of 62 rows, 2 left out, 0 failed" in text
    assert "95.40 output tokens/s over 5.00 s" in text
    assert "\npipeline bubble   40.0%\n" in text
    assert "predicted" not in text


def test_the_score_is_of_what_was_merged(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though somebody who looks on by `report` puts what there was before in its place."""
    folder = RunFolder(shutil.copytree(run[0], tmp_path / "run"))
    before = collect(folder)

    def then_replaced(*arguments: Any) -> None:
        export(*arguments)
        write_text(folder.file("samples.jsonl"), "")

    monkeypatch.setattr("ftjob.results.summary.export", then_replaced)
    assert collect(folder) == before
    assert before.answered == 60


@pytest.mark.parametrize(("least", "code"), [(83.9, 0), (84.1, 5)])
def test_expectations_are_in_units_of_bleu(tmp_path: Path, least: float, code: int) -> None:
    results = translation_run(tmp_path / "run", expect={"bleu": least})
    assert results["code"] == code
    text = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert f"at least {least:.2f}: {'met' if code == 0 else 'missed'}" in text


def test_without_references_the_run_is_valid_and_has_no_score(tmp_path: Path) -> None:
    results = translation_run(tmp_path / "run", target_column=None)
    assert results["headline"] == []
    assert set(results["metrics"]) == {"eos_rate", "output_tokens"}
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "This task has no headline score." in page
    assert "Result valid." in page
    assert "bleu" not in (tmp_path / "run" / "summary.txt").read_text("utf-8")


def test_a_run_that_left_every_row_out_is_no_success(tmp_path: Path) -> None:
    """It says what to change; also where failures are allowed, and before what was expected."""
    results = translation_run(tmp_path / "run", max_source_tokens=1, expect={"bleu": 10.0})
    assert results["code"] == read_json_file(tmp_path / "run" / "status.json")["code"] == 3
    assert re.fullmatch(
        r"no row was answered: 62 rows left out as too long \(dataset.too_long=skip\). The first "
        r"one, line 1: the source has \d+ tokens, dataset.max_source_tokens is 1: raise it, or cut "
        r"rows off with dataset.too_long=truncate, in another run.dir",
        results["cause"],
    )
    assert "result INVALID" in render_terminal(results)
    text = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert "**No row answered with exit code 3. Result invalid.**" in text


@pytest.mark.parametrize(
    ("answered", "failed", "code", "says"),
    [
        (0, 0, 3, "line 7: 64 new ones leave 64 of 128 positions: lower decode.max_new_tokens, or"),
        (0, 1, 3, "2 rows left out"),
        (0, 2, 4, "2 rows failed, run.max_failed is 1"),
        (1, 1, 0, ""),
    ],
)
def test_what_ends_a_run_that_left_rows_out(
    answered: int, failed: int, code: int, says: str
) -> None:
    config = build({"model": {"checkpoint": "PATH"}, "run": {"max_failed": 1}})
    first = "line 7: 64 new ones leave 64 of 128 positions"
    found, cause = verdict(config, Score(Summary(), answered, 2, failed, [], first, {}))
    assert found == code
    assert says in (cause or "")
