"""What tasks that generate have in common: which requests fit, and what a record says of an answer.

`translation`, `prompts` and `lambada` make requests and records with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ftjob.config.groups import DatasetConfig, DecodeConfig
from ftjob.config.options import RowOptions, id_problem
from ftjob.errors import ConfigError
from ftjob.tasks.base import (
    Encoder,
    Generated,
    GenerateRequest,
    Hypothesis,
    ModelLimits,
    NoTokenizer,
)


def run_options(decode: DecodeConfig, encoder: Encoder, limits: ModelLimits) -> RowOptions:
    """The run's options for rows without their own, words as ids.

    Raises:
        ConfigError: for a word without tokens, or an id that the vocabulary has not.
    """
    try:
        options = decode.with_ids(encoder.encode)
        problem = id_problem(options, limits.vocab)
    except (ValueError, NoTokenizer) as error:
        problem = str(error)
    if problem is None and options.prompt_logprob and limits.seq2seq:
        problem = "prompt_logprob=true: behind an encoder there is no prompt"
    if problem is not None:
        raise ConfigError(f"decode.{problem}.")
    return options


def misfit(ids: Sequence[int], max_new_tokens: int, beams: int, limits: ModelLimits) -> str | None:
    """Why a device could not run these ids; None where it can."""
    if not ids:
        return "the text has no tokens"
    if (highest := max(ids)) >= limits.vocab:
        return f"token id {highest} is outside of the model's vocabulary of {limits.vocab}"
    need = len(ids) + max_new_tokens * beams
    if limits.cache_tokens is not None and need > limits.cache_tokens:
        return (
            f"{len(ids)} tokens and {max_new_tokens} new ones of {beams} "
            f"{'beams' if beams > 1 else 'beam'} take {need} of the cache, a device has room for "
            f"{limits.cache_tokens}"
        )
    return None


def longest(dataset: DatasetConfig, new: int, limits: ModelLimits) -> tuple[int | None, str]:
    """The longest prompt or source in tokens for so many new ones, and the rule that says so."""
    most = dataset.max_source_tokens
    rule = f"dataset.max_source_tokens is {most}"
    if not limits.seq2seq and limits.positions is not None:
        room = max(0, limits.positions - new)
        if most is None or room < most:
            return room, f"{new} new ones leave {room} of {limits.positions} positions"
    return most, rule


def answer_record(
    request: GenerateRequest, answer: Generated, encoder: Encoder, decode: DecodeConfig
) -> dict[str, Any]:
    """The line of samples.jsonl for an answered text."""
    row = request.row
    record = {
        "id": row.id or request.key,
        "key": request.key,
        "index": row.index,
        "line": row.line,
        "input": row.text,
        "target": row.target,
        **answer_fields(request, answer, encoder, decode),
        "tokens": len(request.ids),
    }
    if request.cut_tokens:
        record["cut_tokens"] = request.cut_tokens
    return record


def answer_fields(
    request: GenerateRequest, answer: Generated, encoder: Encoder, decode: DecodeConfig
) -> dict[str, Any]:
    """The record's part that says what was generated: the best hypothesis, and `hypotheses` where
    several were asked for. `score`, by which hypotheses rank, is there with beams alone."""
    best = answer.hypotheses[0]
    fields: dict[str, Any] = {
        "output": _text(best, encoder),
        "output_ids": best.ids,
        "finish_reason": best.finish_reason,
        "error": None,
        "cum_logprob": best.cum_logprob,
    }
    if decode.beams > 1:
        fields["score"] = best.score
    if best.logprobs is not None:
        fields["token_logprobs"] = best.logprobs
    if answer.prompt_logprobs is not None:
        fields["prompt_logprob"] = math.fsum(answer.prompt_logprobs)
        if best.logprobs is not None:
            fields["prompt_token_logprobs"] = answer.prompt_logprobs
    if request.options.n_best > 1 or request.options.num_return_sequences > 1:
        fields["hypotheses"] = [
            {
                "output": _text(h, encoder),
                "output_ids": h.ids,
                "score": h.score,
                "cum_logprob": h.cum_logprob,
                "finish_reason": h.finish_reason,
                **({"token_logprobs": h.logprobs} if h.logprobs is not None else {}),
            }
            for h in answer.hypotheses
        ]
    return fields | {"near_ties": answer.near_ties, "output_tokens": len(best.ids)}


def _text(hypothesis: Hypothesis, encoder: Encoder) -> str | None:
    """The answer's text without its end token; None where there is no tokenizer."""
    ended = hypothesis.finish_reason == "eos"
    try:
        return encoder.decode(hypothesis.ids[:-1] if ended else hypothesis.ids, skip_special=True)
    except NoTokenizer:
        return None
