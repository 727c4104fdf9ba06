"""The LAMBADA task, worked by hand: how a row splits and is tokenised, what a record says, every
figure with its standard error, n-grams, near ties, keys; and facts of the shipped test set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from ftjob.config.groups import DatasetConfig, JobConfig
from ftjob.tasks import make_task
from ftjob.tasks.base import (
    KeyMaker,
    ModelLimits,
    Row,
    Scored,
    ScoreRequest,
    error_record,
    near_ties,
)
from ftjob.tasks.lambada import Lambada
from ftjob.tasks.lambada_score import rate_error
from ftjob.tasks.rows import RowSource
from ftjob.tokenizer import open_tokenizer


class Letters:
    """An encoder whose ids are code points, so that ids can be read."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(c) for c in text] for text in texts]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return "".join(map(chr, ids))


def limits(positions: int) -> ModelLimits:
    return ModelLimits(positions, 1 << 16, (0,), seq2seq=False)


def row(text: str | None, index: int = 0, **more: Any) -> Row:
    return Row(index, index + 1, (text or "").encode(), text, **more)


def prepared(text: str, ngrams: int = 0, positions: int = 100) -> ScoreRequest | dict[str, Any]:
    (out,) = Lambada(ngrams).prepare([row(text)], ["key"], Letters(), limits(positions))
    return out


def asked(text: str, ngrams: int = 0) -> ScoreRequest:
    out = prepared(text, ngrams)
    assert isinstance(out, ScoreRequest)
    return out


@pytest.mark.parametrize(
    ("text", "context", "target"),
    [
        ("ab cd", "ab", " cd"),
        ("a b  c", "a b ", " c"),
        ('say:\n\n"no', "say:", ""),
        ("a b\nc", "a", " b\nc"),
        (" a b ", " a b", " "),
        ("a\tb c\u00a0d", "a\tb", " c\u00a0d"),
    ],
)
def test_row_splits_at_its_last_space_unstripped(text: str, context: str, target: str) -> None:
    out = prepared(text)
    if not target:
        assert isinstance(out, dict)
        assert out["error"] == "line 1: no space before a last word"
        return
    assert isinstance(out, ScoreRequest)
    assert Letters().decode(out.ids[: out.target_from]) == context
    assert Letters().decode(out.ids[out.target_from :]) == target
    assert out.scored_from == out.target_from == len(context)


def test_ngrams_score_every_position() -> None:
    out = asked("ab cd", ngrams=2)
    assert (out.scored_from, out.target_from) == (1, 2)


def test_rows_without_an_answer_are_records_in_their_place() -> None:
    rows = [
        row("a b", 0),
        row(None, 1, error="line 2: not JSON"),
        row("word", 2),
        row(" word", 3),
        row("", 4),
        row("c d", 5, id="mine"),
    ]
    keys = [f"k{i}" for i in range(6)]
    out = Lambada().prepare(rows, keys, Letters(), limits(100))
    assert [isinstance(o, ScoreRequest) for o in out] == [True, False, False, False, False, True]
    errors = [o["error"] for o in out if isinstance(o, dict)]
    assert errors == [
        "line 2: not JSON",
        "line 3: no space before a last word",
        "line 4: no text before the last word",
        "line 5: no space before a last word",
    ]
    assert [o.key for o in out if isinstance(o, ScoreRequest)] == ["k0", "k5"]
    assert out[1] == error_record(rows[1], "k1", "line 2: not JSON")
    assert (out[2]["id"], out[2]["index"], out[2]["line"]) == ("k2", 2, 3)  # type: ignore[index]


def test_longest_row_leaves_its_last_token_out_of_the_positions() -> None:
    assert isinstance(prepared("abcd efg", positions=7), ScoreRequest)
    out = prepared("abcd efg", positions=6)
    assert isinstance(out, dict)
    assert out["error"] == "line 1: 7 tokens before the last, but the model has 6 positions"


def test_record_by_hand() -> None:
    request = asked("ab cd")
    best = [ord(c) for c in " ce"]
    scored = Scored([-0.5, -1.25, -3.0], best, [0.2, 5e-5, 0.9])
    assert Lambada().record(request, scored, Letters()) == {
        "id": "key",
        "key": "key",
        "index": 0,
        "line": 1,
        "input": "ab",
        "target": " cd",
        "output": " ce",
        "output_ids": best,
        "finish_reason": "length",
        "error": None,
        "correct": False,
        "last_token_correct": False,
        "logprob": -4.75,
        "near_ties": [[1, 5e-5]],
        "tokens": 5,
        "target_tokens": 3,
    }


@pytest.mark.parametrize(
    ("output", "correct", "last"),
    [(" cd", True, True), ("xcd", False, True), (" cx", False, False), (" xd", False, True)],
)
def test_strict_word_and_last_token(output: str, correct: bool, last: bool) -> None:
    scored = Scored([-1.0] * 3, [ord(c) for c in output], [1.0] * 3)
    record = Lambada().record(asked("ab cd"), scored, Letters())
    assert (record["correct"], record["last_token_correct"]) == (correct, last)


def test_ngram_record_by_hand() -> None:
    request = asked("ab cd", ngrams=4)  # predicted: b, space, c, d
    scored = Scored([-9.0, -1.0, -2.0, -4.0], [ord(c) for c in "b xd"], [1e-5, 1.0, 1e-6, 1.0])
    record = Lambada(4).record(request, scored, Letters())
    # hits: yes yes no yes, so 3 of 4, then 1 of 3 pairs, 0 of 2 triples, 0 of 1 quadruple
    assert record["ngrams"] == [[3, 4], [1, 3], [0, 2], [0, 1]]
    assert record["logprob"] == -7.0  # the target's three tokens alone
    assert record["output"] == " xd"
    assert record["near_ties"] == [[1, 1e-6]]  # counted within the output
    assert (record["correct"], record["last_token_correct"]) == (False, True)


def test_ngrams_longer_than_the_row_count_nothing() -> None:
    scored = Scored([-1.0] * 2, [ord(c) for c in " b"], [1.0] * 2)
    record = Lambada(4).record(asked("a b", ngrams=4), scored, Letters())
    assert record["ngrams"] == [[2, 2], [1, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("gaps", "ties"),
    [
        ([], []),
        ([1e-4, 1.0], []),
        ([0.99e-4], [[0, 9.9e-5]]),
        ([1.0, 0.0, 2.0, 1e-5], [[1, 0.0], [3, 1e-5]]),
    ],
)
def test_near_ties_lie_below_the_threshold(gaps: list[float], ties: list[list[float]]) -> None:
    assert near_ties(gaps) == ties


def sample(correct: bool, last: bool, logprob: float, **more: Any) -> dict[str, Any]:
    return {
        "error": None,
        "finish_reason": "length",
        "index": 0,
        "line": 1,
        "correct": correct,
        "last_token_correct": last,
        "logprob": logprob,
        "tokens": 12,
        "target_tokens": 2,
        "input": "the context",
        "target": " word",
        "output": " sword",
    } | more


def test_summary_by_hand() -> None:
    samples = [
        sample(True, True, -1.0),
        error_record(row("x"), "k", "line 1: bad"),
        sample(False, True, -2.0),
        sample(False, False, -6.0),
        sample(False, True, -3.0),
    ]
    summary = Lambada().summarise(samples)
    assert summary.values["acc"] == 0.25
    assert summary.stderrs["acc"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    assert summary.values["last_token_acc"] == 0.75
    assert summary.stderrs["last_token_acc"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert summary.values["perplexity"] == pytest.approx(math.exp(3.0))
    deviation = math.sqrt((4 + 1 + 9 + 0) / 3)  # of the log-probabilities about -3
    assert summary.stderrs["perplexity"] == pytest.approx(math.exp(3.0) * deviation / 2)
    assert "1gram_acc" not in summary.values
    assert set(summary.values) == set(Lambada().metrics)


def test_ngram_summary_by_hand() -> None:
    samples = [
        sample(True, True, -1.0, ngrams=[[3, 4], [1, 3], [0, 2], [0, 1]]),
        sample(True, True, -1.0, ngrams=[[2, 2], [1, 1], [0, 0], [0, 0]]),
    ]
    values = Lambada(4).summarise(samples).values
    assert values["1gram_acc"] == 5 / 6
    assert values["2gram_acc"] == 2 / 4
    assert values["3gram_acc"] == 0 / 2
    assert values["4gram_acc"] == 0 / 1
    assert set(values) == set(Lambada(4).metrics)


def test_summary_of_few_rows() -> None:
    assert Lambada().summarise([]).values == {}
    one = Lambada().summarise([sample(True, True, -1.0)])
    assert (one.values["acc"], one.stderrs["acc"], one.stderrs["perplexity"]) == (1.0, 0.0, 0.0)
    assert "perplexity" not in Lambada().summarise([sample(False, False, -800.0)]).values
    assert rate_error(0, 10) == rate_error(10, 10) == 0.0
    assert rate_error(5, 10) == pytest.approx(math.sqrt(0.25 / 9))


def test_chart_counts_rows_by_context_length() -> None:
    samples = [
        sample(True, True, -1.0, tokens=26, target_tokens=2),
        sample(False, True, -1.0, tokens=3, target_tokens=2),
        sample(False, True, -1.0, tokens=27, target_tokens=2),
    ]
    (chart,) = Lambada().summarise(samples).charts
    points = [(p["label"], p["value"], p["count"]) for p in chart["points"]]
    assert points == [("0-24", 0.5, 2), ("25-49", 0.0, 1)]


def test_worst_rows_are_the_least_likely_ones() -> None:
    logprobs = [-(i * 37 % 100) - 1.0 for i in range(100)]
    samples = [sample(False, False, p, index=i, line=i + 1) for i, p in enumerate(logprobs)]
    (table,) = Lambada().summarise(samples).tables
    shown = [float(cells[-1]) for cells in table["rows"]]
    assert shown == sorted(logprobs)[: len(shown)]
    assert len(shown) == 12
    assert logprobs[int(table["rows"][0][0]) - 1] == -100.0


def test_keys_tell_equal_contents_apart() -> None:
    first, again = KeyMaker("run"), KeyMaker("run")
    keys = [first.keyed(Row(0, 1, c, None))[1] for c in (b"a", b"b", b"a", b"a", b"b")]
    assert len(set(keys)) == 5
    assert [again.keyed(Row(0, 1, c, None))[1] for c in (b"a", b"a", b"b", b"a", b"b")] == [
        keys[i] for i in (0, 2, 1, 3, 4)
    ]
    assert KeyMaker("other run").keyed(Row(0, 1, b"a", None))[1] != keys[0]
    assert all(len(k) == 32 and int(k, 16) >= 0 for k in keys)


def test_shipped_set_is_the_known_one() -> None:
    rows = list(RowSource(DatasetConfig()).rows())
    contents = [r.content for r in rows]
    assert (len(contents), len(set(contents))) == (5153, 5151)
    keys = KeyMaker("x")
    names = [keys.keyed(Row(0, 1, c, None))[1] for c in contents]
    assert len(set(names)) == 5153
    newline = [r for r in rows if "\n" in (r.text or "").rsplit(" ", 1)[1]]
    assert len(newline) == 7
    tokenizer = open_tokenizer("builtin:demo_gpt", None)
    out = make_task(JobConfig()).prepare(newline, names[:7], tokenizer, limits(512))
    for request, asked_row in zip(out, newline, strict=True):
        assert isinstance(request, ScoreRequest)
        target = tokenizer.decode(request.ids[request.target_from :])
        assert target == " " + str(asked_row.text).rsplit(" ", 1)[1]
        assert "\n" in target
