"""What a task is: it turns rows into requests, answers into records, and records into a score.

Rows come from `rows`; requests go to the devices in chunks; records go to the journal; the
summary goes into results.json. Never imports torch, so that reports build without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ftjob.config.options import DEFAULTS, RowOptions
from ftjob.keyset import Occurrences, content_number, key_number


class NoTokenizer(Exception):
    """There is no tokenizer, and a text has to be read or written."""

    def __init__(self) -> None:
        super().__init__("the model has no tokenizer: name one with model.tokenizer=PATH, or give "
                         "prompt_ids")  # fmt: skip


class Encoder(Protocol):
    """The part of a tokenizer that tasks use. Both may raise `NoTokenizer`."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids, without special tokens where asked."""


@dataclass(frozen=True)
class Row:
    """A row of the dataset as read: its text, or why it has none.

    `index` counts rows from 0, `line` is where a person finds it in the file, from 1. `content`
    is what the key hashes: the text, or a malformed row's raw bytes. `target` is a reference, for
    tasks that compare with one; `max_new_tokens` is the row's own, where it has one; `occurrence`
    counts the rows before it with the same content; `prompt_ids` are a prompt in place of text;
    `own` are the row's decoding options by name; `repeats` goes into its record as it is.
    """

    index: int
    line: int
    content: bytes
    text: str | None
    error: str | None = None
    id: str | None = None
    target: str | None = None
    max_new_tokens: int | None = None
    occurrence: int = 0
    prompt_ids: tuple[int, ...] | None = None
    own: tuple[tuple[str, Any], ...] = ()
    repeats: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class ModelLimits:
    """What a task must know of the model to make requests.

    `positions` bounds prompt + new tokens (decoder only) or is None; `cache_tokens` is the most
    that one row may take of a device's cache: source or prompt, and new tokens times beams.
    """

    positions: int | None
    vocab: int
    ends: tuple[int, ...]
    seq2seq: bool
    cache_tokens: int | None = None


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
class GenerateRequest:
    """A row to be continued. `ids` are the prompt or, for an encoder-decoder model, the source
    with its end token; at least one. `cut_tokens` of the source were left off to fit. The words of
    its options are ids."""

    row: Row
    key: str
    ids: list[int]
    max_new_tokens: int
    cut_tokens: int = 0
    options: RowOptions = DEFAULTS

    @property
    def draw(self) -> int:
        """What random draws depend on besides the seed: a hash of the row's content and of which
        of equal rows it is, as a signed word of 64 bits."""
        whole = self.row.content + self.row.occurrence.to_bytes(8, "little")
        return int.from_bytes(hashlib.sha256(whole).digest()[:8], "little", signed=True)


FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Hypothesis:
    """A continuation. `ids` are the new tokens, the end token included. `cum_logprob` is the sum of
    their natural log-probabilities, `score` that after length penalty, by which hypotheses rank;
    `logprobs` are the single ones, where asked for."""

    ids: list[int]
    score: float
    cum_logprob: float
    finish_reason: FinishReason
    logprobs: list[float] | None = None


@dataclass(frozen=True)
class Generated:
    """A row's hypotheses, best first, and the decisions on the way that rounding could turn.
    `prompt_logprobs` are the log-probabilities of the prompt's tokens after the first, where asked
    for."""

    hypotheses: list[Hypothesis]
    near_ties: list[list[float]]
    prompt_logprobs: list[float] | None = None


Request = ScoreRequest | GenerateRequest
Answer = Scored | Generated


@dataclass(frozen=True)
class Metric:
    """How a figure is named and what it means; `unit` "%" is a fraction shown as percent. A figure
    that is no score has None for `higher_is_better`."""

    title: str
    definition: str
    unit: str = ""
    higher_is_better: bool | None = True


@dataclass
class Summary:
    """A task's score: figures by name, their standard errors, and what the page shows of rows.

    `intervals` are 95 % intervals where they are known better than by 1.96 standard errors;
    `signatures` say how a figure was computed; `notes` are what a reader must know first.
    """

    values: dict[str, float] = field(default_factory=dict)
    stderrs: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)


class Task(Protocol):
    """What runs over a dataset."""

    name: str
    headline: tuple[str, ...]
    metrics: Mapping[str, Metric]

    def prepare(
        self, rows: Sequence[Row], keys: Sequence[str], encoder: Encoder, limits: ModelLimits
    ) -> list[Request | dict[str, Any]]:
        """A request for each row, or the record of a row that is none: an error, or skipped."""

    def record(self, request: Any, answer: Any, encoder: Encoder) -> dict[str, Any]:
        """The line of samples.jsonl for an answered request."""

    def summarise(self, samples: Iterable[dict[str, Any]]) -> Summary:
        """The score of the records with an answer."""


# A decision is a near tie where the two highest logits are closer than this.
NEAR_TIE = 1e-4


def near_ties(gaps: Sequence[float]) -> list[list[float]]:
    """[[position within the output, gap], ...] of the decisions that rounding could turn."""
    return [[i, round(g, 9)] for i, g in enumerate(gaps) if g < NEAR_TIE]


SKIPPED = "skip"


def error_record(row: Row, key: str, message: str) -> dict[str, Any]:
    """The record of a row that gives no answer."""
    return {
        "id": row.id or key,
        "key": key,
        "index": row.index,
        "line": row.line,
        "input": row.text,
        "target": row.target,
        "output": None,
        "output_ids": [],
        "finish_reason": "error",
        "error": message,
        "near_ties": [],
    }


def skip_record(row: Row, key: str, reason: str) -> dict[str, Any]:
    """The record of a row that was left out as the configuration asks: journaled, so that a resumed
    run need not read it again, and no failure. `skipped` says why."""
    return error_record(row, key, "") | {
        "finish_reason": SKIPPED,
        "error": None,
        "skipped": reason,
    }


def is_answer(record: dict[str, Any]) -> bool:
    """Whether a record holds an answer: neither an error nor skipped."""
    return record["error"] is None and record["finish_reason"] != SKIPPED


def keyed(identity: str, row: Row, occurrence: int) -> tuple[Row, str]:
    """A row with its occurrence, and its key: 32 hex digits."""
    return _keyed(identity, row, _digest(row), occurrence)


def _digest(row: Row) -> bytes:
    return hashlib.sha256(row.content).digest()[:16]


def _keyed(identity: str, row: Row, digest: bytes, occurrence: int) -> tuple[Row, str]:
    if occurrence != row.occurrence:
        row = dataclasses.replace(row, occurrence=occurrence)
    whole = hashlib.sha256(identity.encode() + digest + occurrence.to_bytes(8, "little"))
    return row, whole.hexdigest()[:32]


class KeyMaker:
    """Keys of rows: a hash of what shapes the answer, the content, and its occurrence number.

    `before` counted the rows before the first; `note` gets each row's key and content as numbers.
    """

    def __init__(
        self,
        identity: str,
        before: Occurrences | None = None,
        note: Callable[[int, int], None] | None = None,
    ) -> None:
        self._identity, self._note = identity, note
        self._seen = before if before is not None else Occurrences()

    def keyed(self, row: Row) -> tuple[Row, str]:
        """A row with its occurrence, and its key; to be called for each row in order."""
        digest = _digest(row)
        number = content_number(digest)
        row, key = _keyed(self._identity, row, digest, self._seen.count(number))
        if self._note is not None:
            self._note(key_number(key), number)
        return row, key
