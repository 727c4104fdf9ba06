"""How a configuration key is declared: its rule, its meaning, and whether it shapes the answers.

`groups` declares the keys with `key(...)`; `build` checks values against them, `compose` checks
overrides against them, and `table` renders the README's list of keys from them.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Rule:
    """A test of one value, and the sentence that states it to the user."""

    text: str
    test: Callable[[Any], bool]


def at_least(low: int) -> Rule:
    """Numbers of `low` or more; words such as auto are left to the type."""
    return Rule(f"at least {low}", lambda v: isinstance(v, str) or v >= low)


def between(low: int, high: int) -> Rule:
    """Numbers from `low` to `high`; words such as auto are left to the type."""
    return Rule(f"from {low} to {high}", lambda v: isinstance(v, str) or low <= v <= high)


def positive(high: int) -> Rule:
    """Numbers above 0, `high` at most; words such as auto are left to the type."""
    return Rule(f"above 0, at most {high}", lambda v: isinstance(v, str) or 0 < v <= high)


def each(rule: Rule) -> Rule:
    """The rule for a number, or for every number of a list."""
    return Rule(
        rule.text,
        lambda v: all(map(rule.test, v)) if isinstance(v, tuple) else rule.test(v),
    )


FINITE = Rule("finite numbers", lambda v: all(map(math.isfinite, v.values())))


def key(
    default: Any,
    doc: str,
    *,
    rule: Rule | None = None,
    shapes_answer: bool = False,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Declare a key. `shapes_answer` marks what a resumed run must not change; `more` are facts of
    its own kind."""
    return field(default=default, metadata=about(doc, rule, shapes_answer) | {"more": more})


def about(doc: str, rule: Rule | None = None, shapes_answer: bool = False) -> dict[str, Any]:
    """The metadata of a key, for fields that need a default factory."""
    return {"doc": doc, "rule": rule, "shapes_answer": shapes_answer}


@dataclass(frozen=True)
class Key:
    """One leaf of the configuration tree, as declared."""

    name: str
    type: Any
    default: Any
    doc: str
    rule: Rule | None
    shapes_answer: bool
    more: Mapping[str, Any]

    @property
    def default_text(self) -> str:
        """The default as a user would write it."""
        return {"None": "null", "": '""'}.get(str(self.default), str(self.default))

    @property
    def type_text(self) -> str:
        """The type as a user would write it: `auto | int`, `f32 | bf16`, `str | null`."""
        return " | ".join(_type_words(self.type))

    @property
    def choices(self) -> tuple[str, ...]:
        """The legal words, where the type lists words."""
        found: list[str] = []
        for option in union_options(self.type):
            if get_origin(option) is Literal:
                found += [str(word) for word in get_args(option)]
        return tuple(found)


def keys_of(group: type, prefix: str = "") -> Iterator[Key]:
    """Every leaf key below the dataclass `group`, depth first, in declaration order."""
    hints = typing.get_type_hints(group)
    for f in dataclasses.fields(group):
        name, kind = f"{prefix}{f.name}", hints[f.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from keys_of(kind, f"{name}.")
            continue
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        meta = f.metadata
        facts = meta["doc"], meta["rule"], meta["shapes_answer"], meta.get("more", {})
        yield Key(name, kind, default, *facts)


def union_options(kind: Any) -> tuple[Any, ...]:
    """The members of a union type, or the type itself."""
    if get_origin(kind) in (typing.Union, types.UnionType):
        return get_args(kind)
    return (kind,)


def _type_words(kind: Any) -> list[str]:
    words: list[str] = []
    for option in union_options(kind):
        origin = get_origin(option)
        if origin is Literal:
            words += [str(word) for word in get_args(option)]
        elif option is type(None):
            words.append("null")
        elif origin is tuple:
            words.append(f"[{' | '.join(_type_words(get_args(option)[0]))}, ...]")
        elif origin is dict:
            words.append("{" + ": ".join(a.__name__ for a in get_args(option)) + "}")
        else:
            words.append(option.__name__)
    return words


def render_table(groups: Mapping[str, type[Any]]) -> str:
    """The README's table of keys: name, type, default, rule and meaning, a row each."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for group, cls in groups.items():
        for k in keys_of(cls, f"{group}."):
            rule = f" ({k.rule.text})" if k.rule else ""
            mark = " †" if k.shapes_answer else ""
            kind = k.type_text.replace("|", "\\|")
            lines.append(f"| `{k.name}`{mark} | {kind} | {k.default_text} | {k.doc}{rule} |")
    return "\n".join(lines) + "\n"
