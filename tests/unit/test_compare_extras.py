"""Runs that were asked for different fields are compared in what both have, and what was left out
is named; a field that only some answers of a run have is a difference as before.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from test_compare_generated import beams

from ftjob.commands import compare as command
from ftjob.errors import BELOW_EXPECTATION, DONE
from ftjob.results.compare import Comparison, compare_samples

Rows = list[dict[str, Any]]


def asked(n_best: int, logprobs: bool, rows: int = 4) -> Rows:
    """A run of beams with so many hypotheses, with token_logprobs or without; a row failed."""
    made = []
    for i in range(rows):
        row = beams(i)
        row["hypotheses"] = [
            row["hypotheses"][0] | {"output_ids": [7, 8, 9 + k, 1], "token_logprobs": [-0.5] * 4}
            for k in range(n_best)
        ]
        if n_best == 1:
            del row["hypotheses"]
        if not logprobs:
            del row["token_logprobs"]
            for hypothesis in row.get("hypotheses", ()):
                del hypothesis["token_logprobs"]
        made.append(row)
    failed = {"error": "bad", "output": None, "output_ids": [], "finish_reason": "error"}
    extra = ("hypotheses", "token_logprobs", "score", "cum_logprob", "chrf", "output_tokens")
    made[1] = {k: v for k, v in made[1].items() if k not in extra} | failed
    return made


def both_ways(first: Rows, second: Rows) -> Comparison:
    """The comparison, which must not depend on which run is named first."""
    before = copy.deepcopy((first, second))
    found, back = compare_samples(first, second), compare_samples(second, first)
    assert before == (first, second), "records are not the comparison's to change"
    swapped = {"first": "second", "second": "first"}
    words = [" ".join(swapped.get(w, w) for w in line.split(" ")) for line in back.left_out]
    assert [w.replace("after the second", "after the first") for w in words] == found.left_out
    assert (found.same, len(found.differences)) == (back.same, len(back.differences))
    return found


LEFT_OUT = {
    "nothing": ((3, True), (3, True), []),
    "logprobs": ((1, True), (1, False), ["token_logprobs, which only the first run has"]),
    "n-best": ((1, True), (3, True), ["hypotheses, which only the second run has"]),
    "more of them": (
        *((4, False), (2, False)),
        ["hypotheses after the first 2, which only the first run has"],
    ),
    "all": (
        *((2, False), (5, True)),
        [
            "token_logprobs, which only the second run has",
            "hypotheses after the first 2, which only the second run has",
        ],
    ),
    "each its own": (
        *((1, True), (2, False)),
        [
            "token_logprobs, which only the first run has",
            "hypotheses, which only the second run has",
        ],
    ),
}


@pytest.mark.parametrize(("one", "two", "lines"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_what_one_run_alone_was_asked_for_is_left_out(
    one: tuple[int, bool], two: tuple[int, bool], lines: list[str]
) -> None:
    first, second = asked(*one), asked(*two)
    found = both_ways(first, second)
    assert (found.same, found.differences, found.excused) == (True, [], [])
    assert found.left_out == lines
    second[2]["cum_logprob"] -= 3e-4
    assert [d[:8] for d in both_ways(first, second).differences] == ["row 2 (l"]


def test_what_both_have_is_compared_beside_what_is_left_out() -> None:
    first, second = asked(2, False), asked(4, True)
    second[3]["hypotheses"][1]["score"] -= 3e-4
    (difference,) = both_ways(first, second).differences
    assert difference.startswith("row 3 (line 4): hypotheses: ")
    second = asked(4, True)
    second[3]["hypotheses"][2]["score"] -= 3e-4
    assert both_ways(first, second).same


def test_ngrams_of_another_number_are_compared_as_far_as_both_go() -> None:
    def run(n: int) -> Rows:
        rows = [beams(i) | {"ngrams": [[k, 9] for k in range(n)]} for i in range(3)]
        return rows if n else [{k: v for k, v in r.items() if k != "ngrams"} for r in rows]

    found = both_ways(run(4), run(2))
    assert found.same
    assert found.left_out == ["ngrams after the first 2, which only the first run has"]
    assert both_ways(run(0), run(2)).left_out == ["ngrams, which only the second run has"]


def test_a_field_that_some_answers_lack_is_a_difference() -> None:
    first, second = asked(3, True), asked(3, True)
    del second[2]["token_logprobs"]
    assert both_ways(first, second).differences == [
        "row 2 (line 3): token_logprobs: in one run alone; 3 / 2 of 3 answers have it"
    ]
    second = asked(3, False)
    second[0]["token_logprobs"] = [-0.5] * 4
    found = both_ways(asked(3, False), second)
    assert (len(found.differences), found.left_out) == (1, [])


@pytest.mark.parametrize(("one", "two"), [(3, 3), (2, 4)])
def test_a_list_that_ends_before_its_runs_others_is_a_difference(one: int, two: int) -> None:
    first, second = asked(one, False), asked(two, False)
    del first[2]["hypotheses"][-1:]
    assert both_ways(first, second).differences == [
        f"row 2 (line 3): hypotheses: {one - 1} in the first run, which has {one} elsewhere"
    ]


def test_an_empty_list_is_shorter_than_any() -> None:
    first, second = asked(2, False), asked(2, False)
    second[0]["hypotheses"], second[3]["hypotheses"] = [], second[3]["hypotheses"][:1]
    assert len(both_ways(first, second).differences) == 1


def test_a_near_tie_excuses_as_without_the_fields() -> None:
    first, second = asked(1, True), asked(3, False)
    turned = {"output_ids": [7, 8, 6, 1], "output": "x", "near_ties": [[2, 3e-5]]}
    second[2] |= turned | {"cum_logprob": -9.0}
    found = both_ways(first, second)
    assert (found.same, len(found.excused)) == (True, 1)
    second[2]["near_ties"] = []
    assert not both_ways(first, second).same


def test_the_command_names_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rows in (("a", asked(1, True)), ("b", asked(1, False))):
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "samples.jsonl").write_text(text)
    folders = [str(tmp_path / name) for name in "ab"]
    assert command.main(folders) == DONE
    out = capsys.readouterr().out
    assert "left out: token_logprobs, which only the first run has\n4 rows: the same" in out
    path = tmp_path / "b" / "samples.jsonl"
    path.write_text(path.read_text().replace("-2.5", "-2.6"))
    assert command.main(folders) == BELOW_EXPECTATION
