"""Files of prompts, in and out: OpenAI's batch files, tables, ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from test_prompts import Letters, answer, config, error, of, request

from ftjob.errors import ConfigError, DataError
from ftjob.results.exports import ERRORS, OUTPUT, PARQUET, export
from ftjob.results.folder import RunFolder
from ftjob.tasks import make_task
from ftjob.tasks.base import (
    Row,
)
from ftjob.tasks.rows import RowSource


def openai(body: dict[str, Any], **more: Any) -> dict[str, Any]:
    line = {"custom_id": "r1", "method": "POST", "url": "/v1/completions", "body": body}
    return line | more


def test_a_request_of_openais_has_openais_defaults() -> None:
    job = config(num_return_sequences=3, top_k=9, temperature=0.3)
    found = request(of(openai({"prompt": "ab", "model": "m"}), config(top_p=0.5)))
    o = found.options
    assert (found.max_new_tokens, o.temperature, o.top_p) == (16, 1.0, 1.0)
    assert (found.row.id, o.num_return_sequences) == ("r1", 1)
    body = {
        **{"prompt": [5, 6], "max_tokens": 4, "temperature": 0, "n": 1, "stop": "b", "seed": 8},
        **{"logprobs": 1, "presence_penalty": 0.5, "echo": False, "user": "u", "top_p": None},
    }
    found = request(of(openai(body), job))
    o = found.options
    assert (found.ids, found.max_new_tokens, o.drawn) == ([5, 6], 4, False)
    assert (o.seed, o.presence_penalty, o.token_logprobs) == (8, 0.5, True)
    assert o.stops == ((48,),)
    assert request(of(openai({"prompt": ["ab"], "n": 3}), config(num_return_sequences=3, top_p=1)))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (openai({"prompt": []}), "prompt has 0 prompts, must be from 1 to 2048"),
        (openai({"prompt": ["a"] * 2049}), "prompt has 2049 prompts, must be from 1 to 2048"),
        (openai({"prompt": ["a", [1]]}), "prompt must be a list of texts, or one of lists of"),
        (openai({"prompt": "a", "echo": 1}), "echo=1: must be true or false"),
        (openai({"prompt": "a", "logprobs": 6}), "logprobs=6: must be from 0 to 5"),
        (openai({"prompt": "a", "logprobs": True}), "logprobs=True: must be from 0 to 5"),
        (openai({"prompt": "a", "stream": True}), "stream=True is not supported"),
        (openai({"prompt": "a", "suffix": "b"}), "suffix='b' is not supported"),
        (openai({"prompt": "a", "n": 0}), "n=0: must be from 1 to 128"),
        (openai({"prompt": "a", "best_of": "2"}), "best_of='2': must be from 1 to 128"),
        (openai({"prompt": "a", "best_of": 1, "n": 2}), "best_of=1 is less than n=2"),
        (openai({"prompt": "a", "logit_bias": {"5": 1}}), "logit_bias={'5': 1} is not supported"),
        (openai({"prompt": "a", "best_of": 3}), "is more than the run's decode.num_return_seq"),
        (openai({"prompt": "a", "top": 3}), "no such parameter of /v1/completions: 'top'"),
        (openai({"prompt": "a", "stop": ["a"] * 5}), "stop has 5 texts, must be at most 4"),
        (openai({"prompt": "a", "n": 2}), "is more than the run's decode.num_return_sequences=1"),
        (openai({"prompt": "a"}, url="/v1/chat/completions"), "must be a POST to /v1/completions"),
        (openai({"prompt": "a"}, custom_id=5), "custom_id must be text"),
        (openai("x"), "body must be an object"),  # type: ignore[arg-type]
        (openai({"model": "m"}), "no 'prompt' and no 'prompt_ids'"),
        (openai({"prompt": "a", "max_tokens": 0}), "max_tokens=0: must be from 1 to 65536"),
    ],
)
def test_what_is_wrong_with_a_request_of_openais(line: Any, said: str) -> None:
    assert said in error(of(line))


def test_batch_files_answer_every_request_once(tmp_path: Path) -> None:
    job = config(num_return_sequences=2, top_k=4)
    good = request(of(openai({"prompt": "ab", "model": "m", "n": 2, "stop": ["d"]}), job))
    records = [
        make_task(job).record(good, answer([2, 3], [2, 5], reason="stop"), Letters()),
        of(openai({"prompt": [], "model": "m"}, custom_id="r2"), job),
        make_task(job).record(request(of({"prompt": "a"}, job)), answer([1]), Letters()),
    ]
    folder = RunFolder(tmp_path)
    export(folder, job, iter(records))  # type: ignore[arg-type]
    (output,) = [json.loads(line) for line in (tmp_path / OUTPUT).read_text().splitlines()]
    assert (output["custom_id"], output["error"]) == ("r1", None)
    body = output["response"]["body"]
    assert output["response"]["status_code"] == 200
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert [c["text"] for c in body["choices"]] == ["c", "cf"]
    assert [c["finish_reason"] for c in body["choices"]] == ["stop", "stop"]
    (failed,) = [json.loads(line) for line in (tmp_path / ERRORS).read_text().splitlines()]
    assert (failed["custom_id"], failed["response"]) == ("r2", None)
    assert failed["error"]["line"] == 4
    assert "prompt has 0 prompts" in failed["error"]["message"]
    assert not (tmp_path / PARQUET).exists()


def test_no_batch_files_without_requests(tmp_path: Path) -> None:
    record = make_task(config()).record(request(of({"prompt": "a"})), answer([1]), Letters())
    export(RunFolder(tmp_path), config(), [record])
    assert not list(tmp_path.iterdir())


def rows(path: Path, **data: Any) -> list[Row]:
    source = RowSource(config(str(path), data).dataset)
    source.check()
    return list(source.rows())


def test_jsonl_without_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    without = [{"prmpt": "a", "top_k": 2}] * 9
    path.write_text("".join(json.dumps(line) + "\n" for line in without), encoding="utf-8")
    said = r"lines 1 to 8: no field 'prompt' \(dataset.column\) and no 'prompt_ids'. Did you"
    with pytest.raises(DataError, match=said):
        rows(path)
    for good in ({"prompt_ids": [1]}, {"prompt": None}, openai({"model": "m"})):
        lines = [*without[:2], good, *without]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        assert "no such field: 'prmpt'" in (rows(path)[0].error or "")


def test_text_csv_and_parquet_rows(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one\n\ntwo\n")
    assert [(r.line, r.text, r.error) for r in rows(text)] == [
        (1, "one", None),
        (2, "", None),
        (3, "two", None),
    ]
    table = tmp_path / "a.csv"
    table.write_text(
        "prompt,id,top_k,bad_words,stop_words,prompt_ids\n"
        'one,x,3,"a, b","[[1, 2]]",\n5,y,,,,\n,z,,,,"[7, 8]"\n,w,4,,,\n'
    )
    first, second, third, fourth = rows(table)
    assert first.own == (("bad_words", "a, b"), ("stop_words", ((1, 2),)), ("top_k", 3))
    assert (first.text, first.id, second.text, third.prompt_ids) == ("one", "x", "5", (7, 8))
    assert (fourth.id, fourth.error) == ("w", "line 5: no 'prompt' and no 'prompt_ids'")
    columns = {
        "prompt": ["one", None],
        "prompt_ids": [None, [4, 5]],
        "top_k": [2.0, float("nan")],
        "stop_words": [["a"], None],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    first, second = rows(tmp_path / "a.parquet")
    assert first.own == (("stop_words", ("a",)), ("top_k", 2))
    assert (second.prompt_ids, second.own) == ((4, 5), ())


def test_tables_are_refused_before_the_run(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("text,top_k\na,1\n")
    with pytest.raises(DataError, match=r"no column 'prompt' \(dataset.column\) and no 'prompt_i"):
        rows(table)
    table.write_text("prompt,topk\na,1\n")
    with pytest.raises(DataError, match=r"no such option: 'topk'. Did you mean top_k"):
        rows(table)
    table.write_text("prompt,id\na,1\nb,2\nc,1\n")
    with pytest.raises(DataError, match="id '1' is on line 2 and again on line 4"):
        rows(table)


def test_an_id_twice_names_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines: list[Any] = [{"prompt": "a", "id": "r1"}, {"prompt": "b"}, openai({"prompt": "c"})]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="id 'r1' is on line 1 and again on line 3"):
        rows(path)


def test_parquet_out(tmp_path: Path) -> None:
    job = config("a.parquet", num_return_sequences=2, top_k=4)
    two = request(of({"prompt": "ab", "token_logprobs": True}, job))
    records = [
        make_task(job).record(two, answer([2, 3], [4]), Letters()),
        of({"prompt": ""}, job),
    ]
    export(RunFolder(tmp_path), job, iter(records))  # type: ignore[arg-type]
    first, second = pyarrow.parquet.read_table(tmp_path / PARQUET).to_pylist()
    assert (first["output"], first["output_ids"], first["tokens"]) == ("cd", [2, 3], 2)
    assert [h["output_ids"] for h in first["hypotheses"]] == [[2, 3], [4]]
    assert (second["output"], second["hypotheses"]) == (None, None)
    assert "the prompt has no tokens" in second["error"]


def test_prompts_need_a_file_and_generate() -> None:
    with pytest.raises(ConfigError, match=r"dataset.task=prompts has no rows"):
        config(path=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"dataset.mode=score: dataset.task=prompts generates"):
        config(data={"mode": "score"})
    for name in ("id", "prompt_ids"):
        with pytest.raises(ConfigError, match=f"dataset.column={name}: has a meaning of its own"):
            config(data={"column": name})
