"""A request of OpenAI's and its answer: several prompts, echo, log-probabilities, best_of, stops;
a request counts as a whole, however its prompts end.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from test_prompt_files import openai
from test_prompts import Letters, Nothing, config, prepared, request

from ftjob.config.groups import JobConfig
from ftjob.errors import RunFolderError
from ftjob.results.exports import ERRORS, OUTPUT, export
from ftjob.results.folder import RunFolder, write_json
from ftjob.tasks import make_task
from ftjob.tasks.base import Generated, Hypothesis, Row
from ftjob.tasks.rows import RowSource

Json = dict[str, Any]


def rows(path: Path, lines: list[Any], left_out: bytes = b"", **data: Any) -> list[Row]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = RowSource(config(str(path), data).dataset)
    source.check()
    return list(source.rows(left_out))


def hypothesis(ids: list[int], cum: float, reason: Any = "length") -> Hypothesis:
    return Hypothesis(ids, cum, cum, reason, [cum / len(ids)] * len(ids))


def record(row: Row, job: JobConfig, *found: Hypothesis, encoder: Any = None) -> Json:
    asked = request(prepared(row, job, encoder))
    prompt = [-0.25] * (len(asked.ids) - 1) if asked.options.prompt_logprob else None
    return make_task(job).record(asked, Generated(list(found), [], prompt), encoder or Letters())


def files(folder: Path, job: JobConfig, records: list[Any]) -> tuple[list[Json], list[Json]]:
    """The lines of the output and the error file."""
    status = {"attempt": 0, "rank": 0, "started": "2026-02-03T04:05:06+00:00"}
    write_json(RunFolder(folder).status(0, 0), status)
    export(RunFolder(folder), job, iter(records))
    read = [(folder / name).read_text(encoding="utf-8").splitlines() for name in (OUTPUT, ERRORS)]
    answered, failed = ([json.loads(line) for line in text] for text in read)
    return answered, failed


def test_each_prompt_of_a_request_is_a_row(tmp_path: Path) -> None:
    lines = [
        openai({"prompt": ["ab", "b"], "max_tokens": 3, "seed": 4}, custom_id="x"),
        openai({"prompt": [[5, 6], [7]]}, custom_id="y"),
        openai({"prompt": ["c"]}, custom_id="z"),
        {"prompt": "own", "id": "w"},
    ]
    found = rows(tmp_path / "a.jsonl", lines)
    assert [(r.index, r.line, r.id) for r in found] == [
        *((0, 1, "x#0"), (1, 1, "x#1"), (2, 2, "y#0"), (3, 2, "y#1")),
        *((4, 3, "z"), (5, 4, "w")),
    ]
    assert [r.text or r.prompt_ids for r in found] == ["ab", "b", (5, 6), (7,), "c", "own"]
    assert found[0].own == found[1].own
    assert all(r.error is None for r in found)


def test_rows_left_out_keep_the_others_numbers(tmp_path: Path) -> None:
    lines = [openai({"prompt": ["a", "b", "c"]}, custom_id=f"r{i}") for i in range(3)]
    every = rows(tmp_path / "a.jsonl", lines)
    for flags in (b"\1\1\1", b"\1\0\1\0\1", b"\1" * 9, b"\1\1\1\1\0\0\1"):
        wanted = [r for r in every if r.index >= len(flags) or not flags[r.index]]
        assert rows(tmp_path / "a.jsonl", lines, left_out=flags) == wanted


def test_a_limit_counts_prompts_and_a_request_cut_short_has_no_answer(tmp_path: Path) -> None:
    lines = [openai({"prompt": ["a", "b", "c"]}, custom_id=f"r{i}") for i in range(3)]
    found, job = rows(tmp_path / "a.jsonl", lines, limit=5), config()
    assert len(found) == 5
    answered, failed = files(tmp_path, job, [record(r, job, hypothesis([1], -1)) for r in found])
    assert ([line["custom_id"] for line in answered], failed) == (["r0"], [])


def test_an_answer_has_openais_shape(tmp_path: Path) -> None:
    job = config(num_return_sequences=2, top_k=4)
    asked = {"prompt": ["ab", "b"], "n": 2, "model": "m", "user": "u", "stop": None}
    first, second = rows(tmp_path / "a.jsonl", [openai(asked)])
    pairs = [[[2, 3], [4, 0]], [[5], [6]]]
    made = [
        record(row, job, hypothesis(a, -1), hypothesis(b, -2, "eos" if 0 in b else "length"))
        for row, (a, b) in zip((first, second), pairs, strict=True)
    ]
    (line,), _ = files(tmp_path, job, made)
    assert line == {
        "id": "batch_req_key",
        "custom_id": "r1",
        "response": {
            "status_code": 200,
            "request_id": "key",
            "body": {
                "id": "cmpl-key",
                "object": "text_completion",
                "created": 1770091506,
                "model": "m",
                "choices": [
                    {"index": 0, "text": "cd", "logprobs": None, "finish_reason": "length"},
                    {"index": 1, "text": "e", "logprobs": None, "finish_reason": "stop"},
                    {"index": 2, "text": "f", "logprobs": None, "finish_reason": "length"},
                    {"index": 3, "text": "g", "logprobs": None, "finish_reason": "length"},
                ],
                "usage": {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9},
            },
        },
        "error": None,
    }


def test_one_prompt_that_fails_fails_its_request(tmp_path: Path) -> None:
    job = config()
    lines = [
        openai({"prompt": ["a", "", "b"]}, custom_id="bad"),
        openai({"prompt": "a"}, custom_id="good"),
    ]
    first, second, third, fourth = rows(tmp_path / "a.jsonl", lines)
    made = [
        record(first, job, hypothesis([1], -1)),
        prepared(second, job),
        record(third, job, hypothesis([1], -1)),
        record(fourth, job, hypothesis([1], -1)),
    ]
    answered, failed = files(tmp_path, job, made)
    assert [line["custom_id"] for line in answered] == ["good"]
    assert [line["custom_id"] for line in failed] == ["bad"]
    assert failed[0]["error"]["line"] == 1
    assert "the prompt has no tokens" in failed[0]["error"]["message"]


@pytest.mark.parametrize("prompt", ["ab", [27, 28]])
def test_echo_gives_the_prompt_with_its_log_probabilities(tmp_path: Path, prompt: Any) -> None:
    job = config()
    asked = openai({"prompt": prompt, "echo": True, "logprobs": 0, "temperature": 0})
    (row,) = rows(tmp_path / "a.jsonl", [asked])
    made = record(row, job, hypothesis([2, 3], -1))
    assert made["prompt_token_logprobs"] == [-0.25]
    ((line,), _) = files(tmp_path, job, [made])
    (choice,) = line["response"]["body"]["choices"]
    # the letters of ids 47 and 48, or of 27 and 28
    own = [chr(97 + i) for i in ([47, 48] if prompt == "ab" else prompt)]
    assert choice["text"] == ("ab" if prompt == "ab" else "".join(own)) + "cd"
    assert choice["logprobs"] == {
        "tokens": [*own, "c", "d"],
        "token_logprobs": [None, -0.25, -0.5, -0.5],
        "top_logprobs": None,
        "text_offset": [0, 1, 2, 3],
    }


def test_without_a_tokenizer_ids_stand_for_tokens(tmp_path: Path) -> None:
    job = config()
    asked = openai({"prompt": [5, 6], "echo": True, "logprobs": 0, "temperature": 0})
    (row,) = rows(tmp_path / "a.jsonl", [asked])
    made = record(row, job, hypothesis([2], -1), encoder=Nothing())
    ((line,), _) = files(tmp_path, job, [made])
    (choice,) = line["response"]["body"]["choices"]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == (None, None)
    assert choice["logprobs"]["tokens"] == ["token_id:5", "token_id:6", "token_id:2"]


def test_of_best_of_the_likeliest_by_token_are_given(tmp_path: Path) -> None:
    job = config(num_return_sequences=3, top_k=4)
    (row,) = rows(tmp_path / "a.jsonl", [openai({"prompt": "a", "n": 2, "best_of": 3})])
    made = record(
        row, job, hypothesis([1], -1.0), hypothesis([2, 2, 2, 2], -2.0), hypothesis([3, 3], -1.5)
    )
    ((line,), _) = files(tmp_path, job, [made])
    body = line["response"]["body"]
    assert [c["text"] for c in body["choices"]] == ["cccc", "dd"]
    assert body["usage"]["completion_tokens"] == 7


def test_answers_that_draw_nothing_are_made_once(tmp_path: Path) -> None:
    job = config()
    (row,) = rows(tmp_path / "a.jsonl", [openai({"prompt": "a", "n": 3, "temperature": 0})])
    ((line,), _) = files(tmp_path, job, [record(row, job, hypothesis([1], -1.0))])
    assert [(c["index"], c["text"]) for c in line["response"]["body"]["choices"]] == [
        *((0, "b"), (1, "b"), (2, "b"))
    ]


@pytest.mark.parametrize(
    ("stop", "ids", "reason", "text", "tokens", "finish"),
    [
        (["d"], [2, 3], "stop", "c", ["c"], "stop"),
        ("de", [2, 3, 4, 5], "length", "c", ["c"], "stop"),  # met by tokens of another kind
        (["x", "e", "d"], [2, 3, 4], "stop", "c", ["c"], "stop"),
        (["x"], [2, 3], "length", "cd", ["c", "d"], "length"),
        (["c"], [2, 3], "length", "", [], "stop"),
    ],
)
def test_the_text_ends_before_the_first_stop(
    tmp_path: Path, stop: Any, ids: list[int], reason: str, text: str, tokens: Any, finish: str
) -> None:
    job = config()
    (row,) = rows(tmp_path / "a.jsonl", [openai({"prompt": "a", "stop": stop, "logprobs": 0})])
    ((line,), _) = files(tmp_path, job, [record(row, job, hypothesis(ids, -1, reason))])
    (choice,) = line["response"]["body"]["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, finish)
    assert choice["logprobs"]["tokens"] == tokens
    assert len(choice["logprobs"]["token_logprobs"]) == len(tokens)


def test_of_both_files_the_one_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The kernel's limit on the size of a file stands for a full disk; both files are open."""
    job = config()
    (row,) = rows(tmp_path / "a.jsonl", [openai({"prompt": "a"})])
    answered = record(row, job, hypothesis([1], -1))
    files(tmp_path, job, [answered])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        with pytest.raises(RunFolderError, match=f"/{OUTPUT}: cannot be written: File too large"):
            export(RunFolder(tmp_path), job, [answered] * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
