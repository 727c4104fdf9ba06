"""LAMBADA generated instead of scored: the context is continued by as many tokens as the last word
has, and compared with it as FasterTransformer did.
"""

from __future__ import annotations

from typing import Any

import pytest
from test_lambada import Letters, limits, row

from ftjob.config import build
from ftjob.tasks import make_task
from ftjob.tasks.base import Generated, GenerateRequest, Hypothesis, ModelLimits, Task, error_record


def task(**decode: Any) -> Task:
    data = {"mode": "generate"}
    return make_task(build({"model": {"checkpoint": "PATH"}, "dataset": data, "decode": decode}))


def prepared(text: str, of: ModelLimits, **decode: Any) -> Any:
    (out,) = task(**decode).prepare([row(text)], ["key"], Letters(), of)
    return out


def record(output: str, **decode: Any) -> dict[str, Any]:
    ids = [ord(c) for c in output]
    best = Hypothesis(ids, -1.0, -2.5, "length")
    request = prepared("ab cd", limits(100))
    return task(**decode).record(request, Generated([best], [[1, 5e-5]]), Letters())


def test_the_context_is_continued_by_the_words_tokens() -> None:
    found = prepared("ab cd", limits(100))
    assert isinstance(found, GenerateRequest)
    assert (Letters().decode(found.ids), found.max_new_tokens) == ("ab", 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("word", "line 1: no space before a last word"),
        (" word", "line 1: no text before the last word"),
        ("abcd efg", "line 1: 7 tokens before the last, but the model has 6 positions"),
    ],
)
def test_rows_without_an_answer_are_those_of_scoring(text: str, reason: str) -> None:
    assert prepared(text, limits(6))["error"] == reason


def test_rows_no_cache_holds_are_errors() -> None:
    most = ModelLimits(100, 1 << 16, (0,), seq2seq=False, cache_tokens=8)
    assert isinstance(prepared("ab cd", most, beams=2), GenerateRequest)
    assert "take 11 of the cache" in prepared("ab cd", most, beams=3)["error"]


def test_record_by_hand() -> None:
    assert record(" ce") == {
        "id": "key",
        "key": "key",
        "index": 0,
        "line": 1,
        "input": "ab",
        "target": " cd",
        "output": " ce",
        "output_ids": [ord(c) for c in " ce"],
        "finish_reason": "length",
        "error": None,
        "cum_logprob": -2.5,
        "near_ties": [[1, 5e-5]],
        "output_tokens": 3,
        "correct": False,
        "last_token_correct": False,
        "tokens": 2,
        "target_tokens": 3,
    }
    assert record(" cd", beams=2)["score"] == -1.0


@pytest.mark.parametrize(
    ("output", "correct", "last"),
    [
        (" cd", True, True),
        ("xcd", False, True),
        (" cx", False, False),
        ("d", False, False),  # ended two tokens early
        ("", False, False),
    ],
)
def test_strict_word_and_last_token(output: str, correct: bool, last: bool) -> None:
    found = record(output)
    assert (found["correct"], found["last_token_correct"]) == (correct, last)


def test_summary_has_no_perplexity_and_shows_the_surest_mistakes() -> None:
    samples = []
    for i, output in enumerate([" cd", " ce", "xcd", " cd"]):
        samples.append(record(output) | {"index": i, "line": i + 1, "cum_logprob": -5.0 + i})
    samples.append(error_record(row("x", 9), "k", "line 10: bad"))
    found = task().summarise(samples)
    assert found.values == {"acc": 0.5, "last_token_acc": 0.75}
    assert set(found.stderrs) == set(found.values) == set(task().metrics)
    (table,) = found.tables
    assert [cells[0] for cells in table["rows"]] == ["3", "2"]
    assert "wrong" in table["note"]
    (chart,) = found.charts
    assert [(p["label"], p["count"]) for p in chart["points"]] == [("0-24", 4)]
