"""Makes a `Row` of a user's prompt: its text or its token ids, its id, and its own options.

`rows` reads the values, as for every task; a row with an error goes on as one, keyed by its raw
bytes. `prompts` makes requests of the rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftjob.config.groups import DatasetConfig
from ftjob.errors import DataError, nearest
from ftjob.tasks import openai_batch
from ftjob.tasks.base import Row
from ftjob.tasks.options import ARRAYS, OWN, own_options
from ftjob.tasks.values import check_unique, field_names, json_value, own_id, text_problem

IDS = "prompt_ids"


class PromptMaker:
    """Rows of prompts. A row has the prompt's column or prompt_ids; nothing that is no option."""

    def __init__(self, data: DatasetConfig) -> None:
        self._column = data.column
        self._known = {self._column, IDS, "id", *OWN, *ARRAYS}

    def check_columns(self, names: Iterable[str], where: str, nested: bool = False) -> None:
        """Refuse a table without prompts, or with a column that is no option.

        Raises:
            DataError: naming the column, and what there is.
        """
        names = list(names)
        check_unique(names, where)
        if self._column not in names and IDS not in names:
            raise DataError(self._no_prompt(where, "column", names))
        for name in names:
            if name not in self._known:
                raise DataError(f"{where}: no such option: {name!r}. {nearest(name, self._known)}")

    def check_fields(self, records: Sequence[Mapping[str, Any]], where: str) -> None:
        """Refuse JSONL of which these first rows have no prompt, and are no requests of OpenAI's.

        Raises:
            DataError: naming the fields, and what there is.
        """
        names = field_names(records)
        asked = any(map(openai_batch.is_request, records))
        if not asked and self._column not in names and IDS not in names:
            raise DataError(self._no_prompt(where, "field", names))

    def _no_prompt(self, where: str, kind: str, names: Sequence[str]) -> str:
        return (
            f"{where}: no {kind} {self._column!r} (dataset.column) and no {IDS!r}. "
            f"{nearest(self._column, names)}"
        )

    def columns(self, names: Iterable[str], nested: bool) -> list[str]:
        """Those of a table's columns that are read: all."""
        return list(names)

    def ids_in_json(self, raw: bytes) -> list[str]:
        """The ids of the rows that a line gives, as far as they have some."""
        value, _ = json_value(raw)
        if isinstance(value, dict) and openai_batch.is_request(value):
            return [row.id for row in self.of_json(0, 1, raw) if row.id is not None]
        own = own_id(value) if isinstance(value, dict) else None
        return [] if own is None else [own]

    def rows_in(self, raw: bytes) -> int:
        """How many rows `of_json` makes of a line."""
        return len(self.of_json(0, 1, raw)) if openai_batch.may_be_several(raw) else 1

    def of_json(self, index: int, line: int, raw: bytes) -> list[Row]:
        """The rows of one JSONL line: one of ours, or those of the prompts of a request of
        OpenAI's; `index` is the first one's."""
        value, problem = json_value(raw)
        if problem is None and not isinstance(value, dict):
            problem = f"expected a JSON object, found {type(value).__name__}"
        if problem is None and rb"\ud" in raw.lower():
            problem = text_problem(json.dumps(value, ensure_ascii=False))
        if problem is not None:
            return [Row(index, line, raw, None, f"line {line}: {problem}")]
        if not openai_batch.is_request(value):
            return [self.of_fields(index, line, value, raw)]
        try:
            parts = openai_batch.fields_of(value, self._column)
            rows = [self.of_fields(index + i, line, part, raw) for i, part in enumerate(parts)]
        except ValueError as error:
            own = value["custom_id"] if isinstance(value["custom_id"], str) else None
            rows = [Row(index, line, raw, None, f"line {line}: {error}", own)]
        return [
            dataclasses.replace(
                row, repeats=(("openai", openai_batch.repeated(value, part, len(rows))),)
            )
            for part, row in enumerate(rows)
        ]

    def of_text(self, index: int, line: int, raw: bytes) -> Row:
        """The row of a line of text."""
        try:
            return self.of_fields(index, line, {self._column: raw.decode("utf-8")}, raw)
        except UnicodeDecodeError as error:
            return Row(index, line, raw, None, f"line {line}: invalid UTF-8 at byte {error.start}")

    def of_fields(
        self, index: int, line: int, fields: Mapping[str, Any], raw: bytes | None = None
    ) -> Row:
        """The row of named values; null is not given. `raw` is what a malformed one is keyed by."""
        given = {k: v for k, v in fields.items() if v is not None}
        name = own_id(given)
        try:
            if raw is None:
                given = _of_cells(given, self._column)
            name, stated = own_id(given), given.pop("id", None)
            if stated is not None and name is None:
                raise ValueError(f"id is {_shown(stated)}, must be text or a whole number")
            row = self._row(index, line, given)
        except ValueError as error:
            if raw is None:
                raw = repr(fields).encode("utf-8", "backslashreplace")
            return Row(index, line, raw, None, f"line {line}: {error}", name)
        return dataclasses.replace(row, id=name)

    def _row(self, index: int, line: int, given: Mapping[str, Any]) -> Row:
        """The row of values that are not null.

        Raises:
            ValueError: with what is wrong with them.
        """
        for name in given:
            if name not in self._known:
                near = nearest(name[:60], self._known)
                raise ValueError(f"no such field: {_shown(name)}. {near}")
        text, ids = given.get(self._column), given.get(IDS)
        if text is None and ids is None:
            raise ValueError(f"no {self._column!r} and no {IDS!r}")
        if text is not None and ids is not None:
            raise ValueError(f"both {self._column!r} and {IDS!r}: a row has one prompt")
        if ids is not None:
            ids = _ids(ids)
        elif problem := text_problem(text):
            raise ValueError(problem)
        own = own_options({k: v for k, v in given.items() if k not in (self._column, IDS)})
        content = json.dumps([text, ids, own], ensure_ascii=False).encode("utf-8")
        return Row(index, line, content, text, prompt_ids=ids, own=own)


def _of_cells(fields: Mapping[str, Any], column: str) -> dict[str, Any]:
    """A table's cells as JSON would have them: in CSV all are text, an empty one is not given, and
    a column of whole numbers with gaps is one of real ones in many tables.

    Raises:
        ValueError: for text that is not UTF-8.
    """
    given: dict[str, Any] = {}
    for name, cell in fields.items():
        value = cell
        if isinstance(cell, str) and (problem := text_problem(cell, f" in {name!r}")):
            raise ValueError(problem)
        words = name in ("bad_words", "stop_words", *ARRAYS)
        if isinstance(cell, str) and name not in (column, "id"):
            if cell.lower() in ("true", "false"):
                value = cell.lower() == "true"
            elif cell and (not words or cell.startswith("[")):
                value, problem = json_value(cell.encode())
                value = cell if problem else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if cell not in ("", None) and cell == cell:  # not a number is not given
            given[name] = value
    return given


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or any(type(i) is not int or i < 0 for i in value):
        raise ValueError(f"{IDS} is {value!r:.60}, must be a list of token ids")
    return tuple(value)


def _shown(value: Any) -> str:
    """A value for a message, whatever is in it."""
    return repr(value)[:60].encode("utf-8", "backslashreplace").decode("utf-8")
