"""The report of a run: what the page, its Markdown twin and the plain texts say and escape.

page/summary.txt is the recorded text of the run of `page_samples`; the tests change `finished` into
the runs that went otherwise.
"""

from __future__ import annotations

import copy
import re
import threading
from typing import Any

import pytest
from page_samples import CONFIG, HERE, MACHINE, RESULTS, bars, died, many_devices, parsed

from ftjob.results.page import (
    formats,
    plots,
    render_html,
    render_markdown,
    render_summary,
    render_terminal,
)

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture
def finished() -> dict[str, Any]:
    return copy.deepcopy(RESULTS)


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


def test_an_interval_does_not_go_below_0(finished: dict[str, Any]) -> None:
    finished["results"]["lambada"]["perplexity_stderr,none"] = 1e6
    for text in (render_html(finished, CONFIG, MACHINE), render_terminal(finished)):
        assert "to 1,961,8" in text
        assert "-1,9" not in text


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
    assert render_markdown(finished, MACHINE).count(f"with exit code {code}.") == 1


def test_a_run_whose_rows_were_all_left_out_did_not_stop_early(finished: dict[str, Any]) -> None:
    died(finished, 3, "no row was answered: 40 rows left out as too long")
    finished["reached_end"] = True
    assert "No row answered with exit code 3." in render_html(finished, CONFIG, MACHINE)
    summary = render_summary(finished)
    assert "result : INVALID\nreason : rows were left out as too long (exit" in summary
    finished["reached_end"] = False  # a file that could not be read ends with 3 too
    assert "Stopped early with exit code 3." in render_html(finished, CONFIG, MACHINE)


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
    assert "Still running. <strong>No result yet." in render_html({}, "", {})
    assert "\nresult : RUNNING\nreason : it has not ended\n" in render_summary({})
    assert "result RUNNING" in render_terminal({})


@pytest.mark.parametrize(
    ("wanted", "says", "scored"),
    [
        (500, "120 of 500 rows are done", "of 500 rows"),
        (None, "120 rows are done; how many there are is not", "of 500 rows read so far"),
    ],
)
def test_a_run_that_goes_on_says_how_far_it_is(
    finished: dict[str, Any], wanted: int | None, says: str, scored: str
) -> None:
    """It is neither valid nor invalid; what is expected of its score is told at its end."""
    where = "rank 0: attempt 0 still runs, as process 7 of elsewhere"
    finished.update(code=None, cause=where, progress={"done": 120, "of": wanted})
    finished["expect"]["acc"] = {"minimum": 0.1, "value": 0.094, "met": False}
    finished["n-samples"]["lambada"] = {"original": 500, "effective": 118}
    texts = {
        "page": render_html(finished, CONFIG, MACHINE),
        "markdown": render_markdown(finished, MACHINE),
        "summary": render_summary(finished),
        "terminal": render_terminal(finished),
    }
    parsed(texts["page"])
    for name, text in texts.items():
        assert "invalid" not in re.sub("<style>.*?</style>", "", text, flags=re.S).lower(), name
        assert says in text, name
        assert where[1:] in text, name
        assert "was expected" not in text, name
        assert "First cause" not in text, name
    assert f"118 {scored}" in texts["page"]
    assert "**Still running. No result yet.**" in texts["markdown"]
    assert f"result RUNNING\nrunning           {where}\n" in texts["terminal"]


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
