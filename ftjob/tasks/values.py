"""Makes a `Row` of one row's values, whatever file they came from, or says what is wrong with them.

`rows` and `pairs` read the values; a row with an error goes on as one, keyed by its raw bytes.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftjob.config.dataset import is_text_alone
from ftjob.config.groups import MOST_NEW_TOKENS, DatasetConfig
from ftjob.errors import DataError, nearest
from ftjob.tasks.base import Row

NO_REFERENCES = "dataset.target_column=null translates without references"
OWN_LIMIT = "max_new_tokens"  # the column with a row's own, where a table has one


def has_references(data: DatasetConfig) -> bool:
    """Whether rows have a reference translation: all of them, or none."""
    if data.task != "translation":
        return False
    if data.test_set is not None or data.target_path is not None:
        return True
    return data.target_column is not None and not is_text_alone(data)


class RowMaker:
    """Rows of the values that a data set's configuration names."""

    def __init__(self, data: DatasetConfig) -> None:
        self._column, self._translates = data.column, data.task == "translation"
        self._target = data.target_column if self._translates else None
        self._source_language, _, self._target_language = data.pair.partition("-")

    def columns(self, names: Iterable[str], nested: bool) -> list[str]:
        """Those of a table's columns that are read; a `nested` source has its target inside."""
        read = [self._column]
        if self._translates:
            read += [OWN_LIMIT, *([] if nested or self._target is None else [self._target])]
        return [name for name in names if name in read]

    def check_columns(self, names: Iterable[str], where: str, nested: bool = False) -> None:
        """Refuse a table without the columns; a `nested` one holds both languages in one column.

        Raises:
            DataError: naming the column, its key and the columns that there are.
        """
        names = list(names)
        check_unique([name for name in names if name in self.columns(names, nested)], where)
        self._check_names(names, where, nested, "column")

    def check_fields(self, records: Sequence[Mapping[str, Any]], where: str) -> None:
        """Refuse JSONL of which these first rows have none of the fields.

        Raises:
            DataError: naming the field, its key and the fields that there are.
        """
        nested = any(isinstance(record.get(self._column), Mapping) for record in records)
        self._check_names(field_names(records), where, nested, "field")

    def _check_names(self, names: Sequence[str], where: str, nested: bool, kind: str) -> None:
        if self._column not in names:
            raise DataError(
                f"{where}: no {kind} {self._column!r} (dataset.column). "
                f"{nearest(self._column, names)}"
            )
        if self._target is not None and not nested and self._target not in names:
            raise DataError(
                f"{where}: no {kind} {self._target!r} (dataset.target_column). "
                f"{nearest(self._target, names)} {NO_REFERENCES}."
            )

    def of_json(self, index: int, line: int, raw: bytes) -> list[Row]:
        """The one row of a JSONL line; its own id is kept."""
        value, problem = json_value(raw)
        if problem is None and (not isinstance(value, dict) or self._column not in value):
            held = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            problem = _no_field(self._column, held)
        if problem is not None:
            return [Row(index, line, raw, None, f"line {line}: {problem}")]
        row = self.of_fields(index, line, value, raw)
        own = own_id(value)
        return [row if own is None else dataclasses.replace(row, id=own)]

    def ids_in_json(self, raw: bytes) -> list[str]:
        """The id of the row that `of_json` makes of a line, by itself in half the time."""
        value, _ = json_value(raw)
        own = own_id(value) if isinstance(value, dict) and self._column in value else None
        return [] if own is None else [own]

    def rows_in(self, raw: bytes) -> int:
        """How many rows `of_json` makes of a line."""
        return 1

    def of_fields(
        self, index: int, line: int, fields: Mapping[str, Any], raw: bytes | None = None
    ) -> Row:
        """The row of named values; for translation its own limit is kept. `raw` is what a malformed
        row is keyed by, else its values."""
        if not self._translates:
            return _text_row(index, line, fields[self._column], raw)
        source, target, problem = self._both(fields)
        limit = fields.get(OWN_LIMIT) if raw is not None else _whole(fields.get(OWN_LIMIT))
        whole = limit is None or (type(limit) is int and 1 <= limit <= MOST_NEW_TOKENS)
        if problem is None and not whole:
            problem = (
                f"{OWN_LIMIT} is {limit!r:.60}, must be a whole number from 1 to {MOST_NEW_TOKENS}"
            )
        if problem is not None:
            values = (source, target) if limit is None else (source, target, limit)
            content = repr(values).encode("utf-8", "backslashreplace")
            return Row(
                index, line, content if raw is None else raw, None, f"line {line}: {problem}"
            )
        return translation_row(index, line, source, target, limit)

    def _both(self, fields: Mapping[str, Any]) -> tuple[Any, Any, str | None]:
        """Source and target, and what is wrong with them."""
        source, target = fields[self._column], None
        names = {"source": self._column, "target": self._target}
        if isinstance(source, Mapping):
            names = {"source": self._source_language, "target": self._target_language}
            held = ", ".join(map(str, source))
            for name in list(names.values())[: 1 if self._target is None else 2]:
                if name not in source:
                    missing = _no_field(str(name), held, f" of dataset.pair in {self._column!r}")
                    return source, None, missing
            both, source = source, source[self._source_language]
            target = None if self._target is None else both[self._target_language]
        elif self._target is not None:
            if self._target not in fields:
                held = ", ".join(map(str, fields))
                return source, None, f"{_no_field(self._target, held)}; {NO_REFERENCES}"
            target = fields[self._target]
        problem = text_problem(source, f" in {names['source']!r}")
        if problem is None and self._target is not None:
            problem = text_problem(target, f" in {names['target']!r}")
        return source, target, problem


def check_unique(names: Sequence[str], where: str) -> None:
    """Refuse two columns of one name: nobody can say which is meant.

    Raises:
        DataError: naming it.
    """
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{where}: {names.count(name)} columns are called {name!r}")


def field_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the fields that any of the records has, printable."""
    names = dict.fromkeys(name for record in records for name in record)
    return [name.encode("utf-8", "backslashreplace").decode("utf-8") for name in names]


def translation_row(
    index: int, line: int, source: str, target: str | None, max_new_tokens: int | None = None
) -> Row:
    """A good row. Its content joins what it holds as a JSON list, so that no two rows of different
    fields have equal contents."""
    content = json.dumps([source, target, max_new_tokens], ensure_ascii=False).encode("utf-8")
    return Row(index, line, content, source, target=target, max_new_tokens=max_new_tokens)


def _text_row(index: int, line: int, value: Any, raw: bytes | None) -> Row:
    """The row of one value that should be text and is the whole content."""
    problem = text_problem(value)
    if problem is None:
        return Row(index, line, value.encode("utf-8"), value)
    if raw is None:
        raw = (
            value.encode("utf-8", "surrogateescape")
            if isinstance(value, str)
            else repr(value).encode("utf-8", "backslashreplace")
        )
    return Row(index, line, raw, None, f"line {line}: {problem}")


def json_value(raw: bytes) -> tuple[Any, str | None]:
    """What a line of JSON holds, and why it holds nothing."""
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_object), None
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8 at byte {error.start}"
    except _Twice as error:
        return None, str(error)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"


class _Twice(ValueError):
    """A name that an object has twice: nobody can say which value is meant."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        shown = twice.encode("utf-8", "backslashreplace").decode("utf-8")
        raise _Twice(f"field {shown!r:.60} is there twice")
    return made


def text_problem(value: Any, where: str = "") -> str | None:
    """Why a value is no text; None where it is."""
    if not isinstance(value, str):
        return f"expected text{where}, found {type(value).__name__}"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"invalid UTF-8{where} at character {error.start}"
    return None


def own_id(fields: Mapping[str, Any]) -> str | None:
    """The id that a row states; one that is neither text nor a whole number is none."""
    own = fields.get("id")
    if isinstance(own, int) and not isinstance(own, bool):
        return str(own)
    return own if isinstance(own, str) and text_problem(own) is None else None


def _whole(value: Any) -> Any:
    """The whole number in a table's cell, else the value: CSV has text alone, and a column where
    some rows have none is one of real numbers in many tables."""
    if value == "" or value != value:
        return None
    text = str(value).strip() if isinstance(value, (str, float)) else ""
    return int(text.split(".")[0]) if re.fullmatch(r"[0-9]{1,18}(\.0*)?", text) else value


def _no_field(name: str, held: str, where: str = "") -> str:
    held = held.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"no field {name!r}{where} (found: {held})"
