"""The journal survives what can happen to it: a last line torn at any byte, damage in the middle, a
late writer of an older attempt, the same row answered twice; and says what is left to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftjob.errors import UNREADABLE, RunFolderError
from ftjob.results.entries import raw_lines
from ftjob.results.folder import RunFolder, replaced, write_text
from ftjob.results.journal import History, JournalWriter, read_history, scan
from ftjob.results.summary import merge, read_samples


def key(index: int) -> str:
    return f"{index:032x}"


def record(index: int, output: str = "ab", error: str | None = None) -> dict[str, Any]:
    return {"index": index, "key": key(index), "error": error, "output": output}


def write(
    folder: RunFolder,
    attempt: int,
    records: list[dict[str, Any]],
    *,
    rank: int = 0,
    fences: dict[str, int] | None = None,
) -> JournalWriter:
    """An attempt's journal, started where the folder's history stands, still open."""
    known = read_history(folder).fences if fences is None else fences
    writer = JournalWriter(folder, rank, attempt, "identity", known)
    writer.append(records)
    return writer


def holds(history: History, rows: set[int]) -> bool:
    """Whether these rows' keys are those that count."""
    return history.keys().tolist() == sorted(rows)


def answers(folder: RunFolder) -> list[tuple[int, str]]:
    """What counts, through samples.jsonl as a run makes it."""
    merge(folder, read_history(folder)).close()
    return [(s["index"], s["output"]) for s in read_samples(folder.file("samples.jsonl"))]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_appended_records_are_on_disk_at_once(folder: RunFolder) -> None:
    writer = write(folder, 0, [record(1), record(0, error="line 1: bad")])
    writer.append([record(2, "naïve\u2028 🙂\n")])
    found = scan(folder.journal(0, 0), None)
    writer.close()
    assert found.header is not None
    assert (found.header["attempt"], found.header["rank"]) == (0, 0)
    assert (found.header["identity"], found.header["fences"]) == ("identity", {})
    assert list(zip(found.entries.index, found.entries.failed, strict=True)) == [
        (1, False),
        (0, True),
        (2, False),
    ]
    assert not found.torn
    assert found.length == folder.journal(0, 0).stat().st_size
    lines = [json.loads(line) for line in raw_lines(found.entries)]
    assert lines == [record(1), record(0, error="line 1: bad"), record(2, "naïve\u2028 🙂\n")]


def test_samples_are_in_dataset_order(folder: RunFolder) -> None:
    write(folder, 0, [record(i) for i in (3, 0, 2, 1)]).close()
    assert [index for index, _ in answers(folder)] == [0, 1, 2, 3]


def test_torn_last_line_leaves_the_others_wherever_it_is_cut(folder: RunFolder) -> None:
    write(folder, 0, [record(0), record(1), record(2, "naïve 🙂")]).close()
    path = folder.journal(0, 0)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        history = read_history(folder)
        assert holds(history, {0, 1})
        assert history.fences == {path.name: last}
        assert history.torn == ([path] if size > last else [])
    path.write_bytes(whole)
    assert holds(read_history(folder), {0, 1, 2})


def test_torn_header_leaves_an_empty_journal(folder: RunFolder) -> None:
    write(folder, 0, []).close()
    path = folder.journal(0, 0)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert len(read_history(folder).entries) == 0


@pytest.mark.parametrize("tail", [b"\0" * 64, b"{\n", b"\xff\xfe\n", b'{"index": 4}\n', b"[]\n"])
def test_any_damage_of_the_last_line_is_cut_off(folder: RunFolder, tail: bytes) -> None:
    write(folder, 0, [record(0)]).close()
    path = folder.journal(0, 0)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    history = read_history(folder)
    assert holds(history, {0})
    assert history.torn == [path]
    assert history.fences == {path.name: len(whole)}


@pytest.mark.parametrize("line", [1, 2, 3])
@pytest.mark.parametrize("damage", [b"", b"x", b"{}", b"[1]", b"\xff", b"null", b'{"index": 1}'])
def test_damage_in_the_middle_is_refused_with_file_and_line(
    folder: RunFolder, damage: bytes, line: int
) -> None:
    write(folder, 0, [record(i) for i in range(3)]).close()
    path = folder.journal(0, 0)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = damage + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunFolderError, match=f"line {line} is damaged") as refused:
        read_history(folder)
    assert refused.value.code == UNREADABLE
    assert str(path) in str(refused.value)


def test_journal_of_another_version_is_refused(folder: RunFolder) -> None:
    write(folder, 0, [record(0)]).close()
    path = folder.journal(0, 0)
    path.write_bytes(path.read_bytes().replace(b'"journal": 1', b'"journal": 9', 1))
    with pytest.raises(RunFolderError, match="journal version 9, this ftjob writes version 1"):
        read_history(folder)


def test_resumed_attempt_scores_only_what_is_missing(folder: RunFolder) -> None:
    write(folder, 0, [record(0), record(1)]).close()
    done = read_history(folder).keys()
    missing = [record(i) for i in range(4) if i not in done]
    write(folder, 1, missing).close()
    first, second = (scan(folder.journal(0, a), None) for a in (0, 1))
    assert not set(first.entries.key) & set(second.entries.key)
    assert holds(read_history(folder), {0, 1, 2, 3})
    assert folder.attempts() == [0, 1]


def test_torn_line_stays_cut_off_once_an_attempt_has_followed(folder: RunFolder) -> None:
    write(folder, 0, [record(0), record(1)]).close()
    path = folder.journal(0, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    write(folder, 1, [record(1, "again")]).close()
    assert answers(folder) == [(0, "ab"), (1, "again")]
    path.write_bytes(whole)  # the write that was lost arrives after all
    assert answers(folder) == [(0, "ab"), (1, "again")]


def test_late_writer_of_an_older_attempt_changes_nothing(folder: RunFolder) -> None:
    late = write(folder, 0, [record(0)])
    write(folder, 1, [record(1)]).close()
    late.append([record(1, "late"), record(5, "late")])
    assert answers(folder) == [(0, "ab"), (1, "ab")]
    write(folder, 2, [record(2)]).close()
    late.append([record(2, "late"), record(6, "late")])
    late.close()
    assert answers(folder) == [(0, "ab"), (1, "ab"), (2, "ab")]


def test_late_damage_behind_a_fence_harms_nothing(folder: RunFolder) -> None:
    write(folder, 0, [record(0)]).close()
    write(folder, 1, [record(1)]).close()
    with folder.journal(0, 0).open("ab") as file:
        file.write(b"damage\n" + json.dumps(record(9)).encode() + b"\n")
    assert answers(folder) == [(0, "ab"), (1, "ab")]


def test_late_journal_of_an_older_attempt_counts_for_nothing(folder: RunFolder) -> None:
    write(folder, 0, [record(0)]).close()
    write(folder, 1, [record(1)]).close()
    write(folder, 0, [record(1, "late"), record(2, "late")], rank=1, fences={}).close()
    assert answers(folder) == [(0, "ab"), (1, "ab")]


def test_first_written_answer_wins(folder: RunFolder) -> None:
    write(folder, 0, [record(0, "first"), record(0, "second"), record(1, "first")]).close()
    write(folder, 1, [record(0, "third"), record(2, "first")]).close()
    assert answers(folder) == [(0, "first"), (1, "first"), (2, "first")]


def test_ranks_of_an_attempt_add_up(folder: RunFolder) -> None:
    fences: dict[str, int] = {}
    write(folder, 0, [record(0)], rank=0, fences=fences).close()
    write(folder, 0, [record(1)], rank=1, fences=fences).close()
    known = read_history(folder).fences
    write(folder, 10, [record(2)], rank=0, fences=known).close()
    write(folder, 10, [record(3)], rank=1, fences=known).close()
    assert [index for index, _ in answers(folder)] == [0, 1, 2, 3]
    assert folder.attempts() == [0, 10]


def test_attempts_file_is_never_written_by_a_second_process(folder: RunFolder) -> None:
    write(folder, 0, [record(0)]).close()
    with pytest.raises(FileExistsError):
        JournalWriter(folder, 0, 0, "identity", {})
    assert answers(folder) == [(0, "ab")]


def test_records_that_are_no_json_are_not_written(folder: RunFolder) -> None:
    writer = write(folder, 0, [record(0)])
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.append([record(1) | {"logprob": float("nan")}])
    writer.append([record(2)])
    writer.close()
    assert [index for index, _ in answers(folder)] == [0, 2]


@pytest.mark.parametrize("gone", [True, False])
def test_a_journal_that_cannot_be_read_is_named(folder: RunFolder, gone: bool) -> None:
    """By the merge, which writes meanwhile: whether it is no longer there, or fails when read."""
    write(folder, 0, [record(0)]).close()
    history, path = read_history(folder), folder.journal(0, 0)
    path.unlink()
    if not gone:
        path.mkdir()
    reason = "No such file or directory" if gone else "Is a directory"
    with pytest.raises(RunFolderError, match=f"^{path}: cannot be read: {reason}$"):
        merge(folder, history)
    assert not [p.name for p in folder.path.iterdir() if "samples" in p.name]
    if not gone:
        with pytest.raises(RunFolderError, match=f"^{path}: cannot be read: {reason}$"):
            read_history(folder)


def test_what_fails_is_named_as_read_or_written(tmp_path: Path) -> None:
    """Who writes a file may read another one; its own are also the one beside and its folders."""
    other = tmp_path / "other"
    (tmp_path / "file").write_text("", encoding="utf-8")
    with (
        pytest.raises(RunFolderError, match=f"^{other}: cannot be read: No such file"),
        replaced(tmp_path / "written"),
    ):
        other.open()
    below = tmp_path / "file" / "folder" / "below"
    with pytest.raises(RunFolderError, match=f"^{below}: cannot be written: Not a directory"):
        write_text(below, "")
    with (
        pytest.raises(RunFolderError, match=f"^{other}: cannot be written: No such file"),
        replaced(other),  # nothing was written beside that could take its place
    ):
        pass
