"""What earlier attempts saw of the data set: the key and the content of each row they passed, as
numbers in order, 16 bytes a row. By it a resume knows which rows are missing without making any.

Each attempt of rank 0 writes the rows it passes first, a block a window, into a file of its own
beside its journal. The file counts only for the same identity and for a data set whose every byte
is the same; a torn or damaged block ends it. It may be deleted at any time: then the data set is
looked through. `commands.run` reads it, `feed` goes on from it.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from ftjob.errors import writing
from ftjob.keyset import Occurrences
from ftjob.results.folder import RunFolder, sync_folder
from ftjob.tasks.files import Fingerprint

VERSION = 1
BLOCK = struct.Struct("<II")  # its rows, its checksum


@dataclass
class Seen:
    """Rows from the first on: the numbers of their keys and of their contents."""

    keys: array[int] = field(default_factory=lambda: array("Q"))
    contents: array[int] = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, key: int, content: int) -> None:
        """One row more."""
        self.keys.append(key)
        self.contents.append(content)

    def answered(self, done: array[int]) -> tuple[bytearray, int]:
        """A flag for each row whether its key is among `done`, which rises; and how many of `done`
        are no row's."""
        import numpy

        keys = numpy.frombuffer(self.keys, dtype=numpy.uint64)
        held = numpy.frombuffer(done, dtype=numpy.uint64)
        if not len(held):
            return bytearray(len(keys)), 0
        at = numpy.searchsorted(held, keys)
        at[at == len(held)] = 0
        flags = held[at] == keys
        return bytearray(flags.tobytes()), max(0, len(held) - int(numpy.count_nonzero(flags)))

    def again(self, answered: bytearray) -> dict[int, int]:
        """Of the rows that are not `answered` and have equals before them: how many."""
        import numpy

        contents = numpy.frombuffer(self.contents, dtype=numpy.uint64)
        order = numpy.argsort(contents, kind="stable")
        ranked = contents[order]
        new = numpy.ones(len(ranked), dtype=bool)
        new[1:] = ranked[1:] != ranked[:-1]
        places = numpy.arange(len(ranked))
        before = places - numpy.maximum.accumulate(numpy.where(new, places, 0))
        wanted = ~new & (numpy.frombuffer(answered, dtype=numpy.uint8)[order] == 0)
        return dict(zip(order[wanted].tolist(), before[wanted].tolist(), strict=True))

    def occurrences(self) -> Occurrences:
        """The count of contents, to be gone on with."""
        import numpy

        contents = numpy.frombuffer(self.contents, dtype=numpy.uint64)
        known, counts = numpy.unique(contents, return_counts=True)
        more = counts > 1
        again = zip(known[more].tolist(), counts[more].tolist(), strict=True)
        return Occurrences(array("Q", known.tobytes()), dict(again))


@dataclass(frozen=True)
class Before:
    """What is known before an attempt: the keys done, as rising numbers; the rows seen, None where
    nothing counts; and the data set's files, None where there are none or they change."""

    done: array[int] = field(default_factory=lambda: array("Q"))
    seen: Seen | None = None
    data: Fingerprint | None = None

    def forget(self) -> None:
        """Give the memory back: of millions of rows it is much, and whoever began holds this."""
        del self.done[:]
        if self.seen is not None:
            del self.seen.keys[:], self.seen.contents[:]


class SeenWriter:
    """Writes the rows that an attempt sees, from row `first` on, as long as nobody touches the
    data set."""

    def __init__(
        self, folder: RunFolder, attempt: int, identity: str, data: Fingerprint, first: int
    ) -> None:
        self._path, self._data = _path(folder, attempt), data
        header = {"seen": VERSION, "identity": identity, "data": data.digest, "first": first}
        self._append("wb", (json.dumps(header) + "\n").encode())
        sync_folder(self._path.parent)

    def write(self, rows: Seen) -> None:
        """Bring rows to disk, which must be before any of them is answered."""
        if len(rows) and self._data.holds():
            packed = rows.keys.tobytes() + rows.contents.tobytes()
            self._append("ab", BLOCK.pack(len(rows), crc32(packed)) + packed)

    def _append(self, mode: str, whole: bytes) -> None:
        with writing(self._path), self._path.open(mode) as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())


def read_seen(folder: RunFolder, identity: str, data: Fingerprint) -> Seen | None:
    """The rows that attempts of this identity saw of these very bytes; None where none did."""
    found: Seen | None = None
    for attempt in folder.attempts():
        try:
            file = _path(folder, attempt).open("rb")
        except OSError:
            continue
        with file:
            first = _first(file.readline(), identity, data)
            rows = found or Seen()
            if first is None or first > len(rows):
                continue
            del rows.keys[first:], rows.contents[first:]  # an attempt thought dead may have gone on
            _read_blocks(file, rows)
            found = rows
    return found


def _first(line: bytes, identity: str, data: Fingerprint) -> int | None:
    """From which row on a file with this first line counts; None where it does not."""
    try:
        header: dict[str, Any] = json.loads(line)
        first = int(header["first"])
        told = (header["seen"], header["identity"], header["data"])
    except (ValueError, KeyError, TypeError):
        return None
    return first if told == (VERSION, identity, data.digest) else None


def _read_blocks(file: BinaryIO, rows: Seen) -> None:
    left = os.fstat(file.fileno()).st_size - file.tell()
    while left >= BLOCK.size:
        count, checksum = BLOCK.unpack(file.read(BLOCK.size))
        left -= BLOCK.size + 16 * count
        if left < 0:
            return
        packed = file.read(16 * count)
        if crc32(packed) != checksum:
            return
        rows.keys.frombytes(packed[: 8 * count])
        rows.contents.frombytes(packed[8 * count :])


def _path(folder: RunFolder, attempt: int) -> Path:
    return folder.path / "journal" / f"rows.attempt{attempt}.index"
