"""Opens data files, packed or not, so that damage in one is told with its name.

`rows` and `pairs` read through it. A `Fingerprint` tells `results.seen` whether the files of a data
set are those that an earlier attempt read.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ftjob.errors import DataError

BOM = b"\xef\xbb\xbf"  # which some editors put before UTF-8
PART = 1 << 20  # bytes hashed at a time


def open_data(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where it ends in .gz.

    Raises:
        DataError: where it cannot be opened.
    """
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def absent(path: Path) -> str:
    """Why a path that is no file is none."""
    return "is a folder, not a file" if path.is_dir() else "no such file"


@dataclass(frozen=True)
class Fingerprint:
    """The SHA-256 of all bytes of some files, and their state when it was taken."""

    digest: str
    paths: tuple[Path, ...]
    stamps: tuple[tuple[int, ...], ...]

    def holds(self) -> bool:
        """Whether nobody touched the files since."""
        return _stamps(self.paths) == self.stamps


def fingerprint(paths: Sequence[Path]) -> Fingerprint | None:
    """The fingerprint of files as they are, packed or not; None where there are none, or one cannot
    be read, or was written to meanwhile."""
    whole = hashlib.sha256()
    stamps = _stamps(paths)
    try:
        for path in paths:
            with path.open("rb") as file:
                whole.update(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
                while part := file.read(PART):
                    whole.update(part)
    except OSError:
        return None
    found = Fingerprint(whole.hexdigest(), tuple(paths), stamps)
    return found if paths and found.holds() else None


def _stamps(paths: Sequence[Path]) -> tuple[tuple[int, ...], ...]:
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return ()
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)


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
