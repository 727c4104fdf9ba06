"""A row's own max_new_tokens, from every format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from test_pairs import LIMITED, both, config, read

from ftjob.errors import DataError
from ftjob.tasks.rows import RowSource


def test_own_id_and_own_limit_of_a_row_are_kept(tmp_path: Path) -> None:
    own = {"source": "a", "target": "b", "id": "mine", "max_new_tokens": 7}
    (tmp_path / "a.jsonl").write_text(json.dumps(own) + "\n")
    (row,) = read(path=f"{tmp_path}/a.jsonl")
    assert (row.id, row.max_new_tokens) == ("mine", 7)


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
