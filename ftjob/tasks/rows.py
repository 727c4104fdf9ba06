"""Reads a dataset as a stream of rows: a shipped file, local ones, or a set of the hub's.

One malformed row is a row with an error and its line number, and the stream goes on; a file that
cannot be read at all is refused. The rows go to the task's `prepare`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from ftjob.config.dataset import TABLES, TEXT, file_kind, is_text_alone
from ftjob.config.groups import DatasetConfig
from ftjob.errors import DataError, nearest
from ftjob.tasks.base import Row
from ftjob.tasks.files import BOM, absent, guarded, open_data, text_lines
from ftjob.tasks.ids import Ids, doubled_id
from ftjob.tasks.pairs import check_pair, pair_rows, sacrebleu_files
from ftjob.tasks.prompt_rows import PromptMaker
from ftjob.tasks.values import RowMaker, json_value

SHIPPED: Mapping[str, str] = MappingProxyType(
    {"lambada_test": "lambada_test.jsonl.gz", "captions_en_de": "captions_en_de.jsonl"}
)
DEMO = Path(__file__).resolve().parent.parent / "demo"
LOOKED_AT = 8  # of JSONL's first rows, of which one must have the fields that the task reads
FIELD_LIMIT = 1 << 30  # the csv module's own limit of 128 KiB is less than a long document


class RowSource:
    """The rows of a dataset, in order. `total` counts all rows passed so far, limit or not."""

    def __init__(self, dataset: DatasetConfig) -> None:
        self.dataset = dataset
        self._maker: RowMaker | PromptMaker = (
            PromptMaker(dataset) if dataset.task == "prompts" else RowMaker(dataset)
        )
        self.total = 0
        self._left_out: bytes | bytearray = b""
        self.name = _name(dataset)

    def rows(self, left_out: bytes | bytearray = b"") -> Iterator[Row]:
        """Rows up to dataset.limit; the rest is counted only. Rows may be `left_out`, by a flag
        each, and are then not looked into where that saves time.

        Raises:
            DataError: where the dataset as a whole cannot be read, naming it.
        """
        limit = self.dataset.limit
        self._left_out = left_out
        for row in self._all():
            if (limit is None or row.index < limit) and not self._is_left_out(row.index):
                yield row
            self.total = row.index + 1
        self.total = max(self.total, len(left_out))
        if self.total == 0:
            raise DataError(f"{self.name}: holds no rows")

    def _is_left_out(self, index: int) -> bool:
        return index < len(self._left_out) and bool(self._left_out[index])

    def files(self) -> list[Path]:
        """The files that hold the rows; none where the set is the hub's.

        Raises:
            DataError: as `check`.
        """
        if self.dataset.hub is not None:
            return []
        pair = self._pair()
        return [path for path in pair if path is not None] if pair else [self._reader()[1]]

    def check(self) -> None:
        """Refuse what cannot be a dataset, before anything starts. Of a table the first row is
        read; JSONL, whose rows may have ids of their own, and text files beside each other are
        read to their ends, without being kept.

        Raises:
            DataError: for a file that is absent, empty or whose ending names no format, for a
                column that is not there or a field that none of JSONL's first rows has, for an id
                that two rows have, for two files of different lengths, for a set that is not to
                be had.
        """
        pair = self._pair() if self.dataset.hub is None else None
        if pair is not None:
            check_pair(*pair)
        if next(self._all(), None) is None:
            raise DataError(f"{self.name}: holds no rows")
        if pair is None and self.dataset.hub is None:
            reader, path = self._reader()
            if reader == self._jsonl:
                self._check_fields(path)
                self._check_ids(lambda: self._ids(path))
            elif self.dataset.task == "prompts":
                self._check_ids(lambda: ((r.line, r.id) for r in self._all() if r.id is not None))

    def _check_fields(self, path: Path) -> None:
        first = islice(_json_lines(path), min(LOOKED_AT, self.dataset.limit or LOOKED_AT))
        values = [(line, json_value(raw)[0]) for line, raw in first]
        records = [(line, value) for line, value in values if isinstance(value, dict)]
        if records:
            start, stop = records[0][0], records[-1][0]
            where = f"line {start}" if start == stop else f"lines {start} to {stop}"
            self._maker.check_fields([value for _, value in records], f"{path}: {where}")

    def _check_ids(self, ids: Ids) -> None:
        doubled = doubled_id(ids)
        if doubled is not None:
            raise DataError(
                f"{self.name}: id {doubled.id!r} is on line {doubled.first} and again on line "
                f"{doubled.second}; ids must be unique"
            )

    def _ids(self, path: Path) -> Iterator[tuple[int, str]]:
        """Line and own id of the JSONL rows that have one. A line without the name, which may be
        escaped, is not looked into."""
        for line, raw in _json_lines(path):
            if b'id"' in raw or b"\\u00" in raw:
                for own in self._maker.ids_in_json(raw):
                    yield line, own

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
        return (source, None) if is_text_alone(data) else None

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
        if isinstance(self._maker, PromptMaker):
            readers[TEXT] = self._text
        if not path.is_file():
            raise DataError(f"dataset.path={path}: {absent(path)}")
        kind = file_kind(path.name)
        if kind in readers:
            return readers[kind], path
        if self.dataset.task == "translation":
            raise DataError(_text_alone(self.dataset, path))
        raise DataError(
            f"dataset.path={path}: cannot tell the format from {kind or 'no'!r} ending. "
            f"{nearest(kind, readers)}"
        )

    def _jsonl(self, path: Path) -> Iterator[Row]:
        index = 0
        for line, raw in _json_lines(path):
            if index == 0 and file_kind(path.name) == ".json" and raw.lstrip().startswith(b"["):
                raise DataError(
                    f"{path}: line {line}: begins a JSON array. A line holds one row (JSON Lines), "
                    "as written by: jq -c '.[]'"
                )
            if self._is_left_out(index):
                count = self._maker.rows_in(raw)
                if self._left_out.count(1, index, index + count) == count:
                    index += count
                    continue
            rows = self._maker.of_json(index, line, raw)
            yield from rows
            index += len(rows)

    def _text(self, path: Path) -> Iterator[Row]:
        assert isinstance(self._maker, PromptMaker)
        for index, raw in enumerate(text_lines(path)):
            if not self._is_left_out(index):
                yield self._maker.of_text(index, index + 1, raw)

    def _csv(self, path: Path) -> Iterator[Row]:
        delimiter = "\t" if ".tsv" in path.suffixes else ","
        index = 0
        csv.field_size_limit(FIELD_LIMIT)
        with open_data(path) as file:
            text = io.TextIOWrapper(
                file, encoding="utf-8-sig", errors="surrogateescape", newline=""
            )
            reader = csv.reader(guarded(text, path), delimiter=delimiter, strict=True)
            line = 1
            try:
                names = next(reader, None)
                if names is None:
                    return
                self._maker.check_columns(names, f"{path}: line 1")
                line = reader.line_num + 1
                for fields in reader:
                    if fields:
                        if not self._is_left_out(index):
                            yield self._csv_row(index, line, fields, names)
                        index += 1
                    line = reader.line_num + 1
            except csv.Error as error:
                raise DataError(f"{path}: line {line}: {_csv_problem(error)}") from None

    def _csv_row(self, index: int, line: int, fields: list[str], names: list[str]) -> Row:
        """The row of a record. Too many fields mean an unquoted comma, so a text cut short; too few
        a record cut short."""
        if len(fields) != len(names):
            content = "\x1f".join(fields).encode("utf-8", "surrogateescape")
            message = f"line {line}: expected {len(names)} fields, found {len(fields)}"
            return Row(index, line, content, None, message)
        values = dict(zip(names, fields, strict=True))
        return self._maker.of_fields(index, line, values)

    def _parquet(self, path: Path) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            schema, column = file.schema_arrow, self.dataset.column
            at = schema.get_field_index(column)  # -1 where there is none, or several
            nested = at >= 0 and pyarrow.types.is_struct(schema.field(at).type)
            self._maker.check_columns(schema.names, str(path), nested)
            index = 0
            for batch in file.iter_batches(columns=self._maker.columns(schema.names, nested)):
                count = batch.num_rows
                if self._left_out.count(1, index, index + count) == count:
                    index += count
                    continue
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
        first = next(iter(loaded.take(1)), None)
        if first is None:
            return
        nested = isinstance(first.get(data.column), Mapping)
        self._maker.check_columns(loaded.column_names, f"dataset.hub={name}", nested)
        for index, fields in enumerate(loaded):
            yield self._maker.of_fields(index, index + 1, fields)


def _json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, without their ends, each with its number from 1."""
    with open_data(path) as file:
        for line, raw in enumerate(guarded(file, path), start=1):
            raw = raw.removeprefix(BOM if line == 1 else b"").rstrip(b"\r\n")
            if raw.strip():
                yield line, raw


def _csv_problem(error: csv.Error) -> str:
    """What is wrong with the record that begins on a line."""
    if "unexpected end of data" in str(error):
        return "a quote is opened there and never closed"
    return str(error)


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


def _text_alone(data: DatasetConfig, path: Path) -> str:
    """What is missing where a translation set is one file that is no table: named where a file of
    the same name in the other language lies beside it."""
    source, _, target = data.pair.partition("-")
    packed = ".gz" if path.suffix == ".gz" else ""
    ending = f".{source}{packed}"
    beside = path.with_name(f"{path.name.removesuffix(ending)}.{target}{packed}")
    found = path.name.endswith(ending) and beside.is_file()
    return (
        f"dataset.path={path}: a text file, a row a line, has its translations beside it: add "
        f"dataset.target_path={beside if found else 'FILE'}. To translate without references add "
        f"dataset.target_column=null. A file with columns ends in {', '.join(TABLES)}."
    )


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
