"""The report of a pipelined run: the bubble measured beside predicted, and drawn by stage."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from page_samples import CONFIG, MACHINE, RESULTS, bars, parsed

from ftjob.results.page import render_html, render_markdown, render_summary, render_terminal


@pytest.fixture
def finished() -> dict[str, Any]:
    return copy.deepcopy(RESULTS)


def pipelined(results: dict[str, Any]) -> dict[str, Any]:
    """Two stages that each waited for the other: 3.2 to 9 and 10 to 14, 5 to 15.3."""
    device = RESULTS["devices"][0]
    score = RESULTS["phases"][2]
    results["devices"] = [{**device, "device": i, "stage": i, "busy_s": 10.0} for i in (0, 1)]
    times = [(0, 3.2, 9.0), (0, 10.0, 14.0), (1, 5.0, 15.3)]
    results["phases"][1]["stage"] = 0
    results["phases"][2:] = [
        {**score, "device": i, "stage": i, "start_s": a, "end_s": b} for i, a, b in times
    ]
    results["pipeline"] = {
        "stages": 2,
        "micro_batches": [12],
        "bubble": 0.1736,
        "predicted": 0.1234,
        "each": [
            {"stage": 0, "layers": [0, 3], "bubble": 0.15, "predicted": 0.08},
            {"stage": 1, "layers": [4, 7], "bubble": 0.1972, "predicted": 0.1668},
        ],
    }
    return results


def test_a_bubble_is_stated_measured_beside_predicted(finished: dict[str, Any]) -> None:
    results = pipelined(finished)
    page = render_html(results, CONFIG, MACHINE)
    parsed(page)
    assert "<dt>pipeline bubble, 12.3% predicted</dt><dd>17.4%</dd>" in page
    assert "12 micro-batches. Idle is the share of time" in page
    markdown = render_markdown(results, MACHINE)
    for row in (
        "| pipeline bubble, 12.3% predicted | 17.4% |",
        "| 0 | 0-3 | 15.0% | 8.0% |",
        "| 1 | 4-7 | 19.7% | 16.7% |",
        "| all | – | 17.4% | 12.3% |",
    ):
        assert row in markdown
    terminal = render_terminal(results)
    assert "\npipeline bubble   17.4%, 12.3% predicted for 12 micro-batches\n" in terminal
    summary = render_summary(results)
    lines = ["stages : 2", "micro-batches : 12", "bubble : 0.1736", "bubble predicted : 0.1234"]
    assert all(f"\npipeline {line}\n" in summary for line in lines)
    for text in (render_html(copy.deepcopy(RESULTS), CONFIG, MACHINE), render_summary(RESULTS)):
        assert "bubble" not in text


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([1], "1 micro-batch"),
        ([1200], "1,200 micro-batches"),
        ([8, 8], "8 micro-batches a replica"),
        ([9, 1], "1 to 9 micro-batches a replica"),
    ],
    ids=str,
)
def test_micro_batches_are_counted_a_replica(
    finished: dict[str, Any], counts: list[int], text: str
) -> None:
    results = pipelined(finished)
    results["pipeline"]["micro_batches"] = counts
    assert f"predicted for {text}\n" in render_terminal(results)


def test_a_bubble_is_drawn_as_gaps_in_the_stages_lanes(finished: dict[str, Any]) -> None:
    page = render_html(pipelined(finished), CONFIG, MACHINE)
    assert ">device 0 (stage 0)</text>" in page
    assert ">device 1 (stage 1)</text>" in page
    scored = [bar for bar in bars(page) if bar[2].startswith("score")]
    assert [said.split(":")[0] for _, _, said in scored] == [
        "score, rank 0 device 0 (stage 0)",
        "score, rank 0 device 0 (stage 0)",
        "score, rank 0 device 1 (stage 1)",
    ]
    ends = [end for left, right, _ in scored for end in (left, right)]
    expected = [100 * s / 15.3 for s in (3.2, 9.0, 10.0, 14.0, 5.0, 15.3)]
    assert ends == pytest.approx(expected, abs=0.02)
    assert "(stage" not in render_html(copy.deepcopy(RESULTS), CONFIG, MACHINE)
