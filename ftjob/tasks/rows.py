"""Reads a dataset as a stream of rows: a shipped file, local ones, or a set of the hub's.

One malformed row is a row with an error and its line number, and the stream goes on; a file that
cannot be read at all is refused. The rows go to the task's `prepare`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ftjob.config.dataset import TEXT, file_kind
from ftjob.config.groups import DatasetConfig
from ftjob.errors import DataError, nearest
from ftjob.tasks.base import Row
from ftjob.tasks.files import BOM, guarded, open_data
from ftjob.tasks.pairs import check_pair, pair_rows, sacrebleu_files
from ftjob.tasks.values import RowMaker

SHIPPED: Mapping[str, str] = MappingProxyType(
    {"lambada_test": "lambada_test.jsonl.gz", "captions_en_de": "captions_en_de.jsonl"}
)
DEMO = Path(__file__).resolve().parent.parent / "demo"
FIELD_LIMIT = 1 << 30  # the csv module's own limit of 128 KiB is less than a long document


class RowSource:
    """The rows of a dataset, in order. `total` counts all rows passed so far, limit or not."""

    def __init__(self, dataset: DatasetConfig) -> None:
        self.dataset, self._maker = dataset, RowMaker(dataset)
        self.total = 0
        self.name = _name(dataset)

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
            DataError: for a file that is absent or whose ending names no format, for two files of
                different lengths, for a test set that is not to be had.
        """
        if self.dataset.hub is not None:
            return
        pair = self._pair()
        if pair is not None:
            check_pair(*pair)
        else:
            self._reader()

    def _all(self) -> Iterator[Row]:
        if self.dataset.hub is not None:
            return self._hub(self.dataset.hub)
        pair = self._pair()
        if pair is not None:
            return pair_rows(*pair)
        reader, path = self._reader()
        return reader(path)

    def _pair(self) -> tuple[Path, Path | None] | None:
        """The text files, where the rows are lines of such."""
        data = self.dataset
        if data.test_set is not None:
            return sacrebleu_files(data.test_set, data.pair)
        if data.path is None:
            return None
        source = Path(data.path).expanduser()
        if data.target_path is not None:
            return source, Path(data.target_path).expanduser()
        lines = data.task == "translation" and file_kind(data.path) == TEXT
        return (source, None) if lines else None

    def _reader(self) -> tuple[Callable[[Path], Iterator[Row]], Path]:
        """The reader of the file's format, told by its ending, and the file."""
        path = _path(self.dataset)
        readers: dict[str, Callable[[Path], Iterator[Row]]] = {
            ".jsonl": self._jsonl,
            ".json": self._jsonl,
            ".csv": self._csv,
            ".tsv": self._csv,
            ".parquet": self._parquet,
        }
        kind = file_kind(path.name)
        if kind not in readers:
            text = "" if self.dataset.task != "translation" else (
                " A text file, a row a line, ends in .txt, or has dataset.target_path beside it."
            )  # fmt: skip
            raise DataError(
                f"dataset.path={path}: cannot tell the format from {kind or 'no'!r} "
                f"ending. {nearest(kind, readers)}{text}"
            )
        if not path.is_file():
            raise DataError(f"dataset.path={path}: no such file")
        return readers[kind], path

    def _jsonl(self, path: Path) -> Iterator[Row]:
        index = 0
        with open_data(path) as file:
            for line, raw in enumerate(guarded(file, path), start=1):
                raw = raw.removeprefix(BOM if line == 1 else b"").rstrip(b"\r\n")
                if not raw.strip():
                    continue
                yield self._maker.of_json(index, line, raw)
                index += 1

    def _csv(self, path: Path) -> Iterator[Row]:
        delimiter = "\t" if ".tsv" in path.suffixes else ","
        index = 0
        csv.field_size_limit(FIELD_LIMIT)
        with open_data(path) as file:
            text = io.TextIOWrapper(
                file, encoding="utf-8-sig", errors="surrogateescape", newline=""
            )
            reader = csv.reader(guarded(text, path), delimiter=delimiter)
            try:
                names = next(reader, [])
                self._maker.check_columns(names, f"{path}: line 1")
                line = reader.line_num + 1
                for fields in reader:
                    if fields:
                        yield self._csv_row(index, line, fields, names)
                        index += 1
                    line = reader.line_num + 1
            except csv.Error as error:
                raise DataError(f"{path}: line {reader.line_num}: {error}") from None

    def _csv_row(self, index: int, line: int, fields: list[str], names: list[str]) -> Row:
        """The row of a record. Too many fields mean an unquoted comma, so a text cut short."""
        if len(fields) > len(names):
            content = "\x1f".join(fields).encode("utf-8", "surrogateescape")
            message = f"line {line}: expected {len(names)} fields, found {len(fields)}"
            return Row(index, line, content, None, message)
        values: dict[str, Any] = dict.fromkeys(names) | dict(zip(names, fields, strict=False))
        return self._maker.of_fields(index, line, values)

    def _parquet(self, path: Path) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            schema = file.schema_arrow
            columns = [c for c in self._maker.columns if c in schema.names]
            nested = bool(columns) and pyarrow.types.is_struct(schema.field(columns[0]).type)
            self._maker.check_columns(schema.names, str(path), nested)
            index = 0
            for batch in file.iter_batches(columns=columns[:1] if nested else columns):
                for fields in batch.to_pylist():
                    yield self._maker.of_fields(index, index + 1, fields)
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
            shipped = "demo_en_de" if data.task == "translation" else "lambada"
            raise DataError(
                f"dataset.hub={name}: not in the cache (HF_HOME) and could not be loaded: "
                f"{type(error).__name__}: {reason[0]}\nThe shipped copy needs no network "
                f"(dataset={shipped}); a local file is given by dataset={data.task} "
                "dataset.path=FILE."
            ) from None
        nested = data.column in loaded.column_names and any(
            isinstance(fields[data.column], Mapping) for fields in loaded.take(1)
        )
        self._maker.check_columns(loaded.column_names, f"dataset.hub={name}", nested)
        for index, fields in enumerate(loaded):
            yield self._maker.of_fields(index, index + 1, fields)


def _path(data: DatasetConfig) -> Path:
    """The file of `dataset.path`; null is the shipped LAMBADA.

    Raises:
        DataError: for a builtin one that is not shipped.
    """
    path = data.path or "builtin:lambada_test"
    if not path.startswith("builtin:"):
        return Path(path).expanduser()
    name = path.removeprefix("builtin:")
    if name not in SHIPPED:
        raise DataError(
            f"dataset.path={path}: no such data set is shipped. "
            f"{nearest(path, [f'builtin:{n}' for n in SHIPPED])}"
        )
    return DEMO / SHIPPED[name]


def _name(data: DatasetConfig) -> str:
    """What reports call the data set."""
    if data.hub is not None:
        return f"{data.hub} ({data.hub_config or 'default'}, {data.split})"
    if data.test_set is not None:
        return f"{data.test_set} {data.pair} (sacrebleu)"
    if data.target_path is not None:
        return f"{data.path} and {data.target_path}"
    path = data.path or "builtin:lambada_test"
    shipped = SHIPPED.get(path.removeprefix("builtin:")) if path.startswith("builtin:") else None
    return f"shipped {shipped}" if shipped is not None else path
