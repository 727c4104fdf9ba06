"""Prompts of the user's own: what a row of each format becomes, with which options, and every row
that becomes none; OpenAI's batch files in and out; Parquet in and out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ftjob.config import build
from ftjob.config.groups import JobConfig
from ftjob.errors import ConfigError
from ftjob.tasks import make_task
from ftjob.tasks.base import (
    Generated,
    GenerateRequest,
    Hypothesis,
    KeyMaker,
    ModelLimits,
    NoTokenizer,
    Row,
)
from ftjob.tasks.options import ARRAYS, OWN
from ftjob.tasks.prompt_rows import PromptMaker

END = 0
Prepared = GenerateRequest | dict[str, Any]


class Letters:
    """An encoder with an id a character."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(c) % 50 for c in text] for text in texts]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return "".join(chr(97 + i) for i in ids if not (skip_special and i == END))


class Nothing:
    """No tokenizer."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        raise NoTokenizer

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        raise NoTokenizer


def config(path: str = "a.jsonl", data: dict[str, Any] | None = None, **decode: Any) -> JobConfig:
    dataset = {"task": "prompts", "path": path, "column": "prompt", **(data or {})}
    return build({"model": {"checkpoint": "PATH"}, "dataset": dataset, "decode": decode})


def limits(**more: Any) -> ModelLimits:
    given: dict[str, Any] = {"positions": 400, "vocab": 50, "ends": (END,), "seq2seq": False}
    return ModelLimits(**(given | more))


def prepared(row: Row, job: JobConfig | None = None, encoder: Any = None, **more: Any) -> Prepared:
    job = job or config(max_new_tokens=8)
    (out,) = make_task(job).prepare([row], ["key"], encoder or Letters(), limits(**more))
    assert isinstance(out, (GenerateRequest, dict))
    return out


def of(line: Any, job: JobConfig | None = None, **more: Any) -> Prepared:
    """What becomes of a JSONL line."""
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    row, *_ = PromptMaker((job or config()).dataset).of_json(3, 4, raw)
    return prepared(row, job, **more)


def request(found: Prepared) -> GenerateRequest:
    assert isinstance(found, GenerateRequest), found
    return found


def error(found: Prepared) -> str:
    assert isinstance(found, dict)
    assert (found["finish_reason"], found["index"], found["line"]) == ("error", 3, 4)
    assert found["error"].startswith("line 4: ")
    return str(found["error"]).removeprefix("line 4: ")


def test_a_text_or_ids_are_a_prompt() -> None:
    assert request(of({"prompt": "ab"})).ids == [47, 48]
    assert request(of({"prompt_ids": [5, 6]})).ids == [5, 6]
    assert request(of({"prompt_ids": [5, 6]}, encoder=Nothing())).ids == [5, 6]
    assert request(of({"prompt": "ab"}, seq2seq=True)).ids == [47, 48, END]
    assert request(of({"prompt_ids": [5, 6]}, seq2seq=True)).ids == [5, 6]
    job = config(data={"prefix": "a"})
    assert request(of({"prompt": "b"}, job)).ids == [47, 48]


def test_options_of_a_row_come_before_the_runs() -> None:
    job = config(top_k=5, temperature=0.5, max_new_tokens=9, bad_words=["ab"])
    run = request(of({"prompt": "a"}, job))
    assert (run.options.top_k, run.options.temperature, run.max_new_tokens) == (5, 0.5, 9)
    assert run.options.bad == ((47, 48),)
    own = request(of({"prompt": "a", "top_k": 7, "max_new_tokens": 3, "seed": None}, job))
    assert (own.options.top_k, own.options.temperature, own.max_new_tokens) == (7, 0.5, 3)
    words = request(of({"prompt": "a", "bad_words": ["b", [1, 2], 3]}, job))
    assert words.options.bad == ((48,), (1, 2), (3,))


def test_every_option_of_a_row_is_taken() -> None:
    given: dict[str, Any] = {
        **{"top_k": 3, "top_p": 0.5, "temperature": 0.7, "repetition_penalty": 1.5},
        **{"presence_penalty": -0.5, "frequency_penalty": 0.25, "min_length": 2},
        **{
            "no_repeat_ngram": 3,
            "bad_words": "ab,b",
            "stop_words": [[1], [2, 3]],
            "end_id": [4, 5],
        },
        **{"start_id": 1, "top_p_min": 0.1, "seed": 9, "length_penalty": 0.5, "n_best": 1},
        **{"num_return_sequences": 2, "token_logprobs": True, "max_new_tokens": 6},
        **{"top_p_decay": None, "top_p_reset": None, "beam_search_diversity_rate": 0},
        **{"prompt_logprob": False},
    }
    assert set(given) == set(OWN)
    job = config(num_return_sequences=4, top_k=2)
    found = request(of({"prompt": "a", **given}, job))
    for name, value in given.items():
        if value is not None and name not in ("bad_words", "stop_words"):
            wanted = tuple(value) if isinstance(value, list) else value
            assert getattr(found.options, name) == wanted, name
    assert found.options.bad == ((47, 48), (48,))
    assert found.options.stops == ((1,), (2, 3))
    again = request(of({"prompt": "a", "top_p": 0.5, "top_p_decay": 0.9, "top_p_reset": 3}))
    assert (again.options.top_p_decay, again.options.top_p_reset) == (0.9, 3)


def test_fastertransformers_word_lists() -> None:
    assert set(ARRAYS) == {"bad_words_list", "stop_words_list"}
    found = request(
        of({"prompt": "a", "bad_words_list": [[5, 6, 7], [1, 3, -1]], "stop_words_list": "a, b"})
    )
    assert found.options.bad == ((5,), (6, 7))
    assert found.options.stops == ((47,), (32, 48))


WRONG: dict[str, tuple[Any, str]] = {
    "range": ({"prompt": "a", "top_k": 1025}, "top_k=1025: must be from 0 to 1024"),
    "type": ({"prompt": "a", "top_p": "x"}, "top_p=x: must be float"),
    "truth": ({"prompt": "a", "seed": True}, "seed=True: must be int"),
    "new tokens": ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens=0: must be from 1"),
    "unknown": ({"prompt": "a", "topk": 1}, "no such field: 'topk'. Did you mean top_k?"),
    "of the run": ({"prompt": "a", "beams": 2}, "no such field: 'beams'"),
    "neither": ({"top_k": 2}, "no 'prompt' and no 'prompt_ids'"),
    "both": ({"prompt": "a", "prompt_ids": [1]}, "a row has one prompt"),
    "no text": ({"prompt": 5}, "expected text, found int"),
    "no ids": ({"prompt_ids": "5 6"}, "must be a list of token ids"),
    "below 0": ({"prompt_ids": [-1]}, "must be a list of token ids"),
    "no object": (b"[1]", "expected a JSON object, found list"),
    "no JSON": (b'{"prompt": ', "not JSON"),
    "no UTF-8": (b'{"prompt": "\xff"}', "invalid UTF-8"),
    "surrogate": (b'{"prompt": "\\ud800"}', "invalid UTF-8"),
    "id": ({"prompt": "a", "id": [1]}, "id is [1], must be text or a whole number"),
    "no id of the vocabulary": ({"prompt_ids": [50]}, "token id 50 is outside"),
    "no word of it": ({"prompt": "a", "stop_words": [[70]]}, "stop_words: id 70 is not in"),
    "end": ({"prompt": "a", "end_id": 50}, "end_id: id 50 is not in the model's vocabulary"),
    "words": ({"prompt": "a", "bad_words": [""]}, "bad_words: the word '' has no tokens"),
    "array": ({"prompt": "a", "bad_words_list": [[1], [2]]}, "bad_words_list: word end 2 must be"),
    "twice": (
        {"prompt": "a", "bad_words": "a", "bad_words_list": [[0], [-1]]},
        "bad_words_list and bad_words are the same option",
    ),
    "empty": ({"prompt": ""}, "the prompt has no tokens"),
    "long": ({"prompt": "a" * 393}, "has 393 tokens, 8 new ones leave 392 of 400 positions"),
    "together": ({"prompt": "a", "min_length": 9}, "min_length=9 is more than max_new_tokens=8"),
    "answers": (
        {"prompt": "a", "top_k": 4, "num_return_sequences": 2},
        "num_return_sequences=2 is more than the run's decode.num_return_sequences=1",
    ),
    "idle": ({"prompt": "a", "temperature": 0.5}, "does nothing to the likeliest token"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_row_is_its_record(name: str) -> None:
    line, said = WRONG[name]
    assert said in error(of(line, config(max_new_tokens=8)))


def test_a_text_without_a_tokenizer_is_an_error() -> None:
    assert "the model has no tokenizer" in error(of({"prompt": "a"}, encoder=Nothing()))
    words = {"prompt_ids": [1], "stop_words": ["a"]}
    assert "the model has no tokenizer" in error(of(words, encoder=Nothing()))
    with pytest.raises(ConfigError, match="the model has no tokenizer"):
        of({"prompt_ids": [1]}, config(bad_words=["a"]), encoder=Nothing())


def test_a_start_id_stands_for_an_empty_prompt() -> None:
    assert request(of({"prompt": "", "start_id": 7})).ids == [7]
    assert request(of({"prompt": "a", "start_id": 7})).ids == [47]


def test_long_prompts_are_cut_at_their_beginning_or_left_out() -> None:
    job = config(data={"too_long": "truncate", "max_source_tokens": 3}, max_new_tokens=8)
    found = request(of({"prompt_ids": [1, 2, 3, 4, 5]}, job))
    assert (found.ids, found.cut_tokens) == ([3, 4, 5], 2)
    assert request(of({"prompt_ids": [1, 2, 3, 4, 0]}, job, seq2seq=True)).ids == [1, 2, 0]
    skipped = of({"prompt": "abcd"}, config(data={"too_long": "skip", "max_source_tokens": 3}))
    assert isinstance(skipped, dict)
    assert (skipped["finish_reason"], skipped["error"]) == ("skip", None)


def test_a_greedy_row_among_drawn_ones_has_one_answer() -> None:
    job = config(top_k=5, num_return_sequences=3)
    assert request(of({"prompt": "a", "top_k": 1}, job)).options.num_return_sequences == 1
    assert request(of({"prompt": "a"}, job)).options.num_return_sequences == 3


def test_keys_tell_options_apart_and_ids_do_not_matter() -> None:
    maker = PromptMaker(config().dataset)

    def key(line: dict[str, Any]) -> str:
        return KeyMaker("").keyed(maker.of_json(0, 1, json.dumps(line).encode())[0])[1]

    assert key({"prompt": "a", "top_k": 2, "seed": 1}) == key(
        {"seed": 1, "top_k": 2, "prompt": "a"}
    )
    assert key({"prompt": "a", "id": 1}) == key({"prompt": "a", "id": 2})
    lines: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": "a", "top_k": 2},
        {"prompt": "a", "top_k": 3},
        {"prompt_ids": [1]},
        {"prompt": "[1]"},
    ]
    assert len({key(line) for line in lines}) == len(lines)


def answer(*ids: list[int], reason: Any = "length") -> Generated:
    return Generated([Hypothesis(list(i), -1.0, -1.0, reason, [-0.5] * len(i)) for i in ids], [])


def test_record_of_a_prompt() -> None:
    job = config()
    found = request(of({"prompt_ids": [5, 6], "id": 12}, job, encoder=Nothing()))
    record = make_task(job).record(found, answer([3, 4]), Nothing())
    assert (record["id"], record["input"], record["prompt_ids"]) == ("12", None, [5, 6])
    assert (record["output"], record["output_ids"], record["tokens"]) == (None, [3, 4], 2)
    assert "hypotheses" not in record
    text = make_task(job).record(request(of({"prompt": "ab"}, job)), answer([3, 4]), Letters())
    assert (text["input"], text["output"]) == ("ab", "de")
    summary = make_task(job).summarise([record, text])
    assert summary.values["output_tokens"] == 4
