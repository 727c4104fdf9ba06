"""A journal's index: what records it holds and where, so that a resume parses no JSON of millions.

`journal` writes a block with every append, behind the lines. A block's checksum is over the lines
too, so an index that is torn, damaged or not this journal's is not believed: from there on the
lines themselves are read. It may be deleted at any time.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from ftjob.errors import writing
from ftjob.keyset import key_number
from ftjob.results.entries import Entries

BLOCK = struct.Struct("<II")  # its records, its checksum
RECORD = struct.Struct("<qQqB")  # row, key, where the line stops in the journal, whether it failed
COLUMNS = (("index", "<i8"), ("key", "<u8"), ("stop", "<i8"), ("failed", "u1"))


def index_path(journal: Path) -> Path:
    """Where a journal's index lies."""
    return journal.with_suffix(".index")


class IndexWriter:
    """Appends blocks. They need not be on disk before anything else is."""

    def __init__(self, journal: Path) -> None:
        self._path = index_path(journal)
        with writing(self._path):
            self._file = self._path.open("wb", buffering=0)

    def add(self, records: Sequence[dict[str, Any]], lines: Sequence[bytes], start: int) -> None:
        """The block of records whose lines begin at byte `start` of the journal."""
        if not records:
            return
        packed, at = bytearray(), start
        for record, line in zip(records, lines, strict=True):
            at += len(line)
            failed = record["error"] is not None
            packed += RECORD.pack(record["index"], key_number(record["key"]), at, failed)
        checksum = crc32(b"".join(lines), crc32(packed))
        with writing(self._path):
            self._file.write(BLOCK.pack(len(records), checksum) + packed)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_index(journal: Path, lines: BinaryIO, at: int, size: int, entries: Entries) -> int:
    """Add the records that the journal's index knows to `entries`. The journal's `lines` are at
    byte `at`, behind its header, and count up to `size`. Returns where the index knows no more."""
    try:
        file = index_path(journal).open("rb")
    except OSError:
        return at
    with file:
        left = os.fstat(file.fileno()).st_size
        while left >= BLOCK.size:
            count, checksum = BLOCK.unpack(file.read(BLOCK.size))
            left -= BLOCK.size + count * RECORD.size
            if count == 0 or left < 0:
                break
            packed = file.read(count * RECORD.size)
            (stop,) = struct.unpack_from("<q", packed, len(packed) - RECORD.size + 16)
            if not at < stop <= size:
                break
            if crc32(lines.read(stop - at), crc32(packed)) != checksum:
                break
            _add(packed, at, entries)
            at = stop
    return at


def _add(packed: bytes, start: int, entries: Entries) -> None:
    import numpy

    block = numpy.frombuffer(packed, dtype=list(COLUMNS))
    entries.index.frombytes(block["index"].tobytes())
    entries.key.frombytes(block["key"].tobytes())
    entries.file.frombytes(bytes(entries.file.itemsize * len(block)))
    stops = block["stop"]
    entries.start.append(start)
    entries.start.frombytes(stops[:-1].tobytes())
    entries.stop.frombytes(stops.tobytes())
    entries.failed += block["failed"].tobytes()
