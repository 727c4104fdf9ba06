"""config.ini of FasterTransformer: sections of text, read as numbers, flags and words.

`fastertransformer` reads the model's settings with it and writes them, and `convert` translates
what they mean to ours. Standard library only.
"""

from __future__ import annotations

import ast
import configparser
from pathlib import Path
from typing import Any

from ftjob.checkpoint.stored import shown
from ftjob.errors import CheckpointError

_LARGEST = 1 << 20
_LONGEST = 1 << 14


class Section:
    """A section's values; every error names the file, the section and the key."""

    def __init__(self, file: Path, name: str, values: dict[str, str]) -> None:
        self.file, self.name, self.values = file, name, values

    def refuse(self, key: str, rule: str) -> CheckpointError:
        """The error that says what a key must be."""
        return CheckpointError(
            f"{self.file}: [{self.name}] {key}={shown(self.values.get(key))} {rule}"
        )

    def text(self, key: str, default: str | None = None) -> str:
        """A word; without a default the key must be there."""
        if key not in self.values:
            if default is None:
                raise CheckpointError(f"{self.file}: [{self.name}] has no {key}")
            return default
        return self.values[key].strip()

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.text(key, None if default is None else str(default))
        if not (value.isascii() and value.removeprefix("-").isdigit() and len(value) < 12):
            raise self.refuse(key, f"must be a whole number of at least {least}")
        if int(value) < least:
            raise self.refuse(key, f"must be a whole number of at least {least}")
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A number above 0."""
        try:
            value = float(self.text(key, str(default)))
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf"):
            raise self.refuse(key, "must be a number above 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false, in any of the words that the old programs took."""
        value = self.text(key, str(default)).lower()
        if value not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise self.refuse(key, "must be true or false")
        return value in ("true", "1", "yes", "on")

    def mapping(self, key: str) -> dict[str, Any] | None:
        """A dictionary that Python printed into the file; None where there is none."""
        value = self.values.get(key, "")
        if not value.startswith("{") or len(value) > _LONGEST:
            return None
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            raise self.refuse(key, "is no dictionary as Python prints it") from None
        return found if isinstance(found, dict) else None

    def plain(self, key: str) -> Any:
        """A value that Python printed into the file: a number, a flag, None or a word."""
        value = self.text(key)
        words = {"True": True, "False": False, "None": None, "true": True, "false": False}
        if value in words:
            return words[value]
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
        return value


def read_ini(file: Path) -> dict[str, Section]:
    """The sections of a file by name.

    Raises:
        CheckpointError: with the file, and the line where it is no such file.
    """
    try:
        if file.stat().st_size > _LARGEST:
            raise CheckpointError(f"{file}: is larger than {_LARGEST} bytes")
        text = file.read_text(encoding="utf-8")
        # values may hold % and repeat: the old converter dumped whole configurations
        parser = configparser.ConfigParser(
            interpolation=None, strict=False, inline_comment_prefixes=(";",)
        )
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(text)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except (configparser.Error, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{file}: is no settings file: {reason!a}") from None
    return {name: Section(file, name, dict(parser[name])) for name in parser.sections()}
