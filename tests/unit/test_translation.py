"""The translation task: which request a row becomes, every row that becomes none, what a record
says of an answer, and what configurations are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sacrebleu.metrics.chrf import CHRF

from ftjob.config import build
from ftjob.config.dataset import check_model_for_task
from ftjob.config.groups import JobConfig
from ftjob.errors import ConfigError
from ftjob.tasks import make_task
from ftjob.tasks.base import (
    Generated,
    GenerateRequest,
    Hypothesis,
    ModelLimits,
    Row,
    is_answer,
)
from ftjob.tasks.values import translation_row

END = 0


class Words:
    """An encoder with an id a word, its length; ids can be read and counted."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[len(word) for word in text.split()] for text in texts]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return " ".join("x" * i for i in ids if not (skip_special and i == END))


def config(decode: dict[str, Any] | None = None, **dataset: Any) -> JobConfig:
    data = {"task": "translation", "path": "a.jsonl", "column": "source"} | dataset
    return build({"model": {"checkpoint": "PATH"}, "dataset": data, "decode": decode or {}})


def limits(**more: Any) -> ModelLimits:
    given: dict[str, Any] = {"positions": None, "vocab": 50, "ends": (END, 9), "seq2seq": True}
    return ModelLimits(**(given | more))


def row(text: str, **more: Any) -> Row:
    return translation_row(3, 4, text, more.pop("target", "ref"), **more)


def prepared(
    text: str | Row, job: JobConfig | None = None, **more: Any
) -> GenerateRequest | dict[str, Any]:
    one = row(text) if isinstance(text, str) else text
    (out,) = make_task(job or config()).prepare([one], ["key"], Words(), limits(**more))
    assert not isinstance(out, dict) or out["key"] == "key"
    assert isinstance(out, (GenerateRequest, dict))
    return out


def ids(found: GenerateRequest | dict[str, Any]) -> list[int]:
    assert isinstance(found, GenerateRequest), found
    return found.ids


def error(found: GenerateRequest | dict[str, Any]) -> str:
    assert isinstance(found, dict)
    assert (found["finish_reason"], found["index"], found["line"]) == ("error", 3, 4)
    assert not is_answer(found)
    return str(found["error"])


def test_a_source_gets_prefix_and_end_token() -> None:
    assert ids(prepared("aa bbb")) == [2, 3, END]
    assert ids(prepared("aa bbb", config(prefix="say it: "))) == [3, 3, 2, 3, END]
    assert ids(prepared("aa bbb", seq2seq=False)) == [2, 3]
    assert ids(prepared("aa bbb", ends=())) == [2, 3]


def test_new_tokens_are_the_rows_own_else_the_configured() -> None:
    job = config({"max_new_tokens": 11})
    for own, expected in ((None, 11), (3, 3), (40, 40)):
        found = prepared(row("a", max_new_tokens=own), job)
        assert isinstance(found, GenerateRequest)
        assert found.max_new_tokens == expected


def test_rows_stay_in_their_order() -> None:
    rows = [row("a"), Row(3, 4, b"", None, "line 4: not JSON"), row(" "), row("bb")]
    out = make_task(config()).prepare(rows, list("wxyz"), Words(), limits())
    assert [o["key"] if isinstance(o, dict) else o.key for o in out] == list("wxyz")
    assert [isinstance(o, dict) for o in out] == [False, True, True, False]
    assert error(out[1]) == "line 4: not JSON"  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", " ", "\t\u3000 "])
def test_an_empty_source_is_an_error_with_its_line(text: str) -> None:
    found = prepared(text, config(prefix="say: "))
    assert error(found) == "line 4: the source is empty"
    assert isinstance(found, dict)
    assert (found["input"], found["target"]) == (text, "ref")


LONG = "a bb ccc dddd"


def test_the_end_token_counts_for_the_longest_source() -> None:
    assert ids(prepared(LONG, config(max_source_tokens=5))) == [1, 2, 3, 4, END]
    found = prepared(LONG, config(max_source_tokens=4))
    assert error(found) == "line 4: the source has 5 tokens, dataset.max_source_tokens is 4"
    assert ids(prepared(LONG, config(max_source_tokens=4), seq2seq=False)) == [1, 2, 3, 4]


def test_truncation_cuts_the_source_and_keeps_prefix_and_end_token() -> None:
    job = config(max_source_tokens=4, too_long="truncate", prefix="xx: ")
    found = prepared(LONG, job)
    assert ids(found) == [3, 1, 2, END]
    assert isinstance(found, GenerateRequest)
    assert found.cut_tokens == 2
    task = make_task(job)
    best = Hypothesis([5, END], -1.0, -1.0, "eos")
    record = task.record(found, Generated([best], []), Words())
    assert (record["cut_tokens"], record["tokens"], record["input"]) == (2, 4, LONG)
    whole = prepared("a bb", job)
    assert isinstance(whole, GenerateRequest)
    assert "cut_tokens" not in task.record(whole, Generated([best], []), Words())
    none = config(max_source_tokens=2, too_long="truncate", prefix="xx: ")
    assert error(prepared(LONG, none)) == (
        "line 4: the source has 6 tokens, dataset.max_source_tokens is 2: that leaves none for the "
        "source after the prefix"
    )


def test_a_skipped_row_is_a_record_and_no_failure() -> None:
    found = prepared(LONG, config(max_source_tokens=4, too_long="skip"))
    assert isinstance(found, dict)
    assert (found["finish_reason"], found["error"]) == ("skip", None)
    assert found["skipped"] == "line 4: the source has 5 tokens, dataset.max_source_tokens is 4"
    assert (found["input"], found["target"], found["output"]) == (LONG, "ref", None)
    assert not is_answer(found)


def test_positions_bound_prompt_and_new_tokens_of_a_decoder() -> None:
    job = config({"max_new_tokens": 6})
    assert ids(prepared(LONG, job, seq2seq=False, positions=10)) == [1, 2, 3, 4]
    found = prepared(LONG, job, seq2seq=False, positions=9)
    assert error(found) == "line 4: the source has 4 tokens, 6 new ones leave 3 of 9 positions"
    assert "leave 0 of 5" in error(prepared("a", job, seq2seq=False, positions=5))
    cut = config({"max_new_tokens": 6}, too_long="truncate")
    assert ids(prepared(LONG, cut, seq2seq=False, positions=9)) == [1, 2, 3]
    both = config({"max_new_tokens": 6}, max_source_tokens=2)
    assert "max_source_tokens is 2" in error(prepared(LONG, both, seq2seq=False, positions=9))
    assert ids(prepared(LONG, job, positions=5)) == [1, 2, 3, 4, END]


def test_a_row_that_no_cache_holds_is_an_error_with_the_numbers() -> None:
    job = config({"beams": 3, "max_new_tokens": 10})
    assert ids(prepared("a bb", job, cache_tokens=33))
    assert error(prepared("a bb", job, cache_tokens=32)) == (
        "line 4: 3 tokens and 10 new ones of 3 beams take 33 of the cache, a device has room for 32"
    )
    own = prepared(row("a bb", max_new_tokens=11), job, cache_tokens=33)
    assert "take 36 of the cache" in error(own)


def test_an_id_outside_of_the_vocabulary_is_an_error_with_the_bound() -> None:
    assert ids(prepared("a" * 49))
    assert error(prepared("a" * 50)) == (
        "line 4: token id 50 is outside of the model's vocabulary of 50"
    )


def answer(n: int = 1, logprobs: bool = False) -> Generated:
    found = [
        Hypothesis([2, 3 + i, END], -0.5 - i, -1.5 - i, "eos", [-0.5] * 3 if logprobs else None)
        for i in range(n)
    ]
    return Generated(found, [[1, 2e-5]])


def test_record_by_hand() -> None:
    request = prepared(row("a bb", target="xx xxx"))
    assert isinstance(request, GenerateRequest)
    assert make_task(config()).record(request, answer(), Words()) == {
        "id": "key",
        "key": "key",
        "index": 3,
        "line": 4,
        "input": "a bb",
        "target": "xx xxx",
        "output": "xx xxx",
        "output_ids": [2, 3, END],
        "finish_reason": "eos",
        "error": None,
        "cum_logprob": -1.5,
        "near_ties": [[1, 2e-5]],
        "output_tokens": 3,
        "tokens": 3,
        "chrf": 100.0,
    }


def test_record_of_beams_with_all_that_can_be_asked_for() -> None:
    job = config({"beams": 3, "n_best": 2, "token_logprobs": True}, target_column=None)
    request = prepared(row("a bb", target=None), job)
    assert isinstance(request, GenerateRequest)
    record = make_task(job).record(request, answer(2, logprobs=True), Words())
    assert (record["target"], record["score"]) == (None, -0.5)
    assert record["token_logprobs"] == [-0.5] * 3
    assert record["hypotheses"] == [
        {
            "output": f"xx {'x' * (3 + i)}",
            "output_ids": [2, 3 + i, END],
            "score": -0.5 - i,
            "cum_logprob": -1.5 - i,
            "finish_reason": "eos",
            "token_logprobs": [-0.5] * 3,
        }
        for i in range(2)
    ]
    assert "chrf" not in record
    job = config({"beams": 3})
    one = make_task(job).record(prepared(row("a"), job), answer(), Words())
    assert "hypotheses" not in one
    assert "score" in one


def test_chrf_of_a_record_is_sacrebleus() -> None:
    request = prepared(row("a", target="xx xxxx x"))
    assert isinstance(request, GenerateRequest)
    record = make_task(config()).record(request, answer(), Words())
    expected = CHRF().sentence_score("xx xxx", ["xx xxxx x"]).score
    assert record["chrf"] == pytest.approx(expected, abs=1e-12)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"hub": "a/b"}, {}, "dataset.path=a.jsonl and dataset.hub=a/b are set"),
    ({"path": None, "hub": "a/b", "sacrebleu": "wmt17"}, {}, "dataset.hub=a/b and dataset.sacrebl"),
    ({"path": None}, {}, "dataset.task=translation has no rows"),
    ({"path": None, "target_path": "b"}, {}, "dataset.target_path=b needs dataset.path=FILE"),
    ({"target_path": "b"}, {}, "dataset.path=a.jsonl: with dataset.target_path both are text"),
    ({"path": "a", "target_path": "b.csv.gz"}, {}, "dataset.target_path=b.csv.gz: with"),
    ({"mode": "score"}, {}, "dataset.mode=score: dataset.task=translation generates"),
    ({"ngrams": 2}, {}, "dataset.ngrams=2 with dataset.task=translation"),
    ({"task": "lambada", "mode": "generate", "ngrams": 2}, {}, "dataset.mode=generate: n-grams"),
    ({"task": "lambada", "path": "a", "target_path": "b"}, {}, "dataset.target_path=b: dataset.ta"),
    ({"task": "lambada", "path": None, "sacrebleu": "b"}, {}, "Use dataset.task=translation"),
    ({}, {"beams": 2, "n_best": 3}, "decode.n_best=3 is more than decode.beams=2"),
    ({"task": "lambada"}, {"beams": 2}, "decode.beams=2: dataset.task=lambada with dataset.mode"),
    ({"pair": "ende"}, {}, "dataset.pair=ende: must be two languages as in en-de"),
    ({"pair": "-de"}, {}, "dataset.pair=-de: must be two languages"),
]


@pytest.mark.parametrize(("data", "decode", "reason"), REFUSED, ids=[r[2][:40] for r in REFUSED])
def test_what_does_not_go_together_is_refused_by_name(
    data: dict[str, Any], decode: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        config(decode, **data)
    assert reason in str(refused.value)


def test_what_goes_together_is_not() -> None:
    config({"beams": 1, "length_penalty": 0.6, "early_stopping": True})
    config({"beams": 4}, task="lambada", mode="generate")
    config(path="a.en.gz", target_path="b.de")
    config(path=None, sacrebleu="wmt17", pair="zh-en")


def test_an_encoder_does_not_predict_last_words() -> None:
    check_model_for_task(config(), seq2seq=True)
    check_model_for_task(config(), seq2seq=False)
    for mode in ("auto", "generate"):
        job = config(task="lambada", mode=mode)
        check_model_for_task(job, seq2seq=False)
        with pytest.raises(ConfigError, match=r"dataset=demo_en_de, or a model of family gpt2"):
            check_model_for_task(job, seq2seq=True)
