"""What a task is: it turns rows into requests, answers into records, and records into a score.

Rows come from `rows`; requests go to the devices in chunks; records go to the journal; the
summary goes into results.json. Never imports torch, so that reports build without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Encoder(Protocol):
    """The part of a tokenizer that tasks use."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""


@dataclass(frozen=True)
class Row:
    """A row of the dataset as read: its text, or why it has none.

    `index` counts rows from 0, `line` is where a person finds it in the file, from 1. `content`
    is what the key hashes: the text, or a malformed row's raw bytes.
    """

    index: int
    line: int
    content: bytes
    text: str | None
    error: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class ScoreRequest:
    """A row to be scored teacher-forced: tokens `scored_from`.. are predicted from those before.

    `target_from` is where the task's target begins; it differs where more is scored.
    """

    row: Row
    key: str
    ids: list[int]
    scored_from: int
    target_from: int


@dataclass(frozen=True)
class Scored:
    """The model's view of the tokens from `scored_from` on, in natural logarithms.

    `best` is the most likely id at each position; `gaps` is the distance of the two highest
    logits there.
    """

    logprobs: list[float]
    best: list[int]
    gaps: list[float]


@dataclass(frozen=True)
class Metric:
    """How a figure is named and what it means; `unit` "%" is a fraction shown as percent."""

    title: str
    definition: str
    unit: str = ""
    higher_is_better: bool = True


@dataclass
class Summary:
    """A task's score: figures by name, their standard errors, and what the page shows of rows."""

    values: dict[str, float] = field(default_factory=dict)
    stderrs: dict[str, float] = field(default_factory=dict)
    charts: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)


class Task(Protocol):
    """What runs over a dataset."""

    name: str
    headline: tuple[str, ...]
    metrics: dict[str, Metric]

    def prepare(
        self, rows: Sequence[Row], keys: Sequence[str], encoder: Encoder, positions: int
    ) -> list[ScoreRequest | dict[str, Any]]:
        """A request for each row, or the error record of a row that cannot be one."""

    def record(self, request: ScoreRequest, scored: Scored, encoder: Encoder) -> dict[str, Any]:
        """The line of samples.jsonl for an answered request."""

    def summarise(self, samples: Iterable[dict[str, Any]]) -> Summary:
        """The score of the records without an error."""


# A decision is a near tie where the two highest logits are closer than this.
NEAR_TIE = 1e-4


def near_ties(gaps: Sequence[float]) -> list[list[float]]:
    """[[position within the output, gap], ...] of the decisions that rounding could turn."""
    return [[i, round(g, 9)] for i, g in enumerate(gaps) if g < NEAR_TIE]


def error_record(row: Row, key: str, message: str) -> dict[str, Any]:
    """The record of a row that gives no answer."""
    return {
        "id": row.id or key,
        "key": key,
        "index": row.index,
        "line": row.line,
        "input": row.text,
        "target": None,
        "output": None,
        "output_ids": [],
        "finish_reason": "error",
        "error": message,
        "near_ties": [],
    }


class KeyMaker:
    """Keys of rows: a hash of what shapes the answer, the content, and its occurrence number."""

    def __init__(self, identity: str) -> None:
        self._identity = identity.encode()
        self._seen: dict[bytes, int] = {}

    def key(self, content: bytes) -> str:
        """The key of the next row with this content: 32 hex digits."""
        digest = hashlib.sha256(content).digest()[:16]
        occurrence = self._seen.get(digest, 0)
        self._seen[digest] = occurrence + 1
        whole = hashlib.sha256(self._identity + digest + occurrence.to_bytes(8, "little"))
        return whole.hexdigest()[:32]
