"""Triton's config.pbtxt: protocol buffers in their text form, as nested lists of fields.

`old_settings` takes FasterTransformer's parameters out of it. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<word>[\w.+-]+)|(?P<sign>[{}\[\]<>:,;])"""
)
_DEEPEST = 32


@dataclass(frozen=True)
class Message:
    """The fields of a message in their order; a value is text or a message, lists are several."""

    fields: list[tuple[str, str | Message]] = field(default_factory=list)

    def all(self, name: str) -> list[str | Message]:
        """Every value of a field."""
        return [value for key, value in self.fields if key == name]

    def text(self, name: str) -> str | None:
        """The last text of a field."""
        return next((v for v in reversed(self.all(name)) if isinstance(v, str)), None)

    def message(self, name: str) -> Message:
        """The last message of a field, empty where there is none."""
        found = (v for v in reversed(self.all(name)) if isinstance(v, Message))
        return next(found, Message())


def parse_pbtxt(text: str) -> Message:
    """The message that a file's text is.

    Raises:
        ValueError: with the line and what is wrong there.
    """
    return _fields(_Tokens(text), "", 0)


class _Tokens:
    """Words, strings and signs of a text, one ahead."""

    def __init__(self, text: str) -> None:
        self._found = self._scan(text)
        self.line = 1
        self.next = ""
        self.take()

    def _scan(self, text: str) -> Iterator[tuple[str, int]]:
        at, line = 0, 1
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError(f"line {line}: {text[at]!a} is not known here")
            if match.lastgroup:
                yield match[0], line
            line += match[0].count("\n")
            at = match.end()
        yield "", line

    def take(self) -> str:
        """The token at hand; the next one takes its place."""
        taken = self.next
        self.next, self.line = next(self._found, ("", self.line))
        return taken

    def expect(self, sign: str) -> None:
        """Take a sign that must be there."""
        if self.next != sign:
            found = f"{self.next!a}" if self.next else "the end"
            raise ValueError(f"line {self.line}: expected {sign or 'the end'}, found {found}")
        self.take()


def _fields(tokens: _Tokens, closing: str, depth: int) -> Message:
    """Fields up to the closing sign."""
    if depth > _DEEPEST:
        raise ValueError(f"line {tokens.line}: nested too deeply")
    found = Message()
    while tokens.next != closing:
        name = tokens.take()
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"line {tokens.line}: expected a field's name, found {name!a}")
        if tokens.next == ":":
            tokens.take()
        if tokens.next == "[":
            tokens.take()
            while tokens.next != "]":
                found.fields.append((name, _value(tokens, depth)))
                if tokens.next != "]":
                    tokens.expect(",")
            tokens.take()
        else:
            found.fields.append((name, _value(tokens, depth)))
        while tokens.next in (",", ";") and tokens.next:
            tokens.take()
    tokens.expect(closing)
    return found


def _value(tokens: _Tokens, depth: int) -> str | Message:
    """Text, a number or word as text, or a message."""
    if tokens.next in ("{", "<"):
        closing = {"{": "}", "<": ">"}[tokens.take()]
        return _fields(tokens, closing, depth + 1)
    if not re.match(r"[\w.+\"'-]", tokens.next):
        found = f"{tokens.next!a}" if tokens.next else "the end"
        raise ValueError(f"line {tokens.line}: expected a value, found {found}")
    taken = tokens.take()
    return re.sub(r"\\(.)", r"\1", taken[1:-1]) if taken[0] in "\"'" else taken
