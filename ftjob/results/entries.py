"""Where the records of journals lie, in columns: 35 bytes a record, so that millions fit.

`journal` fills it from each file, and puts what counts in the order of the data set; `summary`
reads the lines in that order.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from ftjob.keyset import KeySet


class Entries:
    """Records by the row's number, a hash of its key, the file, and the bytes there."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.index, self.key = array("q"), array("q")
        self.file = array("H")
        self.start, self.stop = array("q"), array("q")
        self.failed = bytearray()

    def __len__(self) -> int:
        return len(self.index)

    def add(self, index: int, key: str, file: int, start: int, stop: int, failed: bool) -> None:
        """A record more; `file` counts in `files`."""
        self.index.append(index)
        self.key.append(hash(key))
        self.file.append(file)
        self.start.append(start)
        self.stop.append(stop)
        self.failed.append(failed)

    def keys(self) -> KeySet:
        """The keys of the records."""
        import numpy

        hashes = numpy.unique(numpy.frombuffer(self.key, dtype=numpy.int64))
        return KeySet.of_hashes(array("q", hashes.tobytes()))


def first_of_each(parts: Sequence[Entries]) -> Entries:
    """The records of all parts, each key once as the first part has it, by the row's number."""
    import numpy

    whole = Entries()
    for part in parts:
        offset = len(whole.files)
        whole.files += part.files
        if not len(part):
            continue
        whole.index += part.index
        whole.key += part.key
        whole.file += array("H", (number + offset for number in part.file))
        whole.start += part.start
        whole.stop += part.stop
        whole.failed += part.failed
    if not len(whole):
        return whole
    _, first = numpy.unique(numpy.frombuffer(whole.key, dtype=numpy.int64), return_index=True)
    rows = numpy.frombuffer(whole.index, dtype=numpy.int64)[first]
    order = first[numpy.argsort(rows, kind="stable")]
    found = Entries()
    found.files = whole.files
    for name, kind in (("index", "q"), ("key", "q"), ("file", "H"), ("start", "q"), ("stop", "q")):
        column = getattr(whole, name)
        values = numpy.frombuffer(column, dtype=numpy.dtype(kind))[order]
        setattr(found, name, array(kind, values.tobytes()))
        setattr(whole, name, array(kind))  # let go of column by column
    found.failed = bytearray(numpy.frombuffer(whole.failed, dtype=numpy.uint8)[order].tobytes())
    return found


def raw_lines(entries: Entries) -> Iterator[bytes]:
    """The records' lines, in the order of `entries`. Read, not mapped: a map's pages would count as
    this process's memory."""
    opened: dict[int, int] = {}
    try:
        for number, start, stop in zip(entries.file, entries.start, entries.stop, strict=True):
            if number not in opened:
                opened[number] = os.open(entries.files[number], os.O_RDONLY)
            yield os.pread(opened[number], stop - start, start)
    finally:
        for handle in opened.values():
            os.close(handle)
