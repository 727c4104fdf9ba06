"""Reads a dataset as a stream of rows: the shipped file, a local file, or a set of the hub.

One malformed row is a row with an error and its line number, and the stream goes on; a file that
cannot be read at all is refused. The rows go to the task's `prepare`.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from ftjob.config.groups import DatasetConfig
from ftjob.errors import DataError, nearest
from ftjob.tasks.base import Row

SHIPPED = Path(__file__).resolve().parent.parent / "demo" / "lambada_test.jsonl.gz"


BOM = b"\xef\xbb\xbf"  # which some editors put before UTF-8
FIELD_LIMIT = 1 << 30  # the csv module's own limit of 128 KiB is less than a long document


class RowSource:
    """The rows of a dataset, in order. `total` counts all rows passed so far, limit or not."""

    def __init__(self, dataset: DatasetConfig) -> None:
        self.dataset = dataset
        self.total = 0
        if dataset.hub is not None:
            self.name = f"{dataset.hub} ({dataset.hub_config or 'default'}, {dataset.split})"
        else:
            self.name = str(dataset.path or f"shipped {SHIPPED.name}")

    def rows(self) -> Iterator[Row]:
        """Rows up to dataset.limit; the rest is counted only.

        Raises:
            DataError: where the dataset as a whole cannot be read, naming it.
        """
        limit = self.dataset.limit
        lines: dict[str, int] = {}
        for row in self._all():
            if row.id is not None and lines.setdefault(row.id, row.line) != row.line:
                raise DataError(
                    f"{self.name}: id {row.id!r} is on line {lines[row.id]} and again on line "
                    f"{row.line}; ids must be unique"
                )
            if limit is None or row.index < limit:
                yield row
            self.total = row.index + 1
        if self.total == 0:
            raise DataError(f"{self.name}: holds no rows")

    def check(self) -> None:
        """Refuse what cannot be a dataset, before anything starts.

        Raises:
            DataError: for a file that is absent or whose ending names no format.
        """
        if self.dataset.hub is None:
            self._reader()

    def _all(self) -> Iterator[Row]:
        if self.dataset.hub is not None:
            return self._hub(self.dataset.hub)
        reader, path = self._reader()
        return reader(path)

    def _reader(self) -> tuple[Callable[[Path], Iterator[Row]], Path]:
        """The reader of the file's format, told by its ending, and the file."""
        data = self.dataset
        path = Path(data.path).expanduser() if data.path is not None else SHIPPED
        readers: dict[str, Callable[[Path], Iterator[Row]]] = {
            ".jsonl": self._jsonl,
            ".json": self._jsonl,
            ".csv": self._csv,
            ".tsv": self._csv,
            ".parquet": self._parquet,
        }
        kind = Path(path.name.removesuffix(".gz")).suffix.lower()
        if kind not in readers:
            raise DataError(
                f"dataset.path={path}: cannot tell the format from {kind or 'no'!r} "
                f"ending. {nearest(kind, readers)}"
            )
        if not path.is_file():
            raise DataError(f"dataset.path={path}: no such file")
        return readers[kind], path

    def _jsonl(self, path: Path) -> Iterator[Row]:
        column, index = self.dataset.column, 0
        with _open(path) as file:
            for line, raw in enumerate(_guard(file, path), start=1):
                raw = raw.removeprefix(BOM if line == 1 else b"").rstrip(b"\r\n")
                if not raw.strip():
                    continue
                yield json_row(index, line, raw, column)
                index += 1

    def _csv(self, path: Path) -> Iterator[Row]:
        delimiter = "\t" if ".tsv" in path.suffixes else ","
        column, index = self.dataset.column, 0
        csv.field_size_limit(FIELD_LIMIT)
        with _open(path) as file:
            text = io.TextIOWrapper(
                file, encoding="utf-8-sig", errors="surrogateescape", newline=""
            )
            reader = csv.reader(_guard(text, path), delimiter=delimiter)
            try:
                names = next(reader, [])
                if column not in names:
                    raise DataError(
                        f"{path}: line 1: no column {column!r} (dataset.column). "
                        f"{nearest(column, names)}"
                    )
                at = names.index(column)
                line = reader.line_num + 1
                for fields in reader:
                    if fields:
                        yield _csv_row(index, line, fields, at, len(names))
                        index += 1
                    line = reader.line_num + 1
            except csv.Error as error:
                raise DataError(f"{path}: line {reader.line_num}: {error}") from None

    def _parquet(self, path: Path) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            names = file.schema_arrow.names
            if self.dataset.column not in names:
                raise DataError(
                    f"{path}: no column {self.dataset.column!r} (dataset.column). "
                    f"{nearest(self.dataset.column, names)}"
                )
            index = 0
            for batch in file.iter_batches(columns=[self.dataset.column]):
                for value in batch.column(0).to_pylist():
                    yield value_row(index, index + 1, value)
                    index += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: is not a whole Parquet file: {error}") from None

    def _hub(self, name: str) -> Iterator[Row]:
        import datasets

        data = self.dataset
        try:
            loaded = datasets.load_dataset(name, data.hub_config, split=data.split)
        except Exception as error:  # datasets raises many kinds for one meaning: not to be had
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(
                f"dataset.hub={name}: not in the cache (HF_HOME) and could not be loaded: "
                f"{type(error).__name__}: {reason[0]}\nThe shipped copy needs no network "
                "(dataset=lambada); a local file is given by dataset=lambada dataset.path=FILE."
            ) from None
        if data.column not in loaded.column_names:
            raise DataError(
                f"dataset.hub={name}: no column {data.column!r} (dataset.column). "
                f"{nearest(data.column, loaded.column_names)}"
            )
        for index, fields in enumerate(loaded):
            yield value_row(index, index + 1, fields[data.column])


def json_row(index: int, line: int, raw: bytes, column: str) -> Row:
    """The row of one JSONL line; its own id, where it has one, is kept."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Row(index, line, raw, None, f"line {line}: invalid UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Row(index, line, raw, None, f"line {line}: not JSON: {error}")
    if not isinstance(value, dict) or column not in value:
        held = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        held = held.encode("utf-8", "backslashreplace").decode("utf-8")
        return Row(index, line, raw, None, f"line {line}: no field {column!r} (found: {held})")
    row = value_row(index, line, value[column], raw)
    own = value.get("id")
    return dataclasses.replace(row, id=str(own)) if isinstance(own, (str, int)) else row


def value_row(index: int, line: int, value: Any, raw: bytes | None = None) -> Row:
    """The row of one value that should be text; `raw` is what a malformed one is keyed by."""
    if not isinstance(value, str):
        content = raw if raw is not None else repr(value).encode("utf-8", "backslashreplace")
        message = f"line {line}: expected text, found {type(value).__name__}"
        return Row(index, line, content, None, message)
    try:
        return Row(index, line, value.encode("utf-8"), value)
    except UnicodeEncodeError as error:
        content = raw if raw is not None else value.encode("utf-8", "surrogateescape")
        message = f"line {line}: invalid UTF-8 at character {error.start}"
        return Row(index, line, content, None, message)


def _csv_row(index: int, line: int, fields: list[str], at: int, expected: int) -> Row:
    """The row of one CSV record. Too many fields mean an unquoted comma, so a text cut short."""
    if len(fields) > expected:
        content = "\x1f".join(fields).encode("utf-8", "surrogateescape")
        message = f"line {line}: expected {expected} fields, found {len(fields)}"
        return Row(index, line, content, None, message)
    return value_row(index, line, fields[at] if at < len(fields) else None)


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _guard(lines: Any, path: Path) -> Iterator[Any]:
    """The lines of a file; damage below them (a torn .gz, a failing disk) names the file."""
    try:
        yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}") from None
