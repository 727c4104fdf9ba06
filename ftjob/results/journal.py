"""The journal: every answer as one line, appended and synced chunk by chunk.

Each attempt of each rank writes a file of its own. Its first line fixes how much of every earlier
file counts (the fence), so that a torn last line, or a late writer of an old attempt, can harm
nothing. `rank` appends, `summary` merges all of them into samples.jsonl.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjob.errors import RunFolderError, reading, writing
from ftjob.results.entries import Entries, first_of_each
from ftjob.results.folder import RunFolder, sync_folder
from ftjob.results.journal_index import IndexWriter, read_index

VERSION = 1


@dataclass(frozen=True)
class Scan:
    """A journal file as read: its header, its records, the bytes that hold whole lines."""

    header: dict[str, Any] | None
    entries: Entries
    length: int
    torn: bool


class JournalWriter:
    """Appends the records of one rank in one attempt; `append` returns when they are on disk."""

    def __init__(
        self, folder: RunFolder, rank: int, attempt: int, identity: str, fences: dict[str, int]
    ) -> None:
        path = self._path = folder.journal(rank, attempt)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # "x": an attempt's file is never written by anybody else; unbuffered: what a full disk
            # did not take is not tried again
            self._file = path.open("xb", buffering=0)
        self._index = IndexWriter(path)
        header = {
            "journal": VERSION,
            "attempt": attempt,
            "rank": rank,
            "identity": identity,
            "fences": fences,
        }
        self._size = 0
        self._write([_line(header)])
        sync_folder(path.parent)

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write, flush and sync the records as one piece."""
        lines, start = [_line(record) for record in records], self._size
        self._write(lines)
        self._index.add(records, lines, start)

    def _write(self, lines: Sequence[bytes]) -> None:
        whole = b"".join(lines)
        with writing(self._path):
            left = memoryview(whole)
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        self._size += len(whole)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._index.close()


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def scan(path: Path, limit: int | None) -> Scan:
    """Read a journal up to byte `limit` (None: its end), by its index as far as that goes; a torn
    last line is left out.

    Raises:
        RunFolderError: for damage before the last line, with file and line.
    """
    entries = Entries()
    entries.files.append(path)
    header: dict[str, Any] | None = None
    at = number = 0
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        size = size if limit is None else min(limit, size)
        while at < size:
            line, number = file.readline(), number + 1
            stop = at + len(line)
            if stop > size:
                break
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("no end of line")
                record = json.loads(line)
                if header is not None:
                    error = record["error"] is not None
                    entries.add(record["index"], record["key"], 0, at, stop, error)
                elif record["journal"] == VERSION:
                    header = dict(record)
                    stop = read_index(path, file, stop, size, entries)
                    number += len(entries)
                    file.seek(stop)
                else:
                    raise RunFolderError(
                        f"{path}: journal version {record['journal']}, this "
                        f"ftjob writes version {VERSION}"
                    )
            except (ValueError, KeyError, TypeError, OverflowError):
                if stop < size:
                    raise RunFolderError(
                        f"{path}: line {number} is damaged, and lines follow it. Move the file "
                        "away to have its rows scored again."
                    ) from None
                break
            at = stop
    return Scan(header, entries, at, torn=at < size)


@dataclass(frozen=True)
class History:
    """All that counts of the journals written so far, and the fences for the next attempt."""

    entries: Entries
    fences: dict[str, int]
    torn: list[Path]

    def keys(self) -> array[int]:
        """The numbers of the keys already answered, rising."""
        return self.entries.keys()

    def rows_of_attempts(self) -> dict[int, int]:
        """How many rows each attempt answered, over all ranks; every row counts once."""
        rows: Counter[int] = Counter()
        for number, count in Counter(self.entries.file).items():
            name = self.entries.files[number].name
            rows[int(name.split(".")[1].removeprefix("attempt"))] += count
        return dict(rows)


def read_history(folder: RunFolder) -> History:
    """Scan every journal of a run folder, newest attempt first, within the fences it set.

    A file of an older attempt that the newest one did not know counts for nothing: it was written
    late. A key written twice counts once, as first written.
    """
    fences: dict[str, int] = {}
    fenced = False
    parts: list[Entries] = []
    torn: list[Path] = []
    for attempt in reversed(folder.attempts()):
        limits, newest = dict(fences), fenced
        for path in sorted((folder.path / "journal").glob(f"rank*.attempt{attempt}.jsonl")):
            found = scan(path, limits.get(path.name, 0) if newest else None)
            fences[path.name] = found.length
            if found.torn:
                torn.append(path)
            parts.append(found.entries)
            if found.header is not None and not newest:
                fenced = True
                for name, length in found.header["fences"].items():
                    fences.setdefault(name, length)
    return History(first_of_each(parts[::-1]), fences, torn)
