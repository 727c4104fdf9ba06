"""Where the records of journals lie, in columns: 35 bytes a record, so that millions fit.

`journal` fills it from each file, and puts what counts in the order of the data set; `summary`
reads the lines in that order.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from ftjob.errors import unreadable
from ftjob.keyset import key_number

COLUMNS = ("index", "key", "file", "start", "stop", "failed")


class Entries:
    """Records by the row's number, the number of its key, the file, and the bytes there."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.index, self.key = array("q"), array("Q")
        self.file = array("H")
        self.start, self.stop = array("q"), array("q")
        self.failed = bytearray()

    def __len__(self) -> int:
        return len(self.index)

    def add(self, index: int, key: str, file: int, start: int, stop: int, failed: bool) -> None:
        """A record more; `file` counts in `files`.

        Raises:
            ValueError: for a key that is none.
        """
        number = key_number(key)
        self.index.append(index)
        self.key.append(number)
        self.file.append(file)
        self.start.append(start)
        self.stop.append(stop)
        self.failed.append(failed)

    def keys(self) -> array[int]:
        """The numbers of the records' keys, rising. Each comes once, after `first_of_each`."""
        import numpy

        return array("Q", numpy.sort(numpy.frombuffer(self.key, dtype=numpy.uint64)).tobytes())


def first_of_each(parts: Sequence[Entries]) -> Entries:
    """The records of all parts, each key once as the first part has it, by the row's number. The
    parts' own columns are used up, so that little is held twice."""
    import numpy

    whole = Entries()
    for part in parts:
        offset = len(whole.files)
        whole.files += part.files
        part.file = array("H", (number + offset for number in part.file))
        for name in COLUMNS:
            held, more = getattr(whole, name), getattr(part, name)
            setattr(whole, name, held + more if len(held) else more)
            setattr(part, name, more[:0])
    if not len(whole):
        return whole
    _, first = numpy.unique(numpy.frombuffer(whole.key, dtype=numpy.uint64), return_index=True)
    rows = numpy.frombuffer(whole.index, dtype=numpy.int64)[first]
    order = first[numpy.argsort(rows, kind="stable")]
    del rows, first
    for name in COLUMNS:
        column = getattr(whole, name)
        if isinstance(column, bytearray):
            flags = numpy.frombuffer(column, dtype=numpy.uint8)[order]
            setattr(whole, name, bytearray(flags.tobytes()))
            continue
        values = numpy.frombuffer(column, dtype=numpy.dtype(column.typecode))[order]
        setattr(whole, name, array(column.typecode, values.tobytes()))
    return whole


def raw_lines(entries: Entries) -> Iterator[bytes]:
    """The records' lines, in the order of `entries`. Read, not mapped: a map's pages would count as
    this process's memory.

    Raises:
        RunFolderError: for a file that cannot be read.
    """
    opened: dict[int, int] = {}
    number = 0
    try:
        for number, start, stop in zip(entries.file, entries.start, entries.stop, strict=True):
            if number not in opened:
                opened[number] = os.open(entries.files[number], os.O_RDONLY)
            yield os.pread(opened[number], stop - start, start)
    except OSError as error:
        raise unreadable(entries.files[number], error) from None
    finally:
        for handle in opened.values():
            os.close(handle)
