"""What a device thread tells its rank: it is ready, rows are answered, it goes on otherwise, or it
failed.

`device` puts these into the rank's queue, `rank` acts on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ftjob.batching import Chunk
from ftjob.errors import Cause, ConfigError
from ftjob.tasks.base import Answer, Scored


@dataclass(frozen=True)
class Ready:
    """The device has its weights and has run once."""

    device: int
    name: str
    weight_bytes: int


@dataclass(frozen=True)
class Answered:
    """The device is through with rows of a chunk, in so many seconds of its own work. `chunk` has
    just these rows, `answers` theirs in that order, where this device is the one that gives them.
    `tokens` counts the rows' tokens or, where rows are continued, the new ones."""

    device: int
    chunk: Chunk
    answers: list[Answer] | None
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Failed:
    """The device thread is gone, for this reason."""

    device: int
    cause: Cause


@dataclass(frozen=True)
class Warned:
    """The device goes on, but not as planned."""

    device: int
    text: str


@dataclass(frozen=True)
class Noted:
    """Something for the log."""

    device: int
    text: str


Message = Ready | Answered | Noted | Warned | Failed


def check_numbers(chunk: Chunk, answers: list[Answer] | None, dtype: str) -> None:
    """Refuse answers out of scores that are no numbers: they would look like any other.

    Raises:
        ConfigError: naming the row's line and the type of numbers.
    """
    for request, answer in zip(chunk.requests, answers or (), strict=answers is not None):
        if not all(map(math.isfinite, _figures(answer))):
            advice = "The checkpoint itself may hold such values."
            if dtype == "f16":
                advice = "Use bf16 or f32: f16 ends at 65504."
            raise ConfigError(
                f"model.dtype={dtype}: line {request.row.line} gets scores that are infinite "
                f"or not numbers. {advice}"
            )


def _figures(answer: Answer) -> list[float]:
    """Every log-probability of an answer."""
    if isinstance(answer, Scored):
        return answer.logprobs
    return [h.cum_logprob for h in answer.hypotheses]
