"""When two runs generated the same answers: equal ids up to a recorded near tie, the rest of that
row free; numbers within the bound wherever the ids are equal. Greedy and beams differ in what a
turned decision may change. Each way to differ must be found.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ftjob.results.compare import Comparison, compare_samples

Rows = list[dict[str, Any]]
TIE = 3e-5


def greedy(index: int) -> dict[str, Any]:
    return {
        "id": f"key{index}",
        "key": f"key{index}",
        "index": index,
        "line": index + 1,
        "input": f"source {index}",
        "target": "a reference",
        "output": "an output",
        "output_ids": [7, 8, 9, 1],
        "finish_reason": "eos",
        "error": None,
        "cum_logprob": -2.5,
        "token_logprobs": [-0.5, -0.5, -0.5, -1.0],
        "near_ties": [],
        "tokens": 12,
        "output_tokens": 4,
        "chrf": 41.5,
    }


def beams(index: int) -> dict[str, Any]:
    """A row of a beam search that reports its two best."""
    best = {"output_ids": [7, 8, 9, 1], "score": -0.6, "cum_logprob": -2.5}
    second = {"output_ids": [7, 5, 1], "score": -0.7, "cum_logprob": -2.1}
    more = {"finish_reason": "eos", "output": "an output"}
    return greedy(index) | {"score": -0.6, "hypotheses": [best | more, second | more]}


def other(ids: list[int], ties: list[list[float]], **more: Any) -> dict[str, Any]:
    """The fields of an answer that went another way."""
    return {
        "output_ids": ids,
        "near_ties": ties,
        "output": "another",
        "finish_reason": "length",
        "cum_logprob": -9.0,
        "token_logprobs": [-1.0] * len(ids),
        "output_tokens": len(ids),
        "chrf": 12.0,
    } | more


def compared(
    make: Any, fields: dict[str, Any], ties: list[list[float]] | None = None
) -> Comparison:
    """The comparison of five rows where the third has other fields; `ties` are the first run's.
    It must not depend on which run is named first."""
    first: Rows = [make(i) for i in range(5)]
    second = copy.deepcopy(first)
    second[2].update(copy.deepcopy(fields))
    if ties is not None:
        first[2]["near_ties"] = ties
    found, back = compare_samples(first, second), compare_samples(second, first)
    assert (found.same, len(found.excused), len(found.differences)) == (
        back.same,
        len(back.excused),
        len(back.differences),
    )
    return found


@pytest.mark.parametrize("make", [greedy, beams])
def test_equal_runs_and_small_differences_are_the_same(make: Any) -> None:
    for fields in (
        {},
        {"cum_logprob": -2.5 - 5e-5},
        {"token_logprobs": [-0.5, -0.5 + 5e-5, -0.5, -1.0]},
        {"chrf": 41.5 + 1e-5},
        {"near_ties": [[2, 9.9e-5]]},
    ):
        found = compared(make, fields)
        assert found.same
        assert found.excused == []
    moved = copy.deepcopy(beams(2)["hypotheses"])
    moved[1]["score"] += 5e-5
    assert compared(beams, {"hypotheses": moved}).same


GREEDY_EXCUSED = {
    "at the tie": other([7, 8, 6, 1], [[2, TIE]]),
    "from the tie on": other([7, 4, 4, 4], [[1, TIE]]),
    "ended at the tie": other([7, 8, 1], [[2, TIE]]),
    "longer from the tie on": other([7, 8, 9, 6, 6, 6], [[3, TIE]]),
    "among other ties": other([7, 8, 6, 1], [[0, TIE], [2, TIE], [3, TIE]]),
}
GREEDY_DIFFERENT = {
    "no tie": other([7, 8, 6, 1], []),
    "a tie before": other([7, 8, 6, 1], [[1, TIE]]),
    "a tie behind": other([7, 8, 6, 1], [[3, TIE]]),
    "cut short, which no decision does": other([7, 8], [[2, TIE]]),
    "went on behind its end": other([7, 8, 9, 1, 5], [[4, TIE]]),
    "other input": other([7, 8, 6, 1], [[2, TIE]], input="x"),
    "other target": other([7, 8, 6, 1], [[2, TIE]], target="x"),
    "other count of input tokens": other([7, 8, 6, 1], [[2, TIE]], tokens=13),
    "failed": other([7, 8, 6, 1], [[2, TIE]], error="bad"),
    "same ids, cum_logprob 2e-4 off": {"cum_logprob": -2.5002, "near_ties": [[2, TIE]]},
    "same ids, a token 2e-4 off": {
        "token_logprobs": [-0.5, -0.5002, -0.5, -1.0],
        "near_ties": [[1, TIE]],
    },
    "same ids, other text": {"output": "another", "near_ties": [[2, TIE]]},
    "same ids, other chrF": {"chrf": 40.0, "near_ties": [[2, TIE]]},
    "same ids, other reason": {"finish_reason": "length", "near_ties": [[3, TIE]]},
    "a score of beams beside none": {"score": -0.6},
    "scored instead of generated": {"logprob": -2.5},
}


@pytest.mark.parametrize("fields", GREEDY_EXCUSED.values(), ids=GREEDY_EXCUSED.keys())
def test_greedy_goes_its_own_way_from_a_near_tie_on(fields: dict[str, Any]) -> None:
    found = compared(greedy, fields)
    assert (found.same, found.differences) == (True, [])
    (line,) = found.excused
    assert line.startswith("row 2 (line 3): ")
    assert "from a near tie at" in line
    first = compared(greedy, fields | {"near_ties": []}, ties=fields["near_ties"])
    assert first.same  # one run's word is enough


@pytest.mark.parametrize("fields", GREEDY_DIFFERENT.values(), ids=GREEDY_DIFFERENT.keys())
def test_other_greedy_answers_are_found(fields: dict[str, Any]) -> None:
    found = compared(greedy, fields)
    assert not found.same
    assert len(found.differences) == 1


def drawn(index: int) -> dict[str, Any]:
    """A row with two drawn answers."""
    made = beams(index)
    del made["score"]
    return made


@pytest.mark.parametrize(
    ("second", "ties", "same"),
    [
        ([7, 6, 2, 3], [[1, 1e-5]], True),
        ([7, 6, 2, 3], [[2, 1e-5]], False),
        ([7, 5], [[2, 1e-5]], False),  # one that ends sooner was turned at its end
        ([7, 5, 2], [[1, 1e-5]], False),
    ],
)
def test_each_drawn_answer_goes_its_own_way(second: list[int], ties: Any, same: bool) -> None:
    hypotheses = copy.deepcopy(drawn(2)["hypotheses"])
    hypotheses[1] |= {"output_ids": second, "cum_logprob": -7.0, "output": "another"}
    found = compared(drawn, {"hypotheses": hypotheses, "near_ties": ties})
    assert found.same == same


def lists(best: list[int], second: list[int]) -> dict[str, Any]:
    """Two hypotheses of a search that went another way."""
    more = {"finish_reason": "eos", "output": "x", "score": -0.9, "cum_logprob": -3.0}
    return {"hypotheses": [more | {"output_ids": ids} for ids in (best, second)], "score": -0.9}


SWAPPED = {
    "hypotheses": copy.deepcopy(beams(2)["hypotheses"])[::-1],
    **other([7, 5, 1], [], score=-0.7),
}
SECOND = lists([7, 8, 9, 1], [7, 6, 1])["hypotheses"][1:]
BEAMS_EXCUSED = {
    "before the tie": other([2, 8, 9, 1], [[3, TIE]]) | lists([2, 8, 9, 1], [7, 5, 1]),
    "behind the tie": other([7, 8, 9, 2], [[0, TIE]]) | lists([7, 8, 9, 2], [7, 5, 1]),
    "two swapped, recorded at the best one's last": SWAPPED | {"near_ties": [[3, TIE]]},
    "the second alone": {
        "hypotheses": [beams(2)["hypotheses"][0], *SECOND],
        "near_ties": [[1, TIE]],
    },
    "longer, past the tie": other([7] * 9, [[8, TIE]]) | lists([7] * 9, [7, 5, 1]),
    "a shorter one instead": other([7, 1], [[3, TIE]]) | lists([7, 1], [7, 5, 1]),
}
BEAMS_DIFFERENT = {
    "no tie": other([2, 8, 9, 1], []) | lists([2, 8, 9, 1], [7, 5, 1]),
    "all had ended before the tie": other([2, 8, 9, 1], [[4, TIE]])
    | lists([2, 8, 9, 1], [7, 5, 1]),
    "the second alone, without a tie": {"hypotheses": [beams(2)["hypotheses"][0], *SECOND]},
    "the second alone, and the best one's figure": {
        "hypotheses": [beams(2)["hypotheses"][0], *SECOND],
        "near_ties": [[1, TIE]],
        "cum_logprob": -2.5002,
    },
    "same ids, score 2e-4 off": {"score": -0.6002, "near_ties": [[1, TIE]]},
    "same ids, the second one's score off": {
        "hypotheses": [beams(2)["hypotheses"][0], beams(2)["hypotheses"][1] | {"score": -0.7002}],
        "near_ties": [[1, TIE]],
    },
    "one hypothesis fewer": {"hypotheses": beams(2)["hypotheses"][:1]},
    "a hypothesis' figure missing": {
        "hypotheses": [
            {k: v for k, v in h.items() if k != "score"} for h in beams(2)["hypotheses"]
        ],
        "near_ties": [[1, TIE]],
    },
    "other input": other([2, 8, 9, 1], [[3, TIE]], input="x") | lists([2, 8, 9, 1], [7, 5, 1]),
}


@pytest.mark.parametrize("fields", BEAMS_EXCUSED.values(), ids=BEAMS_EXCUSED.keys())
def test_beams_may_part_anywhere_where_an_answer_reaches_past_a_near_tie(
    fields: dict[str, Any],
) -> None:
    found = compared(beams, fields)
    assert (found.same, found.differences, len(found.excused)) == (True, [], 1)
    assert "from a near tie at step" in found.excused[0]


@pytest.mark.parametrize("fields", BEAMS_DIFFERENT.values(), ids=BEAMS_DIFFERENT.keys())
def test_other_answers_of_beams_are_found(fields: dict[str, Any]) -> None:
    found = compared(beams, fields)
    assert not found.same
    assert len(found.differences) == 1


@pytest.mark.parametrize(("rows", "flips", "same"), [(5, 1, True), (5, 2, False), (2000, 2, True)])
def test_few_rows_may_be_excused(rows: int, flips: int, same: bool) -> None:
    first = [greedy(i) for i in range(rows)]
    second = copy.deepcopy(first)
    for row in second[:flips]:
        row.update(other([7, 8, 6, 1], [[2, TIE]]))
    found = compare_samples(first, second)
    assert (len(found.excused), found.differences, found.same) == (flips, [], same)


def test_what_generated_lambada_counts_is_free_with_the_ids() -> None:
    def lambada(index: int) -> dict[str, Any]:
        return greedy(index) | {"correct": True, "last_token_correct": True}

    wrong = {"correct": False, "last_token_correct": False}
    assert compared(lambada, other([7, 8, 6, 1], [[2, TIE]]) | wrong).same
    assert not compared(lambada, wrong | {"near_ties": [[2, TIE]]}).same


def test_a_skipped_row_is_the_same_only_as_a_skipped_one() -> None:
    skipped = {"finish_reason": "skip", "output": None, "output_ids": [], "skipped": "too long"}
    assert not compared(greedy, skipped).same
    assert compared(lambda i: greedy(i) | skipped, {}).same
