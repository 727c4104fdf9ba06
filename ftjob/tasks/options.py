"""A row's own decoding options: read out of its fields by the rules of the run's keys.

`prompt_rows` takes them off a row, `prompts` lays them over the run's. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ftjob.config.build import checked
from ftjob.config.groups import DecodeConfig
from ftjob.config.keys import Key, keys_of
from ftjob.config.options import RowOptions, conflict, id_problem
from ftjob.config.words import list_words
from ftjob.errors import ConfigError
from ftjob.tasks.base import Encoder, ModelLimits

OWN: Mapping[str, Key] = MappingProxyType(
    {k.name: k for k in keys_of(DecodeConfig) if k.more.get("per_row")}
)
# FasterTransformer's word-list arrays, by the names they have there
ARRAYS: Mapping[str, str] = MappingProxyType(
    {"bad_words_list": "bad_words", "stop_words_list": "stop_words"}
)

Own = tuple[tuple[str, Any], ...]


def own_options(fields: Mapping[str, Any]) -> Own:
    """A row's options, in the types of the keys, sorted by name; null is not given.

    Raises:
        ValueError: for a value out of range or of another type, naming it and the rule.
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        key = ARRAYS.get(name, name)
        if key in found:
            raise ValueError(f"{name} and {key} are the same option")
        try:
            if name in ARRAYS:
                found[key] = csv_or_array(value)
            elif name in ARRAYS.values() and value in ([], ()):
                found[key] = ()
            else:
                found[key] = checked(OWN[name], value)
        except ConfigError as error:
            raise ValueError(str(error).rstrip(".")) from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return tuple(sorted(found.items()))


def csv_or_array(value: Any) -> str | tuple[tuple[int, ...], ...]:
    """A word list as FasterTransformer's clients write it: CSV text, or its array of numbers."""
    return value if isinstance(value, str) else list_words(value)


def row_options(
    own: Own, run: RowOptions, decode: DecodeConfig, encoder: Encoder, limits: ModelLimits
) -> tuple[RowOptions, int]:
    """A row's options, words as ids, and its most new tokens; `run` are those of rows without any.

    Raises:
        ValueError: where they do not go together, or with the model.
    """
    if not own:
        return run, decode.max_new_tokens
    given = dict(own)
    options = dataclasses.replace(run, **given).with_ids(encoder.encode)
    if not options.drawn and "num_return_sequences" not in given:
        options = dataclasses.replace(options, num_return_sequences=1)  # a greedy row has one
    assert isinstance(options, DecodeConfig)
    most = options.max_new_tokens
    problem = conflict(options, decode.convention, decode.beams, most, given)
    if problem is None:
        problem = id_problem(options, limits.vocab)
    if problem is None and options.num_return_sequences > decode.num_return_sequences:
        problem = (
            f"num_return_sequences={options.num_return_sequences} is more than the run's "
            f"decode.num_return_sequences={decode.num_return_sequences}"
        )
    if problem is None and options.prompt_logprob and limits.seq2seq:
        problem = "prompt_logprob: behind an encoder there is no prompt"
    if problem is not None:
        raise ValueError(problem)
    return options, most
