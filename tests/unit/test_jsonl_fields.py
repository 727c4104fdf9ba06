"""JSONL without the fields that a task reads: refused where none of the first rows has them, as a
table without the columns is; else the rows without are single bad ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftjob.config.groups import DatasetConfig
from ftjob.errors import DataError
from ftjob.tasks.rows import RowSource


def check_refusal(path: Path, **keys: Any) -> str:
    """What is refused before anything starts."""
    with pytest.raises(DataError) as refused:
        RowSource(DatasetConfig(path=str(path), **keys)).check()
    return str(refused.value)


OTHER = [b'{"passage": "a b", "n": 1}', b'{"passage": "c d", "half \\ud83d": 2}']


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [b"", *OTHER, b"{broken"],
            "lines 2 to 3: no field 'text' (dataset.column). Known: half \\ud83d, n, passage.",
        ),
        (
            [b'{"txt": "a b"}', b"[1]"],
            "line 1: no field 'text' (dataset.column). Did you mean txt",
        ),
        ([*OTHER * 4, b'{"text": "a b"}'], "lines 1 to 8: no field 'text'"),
    ],
)
def test_jsonl_without_the_field_is_refused(tmp_path: Path, lines: list[bytes], said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    refused = check_refusal(path)
    assert refused.startswith(f"{path}: {said}")
    assert refused.encode("utf-8")


@pytest.mark.parametrize("last", [b'{"text": "a b"}', b'{"text": null}'])
def test_first_rows_without_the_field_are_single_ones(tmp_path: Path, last: bytes) -> None:
    """Unless the run asks for these alone."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b"{broken", *OTHER * 3, last, *OTHER]))
    source = RowSource(DatasetConfig(path=str(path)))
    source.check()
    rows = list(source.rows())
    assert "no field 'text' (found: passage, n)" in (rows[1].error or "")
    assert "lines 2 to 7: no field" in check_refusal(path, limit=7)
    path.write_bytes(b"{broken\n[1]\n5\n")
    RowSource(DatasetConfig(path=str(path))).check()


def test_jsonl_of_a_translation_set_has_both_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"de": "x", "en": "y"}\n')
    task: dict[str, Any] = {"task": "translation", "mode": "generate", "pair": "en-de"}
    both = {"column": "en", "target_column": "de"}
    RowSource(DatasetConfig(path=str(path), **task, **both)).check()
    said = check_refusal(path, **task, **both | {"target_column": "fr"})
    assert said.startswith(f"{path}: line 1: no field 'fr' (dataset.target_column). ")
    assert said.endswith("Known: de, en. dataset.target_column=null translates without references.")
    path.write_text('{"translation": {"en": "x"}}\n')  # one column holds all languages
    RowSource(DatasetConfig(path=str(path), **task, column="translation")).check()
