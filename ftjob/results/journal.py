"""The journal: every answer as one line, appended and synced chunk by chunk.

Each attempt of each rank writes a file of its own. Its first line fixes how much of every earlier
file counts (the fence), so that a torn last line, or a late writer of an old attempt, can harm
nothing. `rank` appends, `summary` merges all of them into samples.jsonl.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjob.errors import RunFolderError
from ftjob.results.folder import RunFolder, sync_folder

VERSION = 1


@dataclass(frozen=True)
class Entry:
    """Where one record lies: `index` is the row's number, offsets are bytes of `file`."""

    index: int
    key: str
    file: Path
    start: int
    stop: int
    failed: bool


@dataclass(frozen=True)
class Scan:
    """A journal file as read: its header, its records, the bytes that hold whole lines."""

    header: dict[str, Any] | None
    entries: list[Entry]
    length: int
    torn: bool


class JournalWriter:
    """Appends the records of one rank in one attempt; `append` returns when they are on disk."""

    def __init__(
        self, folder: RunFolder, rank: int, attempt: int, identity: str, fences: dict[str, int]
    ) -> None:
        path = folder.journal(rank, attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x": an attempt's file is never written by anybody else
        self._file = path.open("x", encoding="utf-8")
        self._write(
            [
                {
                    "journal": VERSION,
                    "attempt": attempt,
                    "rank": rank,
                    "identity": identity,
                    "fences": fences,
                }
            ]
        )
        sync_folder(path.parent)

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write, flush and sync the records as one piece."""
        self._write(records)

    def _write(self, records: Sequence[dict[str, Any]]) -> None:
        self._file.write(
            "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records)
        )
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def scan(path: Path, limit: int | None) -> Scan:
    """Read a journal up to byte `limit` (None: its end); a torn last line is left out.

    Raises:
        RunFolderError: for damage before the last line, with file and line.
    """
    entries: list[Entry] = []
    header: dict[str, Any] | None = None
    at = 0
    with path.open("rb") as file:
        size = (
            min(limit, os.fstat(file.fileno()).st_size)
            if limit is not None
            else os.fstat(file.fileno()).st_size
        )
        for number, line in enumerate(file, start=1):
            stop = at + len(line)
            if stop > size:
                break
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("no end of line")
                record = json.loads(line)
                if number == 1:
                    header = dict(record)
                    if header["journal"] != VERSION:
                        raise RunFolderError(
                            f"{path}: journal version {header['journal']}, this "
                            f"ftjob writes version {VERSION}"
                        )
                else:
                    entries.append(
                        Entry(
                            record["index"],
                            record["key"],
                            path,
                            at,
                            stop,
                            record["error"] is not None,
                        )
                    )
            except (ValueError, KeyError, TypeError):
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

    entries: list[Entry]
    fences: dict[str, int]
    torn: list[Path]

    def keys(self) -> set[str]:
        """The keys already answered."""
        return {e.key for e in self.entries}

    def rows_of_attempts(self) -> dict[int, int]:
        """How many rows each attempt answered, over all ranks; every row counts once."""
        attempts = (e.file.name.split(".")[1].removeprefix("attempt") for e in self.entries)
        return {int(number): rows for number, rows in Counter(attempts).items()}


def read_history(folder: RunFolder) -> History:
    """Scan every journal of a run folder, newest attempt first, within the fences it set.

    A file of an older attempt that the newest one did not know counts for nothing: it was written
    late. A key written twice counts once, as first written.
    """
    fences: dict[str, int] = {}
    fenced = False
    by_key: dict[str, Entry] = {}
    torn: list[Path] = []
    for attempt in reversed(folder.attempts()):
        limits, newest = dict(fences), fenced
        for path in sorted((folder.path / "journal").glob(f"rank*.attempt{attempt}.jsonl")):
            found = scan(path, limits.get(path.name, 0) if newest else None)
            fences[path.name] = found.length
            if found.torn:
                torn.append(path)
            by_key |= {e.key: e for e in reversed(found.entries)}
            if found.header is not None and not newest:
                fenced = True
                for name, length in found.header["fences"].items():
                    fences.setdefault(name, length)
    return History(sorted(by_key.values(), key=lambda e: e.index), fences, torn)


def raw_lines(entries: Sequence[Entry]) -> Iterator[bytes]:
    """The records' lines, in the order of `entries`."""
    maps: dict[Path, mmap.mmap] = {}
    try:
        for entry in entries:
            if entry.file not in maps:
                with entry.file.open("rb") as file:
                    maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            yield maps[entry.file][entry.start : entry.stop]
    finally:
        for opened in maps.values():
            opened.close()
