"""Reading a dataset: every format gives the same rows, a malformed row becomes a row with an error
and its line number while the rest goes on, and a file that cannot be read is refused by name.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ftjob.config.groups import DatasetConfig
from ftjob.errors import UNREADABLE, DataError
from ftjob.tasks.base import Row
from ftjob.tasks.ids import Doubled, doubled_id
from ftjob.tasks.rows import RowSource
from ftjob.tasks.values import RowMaker

TEXTS = ["the cat sat", 'a "quoted", comma', "naïve café 漢字 🙂", "two\nlines here", " edge "]


def read(path: Path | str, **keys: Any) -> list[Row]:
    return list(RowSource(DatasetConfig(path=str(path), **keys)).rows())


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"n": 1, "text": t}) + "\n" for t in TEXTS), "utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if ".tsv" in path.suffixes else ",")
        writer.writerows([["n", "text"], *(["1", t] for t in TEXTS)])


def write_parquet(path: Path) -> None:
    table = pyarrow.table({"n": [1] * len(TEXTS), "text": TEXTS})
    pyarrow.parquet.write_table(table, path, row_group_size=2)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.jsonl": write_jsonl,
    "a.json": write_jsonl,
    "A.JSONL": write_jsonl,
    "a.csv": write_csv,
    "a.tsv": write_csv,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("flags", [b"\1\0\1", b"\1\1\1\0\0", b"\1" * 5, b""])
def test_rows_left_out_are_not_made(
    tmp_path: Path, name: str, flags: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    every, made = read(path), list[int]()
    for kind in ("of_json", "of_fields"):
        real = getattr(RowMaker, kind)

        def counting(self: Any, index: int, *rest: Any, real: Any = real) -> Any:
            made.append(index)
            return real(self, index, *rest)

        monkeypatch.setattr(RowMaker, kind, counting)
    source = RowSource(DatasetConfig(path=str(path)))
    wanted = [r for r in every if r.index >= len(flags) or not flags[r.index]]
    assert list(source.rows(flags)) == wanted
    assert source.total == len(every)
    if path.suffix != ".parquet" or not wanted:  # of a table whole batches are skipped
        assert {*made} == {r.index for r in wanted}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    rows = read(path)
    assert [r.text for r in rows] == TEXTS
    assert [r.content for r in rows] == [t.encode() for t in TEXTS]
    assert [r.index for r in rows] == list(range(5))
    assert [r.error for r in rows] == [None] * 5


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_compressed_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert read(packed) == read(tmp_path / name)


def test_limit_gives_the_first_rows_and_counts_all(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl")
    source = RowSource(DatasetConfig(path=str(tmp_path / "a.jsonl"), limit=2))
    assert [r.text for r in source.rows()] == TEXTS[:2]
    assert source.total == 5


def test_other_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "no", "passage": "yes"}\n')
    assert [r.text for r in read(tmp_path / "a.jsonl", column="passage")] == ["yes"]


def test_shipped_file_has_5153_rows() -> None:
    source = RowSource(DatasetConfig(limit=1))
    (row,) = source.rows()
    assert source.total == 5153
    assert row.text is not None
    assert row.text.startswith("In my palm is a clear stone")
    assert source.name == "shipped lambada_test.jsonl.gz"


DEEP = b"[" * 200_000
MALFORMED = {
    "not JSON": (b'{"text": "torn', "not JSON"),
    "no object": (b'["text"]', "no field 'text' (found: list)"),
    "no field": (b'{"txt": "a b", "id": 3}', "no field 'text' (found: txt, id)"),
    "number": (b'{"text": 5}', "expected text, found int"),
    "null": (b'{"text": null}', "expected text, found NoneType"),
    "list": (b'{"text": ["a b"]}', "expected text, found list"),
    "invalid UTF-8": (b'{"text": "caf\xe9 au lait"}', "invalid UTF-8 at byte 13"),
    "UTF-16": ('{"text": "a b"}'.encode("utf-16-le"), "line 4"),
    "lone surrogate": (b'{"text": "a \\ud800 b"}', "invalid UTF-8 at character 2"),
    "surrogate in a name": (b'{"\\ud800": "a b"}', "no field 'text'"),
    "nested too deep": (b'{"text": ' + DEEP, "line 4"),
    "huge number": (b'{"text": ' + b"9" * 5000 + b"}", "line 4"),
}


@pytest.mark.parametrize(("raw", "reason"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_line_is_an_error_with_its_line_number(
    tmp_path: Path, raw: bytes, reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a b"}\n\n \r\n' + raw + b'\r\n{"text": "c d"}')
    before, bad, after = read(path)
    assert (before.text, before.line, after.text, after.line) == ("a b", 1, "c d", 5)
    assert (bad.index, bad.line, bad.text) == (1, 4, None)
    assert bad.error is not None
    assert bad.error.startswith("line 4: ")
    assert reason in bad.error
    assert bad.content == raw
    assert bad.error.encode("utf-8")  # it goes to the journal, which is UTF-8
    assert len(bad.error) < 1000


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n\n{"text": "a b"}\n   \n\t\n{"text": "c d"}\r\n\r\n{"text": "e f"}')
    assert [(r.index, r.line) for r in read(path)] == [(0, 3), (1, 6), (2, 8)]


def test_unusual_line_separators_stay_within_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\u2028b\u0085c\u000bd e"}\n', "utf-8", newline="")
    path.write_bytes(path.read_bytes().replace(b"\x0b", b"\\u000b"))
    assert [r.text for r in read(path)] == ["a\u2028b\u0085c\u000bd e"]


def test_own_id_of_a_row_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a7", "text": "a b"}\n{"id": "a8", "text": "a b"}\n')
    assert [r.id for r in read(path)] == ["a7", "a8"]


def check_refusal(path: Path, **keys: Any) -> str:
    """What is refused before anything starts."""
    with pytest.raises(DataError) as refused:
        RowSource(DatasetConfig(path=str(path), **keys)).check()
    return str(refused.value)


SAME_ID = {
    "text": (b'{"text": "a b", "id": "x"}', b'{"id": "x", "text": "c d"}', "'x'"),
    "number and text": (b'{"text": "a b", "id": 7}', b'{"text": "c d", "id": "7"}', "'7'"),
    "escaped name": (b'{"text": "a b", "\\u0069d": "x"}', b'{"text": "", "id": "x"}', "'x'"),
    "escaped value": (
        b'{"text": "a b", "id": "\\u00e4"}',
        '{"text": "", "id": "ä"}'.encode(),
        "'ä'",
    ),
    "of a row with an error": (b'{"text": 5, "id": "x"}', b'{"text": "a b", "id": "x"}', "'x'"),
}


@pytest.mark.parametrize(("one", "two", "named"), SAME_ID.values(), ids=SAME_ID.keys())
@pytest.mark.parametrize("packed", [False, True])
def test_an_id_that_two_rows_have_is_refused_with_both_lines(
    tmp_path: Path, one: bytes, two: bytes, named: str, packed: bool
) -> None:
    others = [json.dumps({"text": "a b", "id": f"row {i}"}).encode() for i in range(50)]
    content = b"\n".join([*others[:20], one, b"", *others[20:], two, one]) + b"\n"
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert check_refusal(path) == (
        f"{path}: id {named} is on line 21 and again on line 53; ids must be unique"
    )
    assert check_refusal(path, limit=2)  # which a larger limit would meet


def test_ids_that_differ_are_no_double(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    odd = ['{"id": "x"}', '{"id": "x"', '["id"]', '{"text": "a b", "id": null}', '{"id": "x"}']
    rows = [json.dumps({"text": "a b", "id": i}) for i in range(40)]
    rows += [json.dumps({"text": "a b", "id": [1]}), '{"text": "a b"}', '{"text": "a b"}']
    path.write_text("\n".join([*odd, *rows]) + "\n")
    RowSource(DatasetConfig(path=str(path))).check()
    assert [r.id for r in read(path) if r.id is not None] == [str(i) for i in range(40)]


def test_equal_hashes_are_no_equal_ids() -> None:
    class Own(str):
        def __hash__(self) -> int:
            return len(self)

    found = [(1, Own("aa")), (2, Own("bb")), (3, Own("ccc")), (5, Own("bb")), (6, Own("aa"))]
    assert doubled_id(lambda: iter(found)) == Doubled("bb", 2, 5)
    assert doubled_id(lambda: iter(found[:3])) is None
    assert doubled_id(lambda: iter(())) is None


def test_csv_rows_carry_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('n,text\n1,"two\nlines here"\n\n2,c d\n')
    assert [(r.index, r.line, r.text) for r in read(path)] == [
        (0, 2, "two\nlines here"),
        (1, 5, "c d"),
    ]


def test_malformed_csv_rows_are_errors_with_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"n,text\n1,a b\n2\n3,caf\xe9 x\n5,c d\n")
    rows = read(path)
    assert [r.text for r in rows] == ["a b", None, None, "c d"]
    assert [r.line for r in rows] == [2, 3, 4, 5]
    assert "line 3: expected 2 fields, found 1" in str(rows[1].error)
    assert "line 4: invalid UTF-8" in str(rows[2].error)


def test_malformed_csv_text_is_keyed_by_its_raw_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"n,text\n3,caf\xe9 x\n")
    assert [r.content for r in read(path)] == [b"caf\xe9 x"]


def test_csv_text_with_an_unquoted_comma_is_not_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n,text\n4,hello, my friend\n5,c d\n")
    bad, good = read(path)
    assert (bad.line, bad.text, good.text) == (2, None, "c d")
    assert "line 2: " in str(bad.error)


def test_csv_field_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text\n{'word ' * 40_000}end\nshort one\n")
    assert [r.text for r in read(path)] == ["word " * 40_000 + "end", "short one"]


def test_parquet_values_that_are_no_text_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b", None, "c d"]}), path)
    rows = read(path)
    assert [(r.line, r.text) for r in rows] == [(1, "a b"), (2, None), (3, "c d")]
    assert rows[1].error == "line 2: expected text, found NoneType"


def refusal(path: Path | str, **keys: Any) -> str:
    with pytest.raises(DataError) as refused:
        read(path, **keys)
    assert refused.value.code == UNREADABLE
    return str(refused.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_missing_column_is_refused_with_those_there_are(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    message = refusal(tmp_path / name, column="txt")
    assert str(tmp_path / name) in message
    assert "no column 'txt' (dataset.column). Did you mean text? Known: n, text." in message
    assert check_refusal(tmp_path / name, column="txt") == message


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_file_without_rows_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path / name)
    assert check_refusal(tmp_path / name) == refusal(tmp_path / name)


def test_missing_file_and_unknown_ending_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_text("a b")
    message = refusal(tmp_path / "a.txt")
    assert "cannot tell the format from '.txt'" in message
    assert ".jsonl" in message
    (tmp_path / "d.jsonl").mkdir()
    assert "d.jsonl" in refusal(tmp_path / "d.jsonl")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda data: data[: len(data) // 2],
    "torn trailer": lambda data: data[:-4],
    "not gzip": lambda data: b"plain" + data,
    "flipped bytes": lambda data: data[:200] + b"\xff" * 400 + data[600:],
    "wrong checksum": lambda data: data[:-8] + b"\0\0\0\0" + data[-4:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_damaged_gzip_is_refused_by_name(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    rows = [f"{i * 7919 % 100_003} some words {i}" for i in range(4000)]
    if ".csv" in name:
        text = "text\n" + "\n".join(rows)
    else:
        text = "\n".join(json.dumps({"text": row}) for row in rows)
    (tmp_path / name).write_bytes(damage(gzip.compress(text.encode(), mtime=0)))
    message = refusal(tmp_path / name)
    assert name in message
    assert "cannot be read" in message


def test_damaged_parquet_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"x" * 100, whole[:-60] + b"\xff" * 40 + whole[-20:]):
        path.write_bytes(damaged)
        assert str(path) in refusal(path)
