"""The report of a run: what the page, its Markdown twin and the plain texts say and escape.

page/results.json is a small LAMBADA run as `report` hands it over, page/summary.txt the recorded
text of it; the tests change `finished` into the runs that went otherwise.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ftjob.results.page import (
    formats,
    plots,
    render_html,
    render_markdown,
    render_summary,
    render_terminal,
)

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'
VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
CONFIG = "model:\n  name: demo_gpt\nrun:\n  max_failed: 2\n"
MACHINE = {"python": "3.11.7", "host": "node1", "torch": {"version": "2.13.0", "cuda": None}}
HERE = Path(__file__).parent / "page"
RESULTS: dict[str, Any] = json.loads((HERE / "results.json").read_text("utf-8"))


class Checker(HTMLParser):
    """Fails on an element that is closed twice, never, or in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture
def finished() -> dict[str, Any]:
    return copy.deepcopy(RESULTS)


def died(results: dict[str, Any], code: int, cause: str) -> dict[str, Any]:
    results.update(code=code, cause=cause, results={"lambada": {}}, expect={})
    results["throughput"] = {}
    results["charts"] = results["tables"] = []
    return results


def many_devices(results: dict[str, Any], ranks: int = 4, each: int = 8) -> dict[str, Any]:
    results["devices"] = [
        {**RESULTS["devices"][0], "rank": r, "device": d, "tokens": 1000 * (r + d), "rows": r + d}
        for r in range(ranks)
        for d in range(each)
    ]
    results["phases"] = [
        {**RESULTS["phases"][2], "rank": d["rank"], "device": d["device"], "attempt": a}
        for d in results["devices"]
        for a in (0, 1)
    ]
    return results


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


def bars(page: str) -> list[tuple[float, float, str]]:
    """The time line's bars: left and right end in per cent, and what they say."""
    pattern = r'<svg class="p\d" x="([\d.]+)%".*?width="([\d.]+)%".*?<title>(.*?)</title>'
    found = [(float(x), float(w), said) for x, w, said in re.findall(pattern, page)]
    return [(x, x + w, said) for x, w, said in found]


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


def test_a_time_line_of_many_batches_stays_small(finished: dict[str, Any]) -> None:
    results = many_devices(finished)
    one = results["phases"][0]
    results["phases"] = [
        {**one, "rank": rank, "device": d, "attempt": 0, "start_s": t, "end_s": t + 0.01}
        for rank in range(4)
        for d in range(8)
        for t in (0.02 * i for i in range(1000))
    ]
    found = bars(render_html(results, CONFIG, MACHINE))
    assert len(found) == 32
    assert all(b - a > 99 for a, b, _ in found)


def test_page_is_well_formed(finished: dict[str, Any]) -> None:
    checker = parsed(render_html(finished, CONFIG, MACHINE))
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.tags.count("h1") == checker.tags.count("main") == 1
    assert checker.tags.count("table") == checker.tags.count("caption")
    assert "script" not in checker.tags


def test_page_states_score_error_interval_and_expectation(finished: dict[str, Any]) -> None:
    page = render_html(finished, CONFIG, MACHINE)
    for text in (
        "9.4%",
        "± 1.3%",
        "6.9% to 11.9%",
        "Expected at least 9%",
        "Scored: 500 of 5,153 rows",
    ):
        assert text in page
    assert "Result valid." in page
    assert "1,833" in page
    assert "17,500,000" in page


def test_text_of_the_data_is_escaped(finished: dict[str, Any]) -> None:
    finished.update(cause=EVIL, name=EVIL, notes=[EVIL], command=EVIL)
    finished["tables"][0]["rows"] = [[EVIL] * 5]
    finished["tables"][0]["title"] = finished["metrics"]["acc"]["title"] = EVIL
    finished["failed"]["first"] = [{"line": 1, "id": EVIL, "error": EVIL}]
    finished["phases"][1]["name"] = finished["devices"][0]["name"] = EVIL
    finished["charts"][0].update(title=EVIL, x=EVIL + "$x_$", y=EVIL)
    finished["charts"][0]["points"][0]["label"] = EVIL
    page = render_html(finished, EVIL, {EVIL: EVIL})
    checker = parsed(page)
    assert not {"script", "img"} & set(checker.tags)
    assert EVIL in "".join(checker.words)
    markdown = render_markdown(finished, {EVIL: EVIL})
    markdown = re.sub(r"^```sh.*?^```", "", markdown, flags=re.M | re.S)
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", markdown)


def test_page_loads_nothing_from_the_network(finished: dict[str, Any]) -> None:
    page = render_html(finished, CONFIG, MACHINE)
    assert "http://" not in page
    assert "https://" not in page
    assert re.findall(r"""(?:src|href)=["'](?!#)|url\((?!#)|@import""", page) == []


def test_equal_data_gives_equal_bytes_from_any_thread(finished: dict[str, Any]) -> None:
    pages: list[str] = []
    work = [
        threading.Thread(target=lambda: pages.append(render_html(finished, CONFIG, MACHINE)))
        for _ in range(3)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(pages) == 3
    assert set(pages) == {render_html(copy.deepcopy(RESULTS), CONFIG, MACHINE)}


def test_rendering_leaves_the_results_alone(finished: dict[str, Any]) -> None:
    finished["phases"][2]["end_s"] = None
    before = copy.deepcopy(finished)
    render_html(finished, CONFIG, MACHINE)
    render_terminal(finished)
    assert finished == before


def test_summary_is_as_recorded(finished: dict[str, Any]) -> None:
    assert render_summary(finished) == (HERE / "summary.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"failed": {"count": 3, "max_failed": 2}}, "3 failed rows, 2 allowed"),
        ({"expect": {"acc": {"minimum": 0.1, "value": 0.094, "met": False}}},
         "Strict last word was expected at least 10%, it is 9.40%"),
        ({"code": 124}, "the run is incomplete: deadline passed (exit code 124)"),
        ({"results": {}}, "no headline score was measured"),
    ],
)  # fmt: skip
def test_a_result_that_does_not_count_says_why(
    finished: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    finished.update(change)
    summary = render_summary(finished)
    assert f"\nresult : INVALID\nreason : {reason}\n" in summary
    assert "Result invalid." in render_html(finished, CONFIG, MACHINE)
    assert reason[1:] in render_html(finished, CONFIG, MACHINE)
    assert "INVALID" in render_terminal(finished)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 75, 124, 130, 137, -9, 255])
def test_a_run_that_died_says_so_at_the_top(finished: dict[str, Any], code: int) -> None:
    cause = "rank 0 device 0 row 12 in score: out of memory"
    page = render_html(died(finished, code, cause), CONFIG, MACHINE)
    parsed(page)
    assert f"exit code {code}" in page
    assert page.index(cause) < page.index('<section class="hero">')
    assert "No score was measured." in page
    assert "result : INVALID" in render_summary(finished)
    assert cause in render_terminal(finished).replace("\n" + " " * 18, " ")


def test_every_missing_part_is_left_out(finished: dict[str, Any]) -> None:
    for results in ({}, *({k: v for k, v in finished.items() if k != key} for key in finished)):
        parsed(render_html(results, "", {}))
        assert render_markdown(results, {})
        assert render_summary(results)
        assert render_terminal(results)
    for key in finished:
        parsed(render_html({**finished, key: None}, CONFIG, MACHINE))
        render_terminal({**finished, key: None})
        render_markdown({**finished, key: None}, MACHINE)


def test_a_run_without_an_exit_code_is_not_called_finished() -> None:
    assert "Still running." in render_html({}, "", {})
    assert "\nresult : INVALID\nreason : the run is incomplete: " in render_summary({})
    assert "result INVALID" in render_terminal({})


def test_several_tasks_and_filters_are_told_apart(finished: dict[str, Any]) -> None:
    finished["results"]["cloze"] = {"alias": "cloze", "acc,none": 0.5, "acc,strict": 0.25}
    page = render_html(finished, CONFIG, MACHINE)
    for text in ('<p class="task">cloze</p>', "Strict last word (strict)", "25.00%"):
        assert text in page
    assert "cloze: 50.00%" in render_terminal(finished)
    assert "cloze acc,strict : 0.25" in render_summary(finished)


@pytest.mark.parametrize("count", [1, 30])
def test_any_chart_is_drawn(finished: dict[str, Any], count: int) -> None:
    points = [{"label": "a" * 40, "value": -2.5 * i, "stderr": None} for i in range(count)]
    finished["charts"] = [{"title": "Bits", "kind": "value", "points": points}]
    parsed(render_html(finished, CONFIG, MACHINE))


def test_notes_stand_before_everything_else(finished: dict[str, Any]) -> None:
    finished["notes"] = ["The weights are random: scores mean nothing."]
    page = render_html(finished, CONFIG, MACHINE)
    assert page.index("scores mean nothing") < page.index("<h1>")


def test_thirty_two_devices_and_two_attempts_are_readable(finished: dict[str, Any]) -> None:
    page = render_html(many_devices(finished), CONFIG, MACHINE)
    parsed(page)
    assert "attempt 1</text>" in page
    assert page.count('<tr class="idle">') == 1
    assert "tokens per device, mean of 32" in page


def test_a_huge_time_line_is_cut_and_says_so(finished: dict[str, Any]) -> None:
    page = render_html(many_devices(finished, ranks=40), CONFIG, MACHINE)
    assert f"{plots.MAX_LANES} of 640 lanes are drawn." in page


def test_a_phase_without_an_end_is_drawn_to_the_attempts_end(finished: dict[str, Any]) -> None:
    finished["phases"][1]["end_s"] = None
    page = render_html(finished, CONFIG, MACHINE)
    parsed(page)
    assert "2.20 to 15.30 s (13.1 s, cut off)" in page
    assert "Faded bars were cut off." in page


def test_terminal_fits_a_terminal_and_cannot_be_forged(finished: dict[str, Any]) -> None:
    many = many_devices(finished)
    many["cause"] = "line\x1b[31m one\nVALID " + "é" * 200
    many["run_dir"] = "/very/long" * 20 + "/run"
    many["phases"] += [{"name": f"p{i}", "start_s": i, "end_s": i + 1} for i in range(40)]
    for results in (many, died(copy.deepcopy(many), 137, "killed"), copy.deepcopy(RESULTS)):
        lines = render_terminal(results).splitlines()
        assert len(lines) <= 25
        assert max(map(len, lines)) <= 80
        assert all(line.isascii() and line.isprintable() for line in lines)
        assert results["run_dir"][-40:] in lines[-1]


def test_markdown_states_the_same_facts(finished: dict[str, Any]) -> None:
    finished["tables"][0]["rows"][0][1] = "a | b ` c @someone"
    text = render_markdown(finished, MACHINE)
    row = "| lambada | Strict last word | 9.4% | 1.3% | 6.9% to 11.9% | at least 9%: met |"
    assert row in text
    assert r"`` a \| b ` c @someone ``" in text or r"``a \| b ` c @someone``" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


@pytest.mark.parametrize(
    ("value", "unit", "stderr", "text"),
    [
        (0.094, "%", 0.013, "9.4%"),
        (0.4689, "%", 0.007, "46.89%"),
        (0.5, "%", None, "50.00%"),
        (1.0, "%", 0.0, "100.00%"),
        (1833.1, "", 120.0, "1,833"),
        (8.7312, "bits", 0.021, "8.731 bits"),
        (12.345678, "", None, "12.35"),
        (float("nan"), "%", None, "–"),
        ("N/A", "", "N/A", "–"),
    ],
)
def test_values_have_the_digits_their_error_supports(
    value: Any, unit: str, stderr: Any, text: str
) -> None:
    assert formats.measured(value, unit, stderr) == text


def test_durations_and_sizes_have_units() -> None:
    seconds = [formats.duration(s) for s in (0.123, 12.1, 119.9, 185, 7440, None)]
    assert seconds == ["0.12 s", "12.1 s", "119.9 s", "3 min 05 s", "2 h 04 min", "–"]
    assert [formats.size(b) for b in (12, 70123456, 3.2e12)] == ["12 B", "70.1 MB", "3.2 TB"]
