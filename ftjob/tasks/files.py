"""Opens data files, packed or not, so that damage in one is told with its name.

`rows` and `pairs` read through it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from ftjob.errors import DataError

BOM = b"\xef\xbb\xbf"  # which some editors put before UTF-8


def open_data(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where it ends in .gz.

    Raises:
        DataError: where it cannot be opened.
    """
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def guarded(lines: Any, path: Path) -> Iterator[Any]:
    """The lines of a file; damage below them (a torn .gz, a failing disk) names the file.

    Raises:
        DataError: where it cannot be read to its end.
    """
    try:
        yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}") from None


def text_lines(path: Path) -> Iterator[bytes]:
    """The lines without their ends, blank ones too, and without a byte order mark."""
    with open_data(path) as file:
        for number, raw in enumerate(guarded(file, path)):
            yield raw.removeprefix(b"" if number else BOM).rstrip(b"\r\n")
