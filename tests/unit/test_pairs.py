"""Sources and their references: two text files, columns, nested languages, sacrebleu's test sets.
Every row is there or says why not, and what could not be read at all is refused by name.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ftjob.config.groups import DatasetConfig
from ftjob.errors import UNREADABLE, DataError
from ftjob.tasks.base import KeyMaker, Row
from ftjob.tasks.rows import RowSource
from ftjob.tasks.values import has_references

PAIRS = [("a cat", "eine Katze"), ('"a", b', "naïve 漢字"), ("", "leer"), ("x\u2028y\x0bz", "")]


def config(**keys: Any) -> DatasetConfig:
    return DatasetConfig(**({"task": "translation", "column": "source"} | keys))


def read(**keys: Any) -> list[Row]:
    return list(RowSource(config(**keys)).rows())


def refusal(**keys: Any) -> str:
    source = RowSource(config(**keys))
    with pytest.raises(DataError) as refused:
        source.check()
    assert refused.value.code == UNREADABLE
    return str(refused.value)


def texts(folder: Path, source: bytes, target: bytes) -> dict[str, str]:
    (folder / "a.en").write_bytes(source)
    (folder / "a.de").write_bytes(target)
    return {"path": f"{folder}/a.en", "target_path": f"{folder}/a.de"}


def both(rows: list[Row]) -> list[tuple[str | None, str | None]]:
    return [(r.text, r.target) for r in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_text_files_pair_line_by_line(tmp_path: Path, end: str, packed: bool) -> None:
    files = texts(tmp_path, *("".join(p[i] + end for p in PAIRS).encode() for i in (0, 1)))
    if packed:
        for name, path in files.items():
            Path(f"{path}.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
            files[name] = f"{path}.gz"
    RowSource(config(**files)).check()
    rows = read(**files)
    assert both(rows) == PAIRS
    assert [(r.index, r.line) for r in rows] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [r.error for r in rows] == [None] * 4


def test_a_byte_order_mark_and_a_missing_last_newline_are_no_text(tmp_path: Path) -> None:
    rows = read(**texts(tmp_path, "\ufeffa\nb".encode(), b"c\nd\n"))
    assert both(rows) == [("a", "c"), ("b", "d")]


@pytest.mark.parametrize(("source", "target"), [(b"a\nb\nc\n", b"d\ne\n"), (b"a\n", b"b\n\n")])
def test_unequal_counts_are_refused_before_anything_runs(
    tmp_path: Path, source: bytes, target: bytes
) -> None:
    files = texts(tmp_path, source, target)
    lines = [side.count(b"\n") for side in (source, target)]
    message = refusal(**files)
    assert f"dataset.path={files['path']} has {lines[0]} lines" in message
    assert f"dataset.target_path={files['target_path']} has {lines[1]}" in message
    with pytest.raises(DataError, match="each line must be the translation"):
        read(**files)  # a file that changed after the check


@pytest.mark.parametrize("gone", ["a.en", "a.de"])
def test_an_absent_text_file_is_refused(tmp_path: Path, gone: str) -> None:
    files = texts(tmp_path, b"a\n", b"b\n")
    (tmp_path / gone).unlink()
    message = refusal(**files)
    assert gone in message
    assert "no such file" in message


@pytest.mark.parametrize("bad", [0, 1])
def test_invalid_utf8_is_an_error_of_its_row_naming_the_file(tmp_path: Path, bad: int) -> None:
    sides = [b"a\nb\nc\n", b"x\ny\nz\n"]
    sides[bad] = sides[bad].replace(b"b", b"caf\xe9").replace(b"y", b"caf\xe9")
    files = texts(tmp_path, sides[0], sides[1])
    before, broken, after = read(**files)
    assert both([before, after]) == [("a", "x"), ("c", "z")]
    named = list(files.values())[bad]
    assert broken.error == f"line 2: invalid UTF-8 at byte 3 in {named}"
    assert (broken.text, broken.target, broken.line) == (None, None, 2)


def test_a_text_file_alone_has_no_references(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n\nb\n")
    data = config(path=f"{tmp_path}/a.txt")
    RowSource(data).check()
    assert both(list(RowSource(data).rows())) == [("a", None), ("", None), ("b", None)]
    assert not has_references(data)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_text_file_of_another_ending_needs_its_references_or_a_word(
    tmp_path: Path, packed: str
) -> None:
    """Nothing tells a text of sources from one whose references were forgotten."""
    path = tmp_path / f"test.en{packed}"
    text = b"a\nb\n"
    path.write_bytes(gzip.compress(text) if packed else text)
    message = refusal(path=str(path), sacrebleu="multi30k/2016")
    assert message.startswith(f"dataset.path={path}: a text file, a row a line, has its translat")
    assert "add dataset.target_path=FILE. " in message
    assert "add dataset.target_column=null." in message
    assert "Did you mean" not in message
    (tmp_path / f"test.de{packed}").write_bytes(path.read_bytes())
    assert f"add dataset.target_path={tmp_path}/test.de{packed}. " in refusal(path=str(path))
    assert "target_path=FILE. " in refusal(path=str(path), pair="en-fr")
    assert "target_path=FILE. " in refusal(path=str(path), pair="fr-de")
    alone = config(path=str(path), target_column=None)
    RowSource(alone).check()
    assert both(list(RowSource(alone).rows())) == [("a", None), ("b", None)]
    assert not has_references(alone)
    assert "no such file" in refusal(path=f"{tmp_path}/gone.en")


def test_no_references_are_wanted_of_a_table_either(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("source\na\n")
    data = config(path=f"{tmp_path}/a.csv", target_column=None)
    assert both(list(RowSource(data).rows())) == [("a", None)]
    shipped = config(path="builtin:captions_en_de", target_column=None)
    assert len(list(RowSource(shipped).rows())) == 62


NAMED = [p for p in PAIRS if p[0]]


@pytest.mark.parametrize(
    ("name", "nested"),
    [(f"a.{kind}", False) for kind in ("jsonl", "csv", "tsv", "parquet")]
    + [("a.jsonl", True), ("a.parquet", True)],
)
def test_columns_of_every_format_give_the_same_rows(
    tmp_path: Path, name: str, nested: bool
) -> None:
    path = tmp_path / name
    values: list[dict[str, Any]] = [{"n": 1, "source": s, "target": t} for s, t in NAMED]
    if nested:
        values = [{"n": 1, "translation": {"en": s, "de": t}} for s, t in NAMED]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(v) + "\n" for v in values), "utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(
                file, values[0], delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(values)
    rows = read(path=str(path), column="translation" if nested else "source")
    assert both(rows) == NAMED
    files = texts(tmp_path, *("".join(p[i] + "\n" for p in NAMED).encode() for i in (0, 1)))
    assert [r.content for r in rows] == [r.content for r in read(**files)]
    alone = config(path=str(path), column="source", target_column=None)
    if not nested:
        assert [r.target for r in RowSource(alone).rows()] == [None] * len(NAMED)
    assert not has_references(alone)


BAD = {
    "no target": ('{"source": "a"}', "no field 'target' (found: source); dataset.target_column"),
    "no source": ('{"target": "a"}', "no field 'source' (found: target)"),
    "target null": ('{"source": "a", "target": null}', "expected text in 'target', found NoneType"),
    "source number": ('{"source": 3, "target": "a"}', "expected text in 'source', found int"),
    "lone surrogate": (
        '{"source": "a", "target": "\\ud800"}',
        "invalid UTF-8 in 'target' at character 0",
    ),
    "limit zero": (
        '{"source": "a", "target": "b", "max_new_tokens": 0}',
        "max_new_tokens is 0, must be a whole number from 1 to 65536",
    ),
    "limit too large": (
        '{"source": "a", "target": "b", "max_new_tokens": 65537}',
        "max_new_tokens is 65537, must be a whole number from 1 to 65536",
    ),
    "limit text": (
        '{"source": "a", "target": "b", "max_new_tokens": "8"}',
        "max_new_tokens is '8', must be a whole number from 1 to 65536",
    ),
    "limit true": (
        '{"source": "a", "target": "b", "max_new_tokens": true}',
        "max_new_tokens is True, must be",
    ),
    "limit real": (
        '{"source": "a", "target": "b", "max_new_tokens": 8.0}',
        "max_new_tokens is 8.0, must be",
    ),
    "language missing": (
        '{"source": {"en": "a", "fr": "b"}}',
        "no field 'de' of dataset.pair in 'source' (found: en, fr)",
    ),
    "language null": (
        '{"source": {"en": null, "de": "b"}}',
        "expected text in 'en', found NoneType",
    ),
}


@pytest.mark.parametrize(("raw", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_an_error_and_the_others_go_on(tmp_path: Path, raw: str, reason: str) -> None:
    good = '{"source": "a", "target": "b"}'
    (tmp_path / "a.jsonl").write_text(f"{good}\n{raw}\n{good}\n")
    before, bad, after = read(path=f"{tmp_path}/a.jsonl")
    assert both([before, after]) == [("a", "b")] * 2
    assert str(bad.error).startswith(f"line 2: {reason}")
    assert (bad.text, bad.content) == (None, raw.encode())


LIMITED: list[dict[str, Any]] = [
    {"source": "a", "target": "b", "max_new_tokens": 7},
    {"source": "c", "target": "d", "max_new_tokens": None},
    {"source": "e", "target": "f", "max_new_tokens": 65536},
]


def test_rows_that_differ_anywhere_have_other_keys(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"source": "a", "target": "b"},
        {"source": "a", "target": "c"},
        {"source": "a", "target": "b", "max_new_tokens": 7},
        {"source": "a", "target": "b", "max_new_tokens": 8},
        {"source": 'a", "b', "target": ""},
        {"source": "a", "target": '", "b'},
        {"source": '["a", "b", null]', "target": ""},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    contents = [r.content for r in read(path=f"{tmp_path}/a.jsonl")]
    assert len(set(contents)) == len(rows)
    keys = KeyMaker("x")
    assert len({keys.keyed(Row(0, 1, c, None))[1] for c in contents}) == len(rows)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_column_is_refused_with_the_way_out(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("source,tgt\na,b\n")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"source": ["a"], "tgt": ["b"]}), path)
    for keys, column in (({}, "target"), ({"column": "src"}, "src")):
        with pytest.raises(DataError) as refused:
            read(path=str(path), **keys)
        message = str(refused.value)
        assert str(path) in message
        assert f"no column '{column}' (dataset." in message
        assert "Known: source, tgt." in message
        assert ("target_column=null" in message) == (column == "target")


def test_lambada_reads_no_targets(tmp_path: Path) -> None:
    line = '{"text": "a b", "target": "c", "max_new_tokens": "x"}'
    (tmp_path / "a.jsonl").write_text(line)
    (row,) = RowSource(DatasetConfig(path=f"{tmp_path}/a.jsonl")).rows()
    assert row == Row(0, 1, b"a b", "a b")
    assert not has_references(DatasetConfig())


def test_shipped_captions_are_whole() -> None:
    data = config(path="builtin:captions_en_de")
    source = RowSource(data)
    source.check()
    rows = list(source.rows())
    assert len(rows) == len({r.text for r in rows}) == len({r.target for r in rows}) == 62
    assert source.name == "shipped captions_en_de.jsonl"
    assert all(r.error is None and r.text and r.target for r in rows)
    assert "Did you mean builtin:captions_en_de?" in refusal(path="builtin:caption_en_de")
