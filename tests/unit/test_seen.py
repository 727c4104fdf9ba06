"""What attempts saw of a data set counts for these very bytes and this identity alone, and as far
as it is whole; which rows are missing, and how often their like came before, follows from it.
"""

from __future__ import annotations

import os
import random
from array import array
from collections import Counter
from pathlib import Path

import pytest

from ftjob.results.folder import RunFolder
from ftjob.results.seen import Seen, SeenWriter, read_seen
from ftjob.tasks.files import Fingerprint, fingerprint


def seen(*rows: int) -> Seen:
    """Rows of these numbers; a row's content is a tenth of its key."""
    return Seen(array("Q", rows), array("Q", [n // 10 + 1 for n in rows]))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    for number in range(3):
        journal = RunFolder(tmp_path).journal(0, number)
        journal.parent.mkdir(exist_ok=True)
        journal.touch()
    return RunFolder(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Fingerprint:
    (tmp_path / "rows.jsonl").write_bytes(b"one\ntwo\n")
    return print_of(tmp_path / "rows.jsonl")


def print_of(*paths: Path) -> Fingerprint:
    found = fingerprint(paths)
    assert found is not None
    return found


def keys(folder: RunFolder, data: Fingerprint, identity: str = "a") -> list[int] | None:
    found = read_seen(folder, identity, data)
    assert found is None or len(found.keys) == len(found.contents)
    return None if found is None else list(found.keys)


def test_attempts_go_on_from_each_other(folder: RunFolder, data: Fingerprint) -> None:
    first = SeenWriter(folder, 0, "a", data, 0)
    assert keys(folder, data) == []
    first.write(seen(5, 6))
    first.write(seen())
    first.write(seen(7))
    SeenWriter(folder, 2, "a", data, 3).write(seen(8, 9))
    assert keys(folder, data) == [5, 6, 7, 8, 9]
    first.write(seen(8, 9, 10))  # an attempt that was thought dead
    assert keys(folder, data) == [5, 6, 7, 8, 9]


def test_other_bytes_or_another_identity_do_not_count(folder: RunFolder, data: Fingerprint) -> None:
    SeenWriter(folder, 0, "a", data, 0).write(seen(5, 6))
    assert keys(folder, data, "b") is None
    (path,) = data.paths
    path.write_bytes(b"one\ntwp\n")
    os.utime(path, ns=(data.stamps[0][2], data.stamps[0][2]))
    other = print_of(path)
    assert keys(folder, other) is None
    SeenWriter(folder, 1, "a", other, 0).write(seen(1))
    assert (keys(folder, other), keys(folder, data)) == ([1], [5, 6])


def test_a_gap_ends_it(folder: RunFolder, data: Fingerprint) -> None:
    SeenWriter(folder, 0, "a", data, 0).write(seen(5))
    SeenWriter(folder, 1, "a", data, 2).write(seen(7))
    assert keys(folder, data) == [5]


def test_a_file_torn_or_changed_at_any_byte_gives_whole_blocks(
    folder: RunFolder, data: Fingerprint
) -> None:
    writer = SeenWriter(folder, 0, "a", data, 0)
    for rows in (seen(5, 6), seen(7), seen(8, 9)):
        writer.write(rows)
    path = folder.path / "journal" / "rows.attempt0.index"
    whole = path.read_bytes()
    found = set()
    for at in range(len(whole)):
        for changed in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            path.write_bytes(changed)
            found.add(str(keys(folder, data)))
    assert found == {"None", "[]", "[5, 6]", "[5, 6, 7]"}


def test_nothing_is_written_once_the_data_were_touched(
    folder: RunFolder, data: Fingerprint
) -> None:
    """Rows read then may not be those of the fingerprint."""
    writer = SeenWriter(folder, 0, "a", data, 0)
    writer.write(seen(5))
    (path,) = data.paths
    path.write_bytes(b"one\ntwx\n")
    os.utime(path, ns=(data.stamps[0][2], data.stamps[0][2]))
    writer.write(seen(6))
    assert keys(folder, data) == [5]


def test_a_fingerprint_is_of_all_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"c")
    (tmp_path / "c").write_bytes(b"a")
    (tmp_path / "d").write_bytes(b"bc")
    a, b, c, d = (tmp_path / name for name in "abcd")
    digests = {print_of(*paths).digest for paths in ([a, b], [b, a], [c, d], [a])}
    assert len(digests) == 4
    assert fingerprint([]) is None
    assert fingerprint([a, tmp_path / "absent"]) is None


def test_rows_answered_and_those_that_come_again() -> None:
    made = random.Random(3)
    contents = [made.randint(1, 40) for _ in range(300)]
    rows = [made.getrandbits(64) for _ in contents]
    known = Seen(array("Q", rows), array("Q", contents))
    gone = [made.getrandbits(64) for _ in range(7)]
    done = {key for key in rows if made.random() < 0.5}
    answered, missing = known.answered(array("Q", sorted([*done, *gone])))
    assert missing == 7
    assert list(answered) == [key in done for key in rows]
    count, wanted = Counter[int](), {}
    for row, content in enumerate(contents):
        if count[content] and not answered[row]:
            wanted[row] = count[content]
        count[content] += 1
    assert known.again(answered) == wanted
    going_on = known.occurrences()
    for content in (*contents[:20], 41, 41):
        assert going_on.count(content) == count[content]
        count[content] += 1


def test_nothing_seen_nothing_answered() -> None:
    assert Seen().answered(array("Q")) == (bytearray(), 0)
    assert Seen().answered(array("Q", [1, 2])) == (bytearray(), 2)
    assert seen(5, 6).answered(array("Q")) == (bytearray(2), 0)
    assert Seen().again(bytearray()) == {}
    assert Seen().occurrences().count(3) == 0
