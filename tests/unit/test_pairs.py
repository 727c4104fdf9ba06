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


def test_own_id_and_own_limit_of_a_row_are_kept(tmp_path: Path) -> None:
    own = {"source": "a", "target": "b", "id": "mine", "max_new_tokens": 7}
    (tmp_path / "a.jsonl").write_text(json.dumps(own) + "\n")
    (row,) = read(path=f"{tmp_path}/a.jsonl")
    assert (row.id, row.max_new_tokens) == ("mine", 7)


LIMITED: list[dict[str, Any]] = [
    {"source": "a", "target": "b", "max_new_tokens": 7},
    {"source": "c", "target": "d", "max_new_tokens": None},
    {"source": "e", "target": "f", "max_new_tokens": 65536},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv.gz", "a.parquet", "real.parquet"])
def test_own_limits_are_read_from_every_format(tmp_path: Path, name: str) -> None:
    """An empty cell is no limit; a column with one holds real numbers in some tables. The rows are
    those of JSONL, so their keys are too."""
    path = tmp_path / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in LIMITED))
    elif path.suffix == ".parquet":
        kind = pyarrow.float64() if name.startswith("real") else pyarrow.int32()
        table = pyarrow.Table.from_pylist(LIMITED)
        limits = table["max_new_tokens"].cast(kind)
        pyarrow.parquet.write_table(table.set_column(2, "max_new_tokens", limits), path)
    else:
        mark = "\t" if ".tsv" in name else ","
        text = "source,max_new_tokens,target\na,7,b\nc,,d\ne,65536.0,f\n".replace(",", mark)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    rows = read(path=str(path))
    assert [r.max_new_tokens for r in rows] == [7, None, 65536]
    assert both(rows) == [(str(r["source"]), str(r["target"])) for r in LIMITED]
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps(r) + "\n" for r in LIMITED))
    assert [r.content for r in rows] == [r.content for r in read(path=str(plain))]


@pytest.mark.parametrize("cell", ["0", "-1", "8.5", "many", "65537", "1e3", "9" * 30, "٣"])
def test_a_cell_that_is_no_limit_is_an_error_of_its_row(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"source,target,max_new_tokens\na,b,{cell}\nc,d,5\n", "utf-8")
    bad, good = read(path=str(path))
    assert str(bad.error).startswith("line 2: max_new_tokens is ")
    assert str(bad.error).endswith("must be a whole number from 1 to 65536")
    assert (bad.text, good.max_new_tokens) == (None, 5)
    path.write_text("source,target,max_new_tokens\na,b,0\na,b,-1\n", "utf-8")
    assert len({r.content for r in read(path=str(path))}) == 2


def test_a_nested_table_keeps_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = [{"translation": {"en": "a", "de": "b"}, "max_new_tokens": 3, "target": 1}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)
    (row,) = read(path=str(path), column="translation")
    assert (row.text, row.target, row.max_new_tokens) == ("a", "b", 3)


@pytest.mark.parametrize("nested", [False, True])
def test_sets_of_the_hub_keep_their_limits(monkeypatch: pytest.MonkeyPatch, nested: bool) -> None:
    import datasets

    values: list[dict[str, Any]] = [
        {"source": {"en": r["source"], "de": r["target"]}, "max_new_tokens": r["max_new_tokens"]}
        if nested
        else r
        for r in LIMITED
    ]
    loaded = datasets.Dataset.from_list(values)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    source = RowSource(config(hub="a/b"))
    source.check()
    assert [r.max_new_tokens for r in source.rows()] == [7, None, 65536]
    with pytest.raises(DataError, match=r"dataset\.hub=a/b: no column 'src'.*Known: max_new"):
        RowSource(config(hub="a/b", column="src")).check()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded.select([]))
    with pytest.raises(DataError, match=r"a/b \(default, test\): holds no rows"):
        source.check()


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


class Fake:
    """A test set as sacrebleu holds them."""

    def __init__(self, files: list[Path] | BaseException) -> None:
        self.files, self.langpairs = files, {"en-de": [], "de-en": []}

    def get_source_file(self, pair: str) -> str:
        if isinstance(self.files, BaseException):
            raise self.files
        return str(self.files[0])

    def get_reference_files(self, pair: str) -> list[str]:
        assert not isinstance(self.files, BaseException)
        return [str(f) for f in self.files[1:]]


def cached(monkeypatch: pytest.MonkeyPatch, files: list[Path] | BaseException) -> None:
    import sacrebleu

    monkeypatch.setitem(sacrebleu.DATASETS, "wmt17", Fake(files))


def test_sets_of_sacrebleu_are_read_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = texts(tmp_path, b"a\nb\n", b"c\nd\n")
    paths = [Path(f) for f in files.values()]
    cached(monkeypatch, paths)
    source = RowSource(config(sacrebleu="wmt17"))
    source.check()
    rows = list(source.rows())
    assert both(rows) == [("a", "c"), ("b", "d")]
    assert source.name == "wmt17 en-de (sacrebleu)"
    assert [r.content for r in rows] == [r.content for r in read(**files)]
    cached(monkeypatch, [*paths, paths[1]])
    assert "has 2 references a row" in refusal(sacrebleu="wmt17")


@pytest.mark.parametrize("error", [OSError("no route to host"), SystemExit(1), Exception("x")])
def test_a_set_that_is_not_to_be_had_names_the_ways(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    cached(monkeypatch, error)
    message = refusal(sacrebleu="wmt17")
    assert f"could not be downloaded: {type(error).__name__}: {error}" in message
    assert "sacrebleu -t wmt17 -l en-de --echo src" in message
    assert "dataset.path=FILE dataset.target_path=FILE" in message


def test_unknown_sets_and_pairs_are_refused_with_the_nearest() -> None:
    assert "no such test set. Did you mean wmt17?" in refusal(sacrebleu="wtm17")
    message = refusal(sacrebleu="wmt17", pair="en-dd")
    assert "dataset.pair=en-dd: dataset.sacrebleu=wmt17 has no such pair" in message
    assert "Did you mean en-de?" in message
