"""Strict construction of the configuration dataclasses from plain nested values.

`compose` hands over what Hydra composed; every value is checked against its type and rule, and
the first one that does not fit is refused with key, value, rule and the nearest legal choice.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from ftjob.config.dataset import check_dataset
from ftjob.config.groups import JobConfig, check_fields_together
from ftjob.config.keys import Key, keys_of, union_options
from ftjob.config.shape import check_model_shape
from ftjob.errors import ConfigError, closest, nearest

T = TypeVar("T")
LONGEST = 200  # characters of a value that a message shows


def build(values: Mapping[str, Any]) -> JobConfig:
    """A checked `JobConfig` from nested plain values.

    Raises:
        ConfigError: for an unknown key, a value of the wrong type or outside its rule, and
            for keys that exclude each other.
    """
    config = build_group(JobConfig, values, "")
    check_fields_together(config)
    check_model_shape(config.model)
    check_dataset(config)
    return config


def build_group(group: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """One dataclass from a mapping; nested dataclasses are built in turn."""
    hints = typing.get_type_hints(group)
    leaves = {k.name: k for k in keys_of(group, prefix)}
    names = [f.name for f in dataclasses.fields(group)]  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(
                f"{prefix}{name}={_show(value)}: no such key. {closest(name, names, prefix)}"
                f"Known: {', '.join(f'{prefix}{n}' for n in names)}."
            )
        kind = hints[name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{prefix}{name}={_show(value)}: is a group of keys, not a value."
                )
            arguments[name] = build_group(kind, value, f"{prefix}{name}.")
        else:
            arguments[name] = checked(leaves[f"{prefix}{name}"], value)
    return group(**arguments)


def checked(leaf: Key, value: Any) -> Any:
    """`value` converted to the key's type, if type and rule allow it.

    Raises:
        ConfigError: with key, value, what is allowed and the nearest legal choice.
    """
    options = union_options(leaf.type)
    for option in options:
        fits, converted = _convert(option, value, _numbers(options))
        if not fits:
            continue
        if converted is not None and leaf.rule and not leaf.rule.test(converted):
            raise ConfigError(f"{leaf.name}={_show(value)}: must be {leaf.rule.text} ({leaf.doc}).")
        return converted
    hint = f" {nearest(value, leaf.choices)}" if leaf.choices and isinstance(value, str) else ""
    if isinstance(value, int) and _wide(value):
        hint = " Whole numbers have at most 64 bits."
    raise ConfigError(f"{leaf.name}={_show(value)}: must be {leaf.type_text} ({leaf.doc}).{hint}")


def _numbers(options: Sequence[Any]) -> bool:
    """Whether one of these types has numbers, so that none is meant as text."""
    return any(o in (int, float) or get_origin(o) is tuple for o in options)


def _convert(kind: Any, value: Any, numbers: bool = False) -> tuple[bool, Any]:
    """Whether `value` fits the non-union type `kind`, and the value in that type. With `numbers` a
    number is no text."""
    origin = get_origin(kind)
    if len(options := union_options(kind)) > 1:
        tried = [_convert(option, value, _numbers(options)) for option in options]
        return next((found for found in tried if found[0]), (False, None))
    if origin is Literal:
        return value in get_args(kind) and isinstance(value, str), value
    if origin is tuple:
        element = get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            return False, None
        pairs = [_convert(element, v) for v in value]
        return bool(pairs) and all(fits for fits, _ in pairs), tuple(v for _, v in pairs)
    if origin is dict:
        if not isinstance(value, Mapping):
            return False, None
        items = {str(k): _convert(get_args(kind)[1], v) for k, v in value.items()}
        return all(fits for fits, _ in items.values()), {k: v for k, (_, v) in items.items()}
    if kind is type(None):
        return value is None, None
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number, _real(value) if number else None
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and not _wide(value), value
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return not numbers, str(value)  # model.revision=12345 and run.name=7 are words to the user
    return isinstance(value, kind), value


def _real(value: int | float) -> float:
    """The float of a number; one that is too large for it is infinite, which no rule allows."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _wide(value: int) -> bool:
    return not -(1 << 63) <= value < 1 << 63


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
