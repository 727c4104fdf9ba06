"""A journal's index says what its lines say, or is not believed: torn, damaged, or another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftjob.errors import RunFolderError
from ftjob.results import journal
from ftjob.results.entries import COLUMNS
from ftjob.results.folder import RunFolder
from ftjob.results.journal import JournalWriter, Scan, scan
from ftjob.results.journal_index import RECORD, index_path


def record(index: int) -> dict[str, Any]:
    error = f"line {index + 1}: bad" if index % 3 == 0 else None
    return {"index": index, "key": f"{index + 77:032x}", "error": error, "text": "é" * (index % 5)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of blocks of 1, 3, 0, 2 and 1 records."""
    writer = JournalWriter(RunFolder(tmp_path), 0, 0, "identity", {})
    for rows in ([4], [0, 9, 2], [], [3, 1], [8]):
        writer.append([record(i) for i in rows])
    writer.close()
    return tmp_path / "journal" / "rank0000.attempt0.jsonl"


def columns(found: Scan) -> tuple[Any, ...]:
    return (
        *(list(getattr(found.entries, name)) for name in COLUMNS),
        found.header,
        found.length,
        found.torn,
    )


def by_lines(path: Path, limit: int | None = None) -> tuple[Any, ...]:
    """What a scan finds without the index."""
    index = index_path(path)
    aside = index.rename(index.with_suffix(".aside"))
    found = columns(scan(path, limit))
    aside.rename(index)
    return found


def test_the_index_says_what_the_lines_say_up_to_any_fence(path: Path) -> None:
    for limit in (None, *range(path.stat().st_size + 2)):
        assert columns(scan(path, limit)) == by_lines(path, limit)


def test_no_line_behind_the_header_is_parsed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    real = json.loads

    def counting(line: bytes) -> Any:
        parsed.append(line)
        return real(line)

    monkeypatch.setattr(journal.json, "loads", counting)
    assert list(scan(path, None).entries.index) == [4, 0, 9, 2, 3, 1, 8]
    assert len(parsed) == 1
    last = index_path(path).read_bytes()[: -RECORD.size]
    index_path(path).write_bytes(last)
    assert list(scan(path, None).entries.index) == [4, 0, 9, 2, 3, 1, 8]
    assert len(parsed) == 3, "of a short index the rest alone is read as lines"


def test_an_index_torn_or_changed_at_any_byte_changes_nothing(path: Path) -> None:
    wanted, index = columns(scan(path, None)), index_path(path)
    whole = index.read_bytes()
    for at in range(len(whole)):
        index.write_bytes(whole[:at])
        assert columns(scan(path, None)) == wanted
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        assert columns(scan(path, None)) == wanted


def test_damage_that_keeps_the_length_is_seen_behind_a_sound_index(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b"x" * (len(lines[3]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunFolderError, match="line 4 is damaged"):
        scan(path, None)


def test_the_index_of_another_journal_is_not_believed(path: Path, tmp_path: Path) -> None:
    wanted = columns(scan(path, None))
    writer = JournalWriter(RunFolder(tmp_path / "other"), 0, 0, "identity", {})
    for rows in ([5], [6, 7, 2], [3, 1], [8]):
        writer.append([record(i) for i in rows])
    writer.close()
    other = index_path(tmp_path / "other" / "journal" / path.name)
    index_path(path).write_bytes(other.read_bytes())
    assert columns(scan(path, None)) == wanted
