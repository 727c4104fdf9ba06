"""Rows that somebody got wrong: each is an error record of its line and the others go on, or the
file is refused by line before the run; nothing is taken for something else in silence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from test_prompts import config, error, of, prepared, request

from ftjob.errors import DataError
from ftjob.results.folder import RunFolder
from ftjob.results.journal import JournalWriter
from ftjob.tasks.base import GenerateRequest
from ftjob.tasks.rows import RowSource


def read(path: Path, raw: bytes) -> list[str]:
    """What becomes of each row: its error, or its text."""
    path.write_bytes(raw)
    job = config(str(path), max_new_tokens=8)
    source = RowSource(job.dataset)
    source.check()
    found = [prepared(row, job) for row in source.rows()]
    return [str(f.row.text) if isinstance(f, GenerateRequest) else str(f["error"]) for f in found]


OPENAI = {"custom_id": "x", "method": "POST", "url": "/v1/completions"}
LINES: dict[str, tuple[Any, str]] = {
    "twice": (b'{"prompt": "a", "prompt": "b"}', "field 'prompt' is there twice"),
    "option twice": (b'{"prompt": "a", "top_k": 2, "top_k": 2}', "field 'top_k' is there twice"),
    "truth as id": ({"prompt": "a", "id": True}, "id is True, must be text or a whole number"),
    "real id": ({"prompt": "a", "id": 1.5}, "id is 1.5, must be"),
    "no UTF-8 in the id": (b'{"prompt": "a", "id": "\\ud800"}', "invalid UTF-8 at character"),
    "no UTF-8 in a word": (b'{"prompt": "a", "bad_words": ["\\uDC00"]}', "invalid UTF-8"),
    "no UTF-8 in a name": (b'{"prompt": "a", "\\ud800": 1}', "invalid UTF-8"),
    "no UTF-8 of OpenAI's": (
        json.dumps({**OPENAI, "body": {"prompt": "a", "model": "\ud800"}}).encode(),
        "invalid UTF-8",
    ),
    "not a number": (b'{"prompt": "a", "temperature": NaN}', "temperature=nan: must be at least 0"),
    "endless": (b'{"prompt": "a", "presence_penalty": -Infinity}', "must be a finite number"),
    "too large a real": (b'{"prompt": "a", "top_p": 1e999}', "top_p=inf: must be from 0 to 1"),
    "prompt not a number": (b'{"prompt": NaN}', "expected text, found float"),
    "no word of 64 bits": ({"prompt": "a", "top_k": 10**400}, "Whole numbers have at most 64 bits"),
    "no id of 64 bits": ({"prompt_ids": [10**30]}, "is outside of the model's vocabulary"),
    "no number at all": (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "not JSON: Exceeds"),
    "deep": (b'{"prompt": ' + b"[" * 100_000, "not JSON: maximum recursion"),
    "number as word": ({"prompt": "a", "stop_words": 5}, "stop_words=5: must be [int"),
    "real as word": ({"prompt": "a", "stop_words": [1.5]}, "stop_words=[1.5]: must be [int"),
    "empty word": ({"prompt": "a", "stop_words": [[]]}, "stop_words=[[]]: must be [int"),
    "line end as CSV": (
        {"prompt": "a", "stop_words": "\n"},
        r"stop_words: '\n' is a row of CSV without a word; give a list of texts",
    ),
    "lines as CSV": ({"prompt": "a", "bad_words": "a\nb"}, r"bad_words: 'a\nb' is no row of CSV"),
    "quote as CSV": ({"prompt": "a", "bad_words": '"a'}, "bad_words: '\"a' is no row of CSV"),
    "list of reals": ({"prompt_ids": [1.0]}, "prompt_ids is [1.0], must be a list of token ids"),
    "list of truths": ({"prompt_ids": [True]}, "must be a list of token ids"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_wrong_line_is_an_error_record_that_can_be_written(tmp_path: Path, name: str) -> None:
    line, said = LINES[name]
    found = of(line)
    assert said in error(found)
    assert isinstance(found, dict)
    writer = JournalWriter(RunFolder(tmp_path), 0, 0, "identity", {})
    writer.append([found | {"key": "0" * 32}])
    writer.close()


def test_messages_stay_short_whatever_is_in_the_row() -> None:
    for line in ({"prompt": "a", "top_k": "x" * 10**6}, {"prompt": "a", "y" * 10**6: 1}):
        assert len(error(of(line))) < 1500


def test_no_words_are_none() -> None:
    assert request(of({"prompt": "a", "stop_words": [], "bad_words": ""})).options.stops == ()
    own = config(stop_words=["b"])
    assert request(of({"prompt": "a", "stop_words": []}, own)).options.stops == ()


def test_jsonl_with_bom_crlf_blank_and_long_lines(tmp_path: Path) -> None:
    raw = b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n   \n{"prompt": "%s"}\n\xff{"prompt": "c"}\n{"p'
    found = read(tmp_path / "a.jsonl", raw % (b"b" * 5_000_000))
    assert found[0] == "a"
    assert found[1].startswith("line 4: the prompt has 5000000 tokens")
    assert found[2] == "line 5: invalid UTF-8 at byte 0"
    assert found[3].startswith("line 6: not JSON")
    assert len(found) == 4


def test_text_keeps_its_blank_lines_as_rows(tmp_path: Path) -> None:
    found = read(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo\rx\r\n\xff\nlast")
    assert found[0] == "one"
    assert found[1].startswith("line 2: the prompt has no tokens")
    assert found[2:] == ["two\rx", "line 4: invalid UTF-8 at byte 0", "last"]


def test_csv_cells(tmp_path: Path) -> None:
    rows = [
        b"\xef\xbb\xbfprompt,id,top_k,token_logprobs",
        *(b"a,1,2,True", b"b,2,2.0,", b"c,3", b"d,4,5,6,7", b"e,5,NaN,", b"f,6,1e400,"),
        *(b'"g\r\nh",7,,false', b"\xff,8,,", b"i,\xff,,", b"j,10,,perhaps"),
    ]
    found = read(tmp_path / "a.csv", b"\r\n".join(rows))
    assert found[:2] == ["a", "b"]
    assert found[2:4] == [
        "line 4: expected 4 fields, found 2",
        "line 5: expected 4 fields, found 5",
    ]
    assert "line 6: top_k=nan: must be int" in found[4]
    assert "line 7: top_k=inf: must be int" in found[5]
    assert found[6] == "g\r\nh"
    assert found[7] == "line 10: invalid UTF-8 in 'prompt' at character 0"
    assert found[8] == "line 11: invalid UTF-8 in 'id' at character 0"
    assert "line 12: token_logprobs=perhaps: must be bool" in found[9]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'prompt,id\na,1\n"b,2\nc,3\n', "line 3: a quote is opened there and never closed"),
        (b'prompt,id\n"a"x,1\nb,2\n', "line 2: ',' expected after '\"'"),
        (b"prompt,prompt\na,b\n", "line 1: 2 columns are called 'prompt'"),
        (b"prompt,\na,b\n", "line 1: no such option: ''"),
        (b"prompt,id\n", "holds no rows"),
        (b"", "holds no rows"),
    ],
)
def test_csv_that_would_lose_rows_is_refused(tmp_path: Path, raw: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path / "a.csv", raw)


def test_parquet_cells_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"

    def rows(**columns: Any) -> list[str]:
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return read(path, path.read_bytes())

    assert "must be a list of token ids" in rows(prompt_ids=[[1.0]])[0]
    assert "found bytes" in rows(prompt=[b"a"])[0]
    assert "id is False" in rows(prompt=["a"], id=[False])[0]
    assert rows(prompt=["a", "b"], temperature=[float("nan"), 1.0]) == ["a", "b"]
    assert rows(prompt=["a", "b"], stop_words=[[], None]) == ["a", "b"]
    found = rows(prompt=["a", "b"], top_k=[2.5, 2.0])
    assert "top_k=2.5: must be int" in found[0]
    assert found[1] == "b"
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"])
    pyarrow.parquet.write_table(twice, path)
    with pytest.raises(DataError, match="2 columns are called 'prompt'"):
        read(path, path.read_bytes())
