"""Prompts of the user's own, continued: no score, the answers are what is wanted.

A row is a text or token ids, with options of its own. The records go to samples.jsonl; OpenAI's
requests besides to the batch output files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftjob.config.groups import DatasetConfig, DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.tasks.base import (
    Encoder,
    Generated,
    GenerateRequest,
    Metric,
    ModelLimits,
    NoTokenizer,
    Request,
    Row,
    Summary,
    error_record,
    skip_record,
)
from ftjob.tasks.generation import answer_record, longest, misfit, run_options
from ftjob.tasks.options import row_options
from ftjob.tasks.translation_score import Tally, metrics


class Prompts:
    """The task."""

    name = "prompts"
    headline: tuple[str, ...] = ()

    def __init__(self, dataset: DatasetConfig, decode: DecodeConfig) -> None:
        self._dataset, self._decode = dataset, decode
        self.metrics: Mapping[str, Metric] = metrics(False)

    def prepare(
        self, rows: Sequence[Row], keys: Sequence[str], encoder: Encoder, limits: ModelLimits
    ) -> list[Request | dict[str, Any]]:
        """A request for each row, or the record of a row that is none: an error, or skipped."""
        texts = [i for i, row in enumerate(rows) if row.text is not None]
        prefix = self._dataset.prefix or ""
        try:
            encoded = encoder.encode([f"{prefix}{rows[i].text}" for i in texts]) if texts else []
        except NoTokenizer:
            encoded = []
        ids = dict(zip(texts, encoded, strict=False))
        run = run_options(self._decode, encoder, limits)
        out: list[Request | dict[str, Any]] = []
        for i, (row, key) in enumerate(zip(rows, keys, strict=True)):
            try:
                out.append(self._request(row, key, ids.get(i), run, encoder, limits))
            except (ValueError, NoTokenizer) as error:
                out.append(
                    self._repeating(error_record(row, key, f"line {row.line}: {error}"), row)
                )
        return out

    def _request(
        self,
        row: Row,
        key: str,
        encoded: list[int] | None,
        run: RowOptions,
        encoder: Encoder,
        limits: ModelLimits,
    ) -> GenerateRequest | dict[str, Any]:
        """What becomes of a row whose text has these ids.

        Raises:
            ValueError, NoTokenizer: with the reason why it cannot be run.
        """
        if row.error is not None:
            return self._repeating(error_record(row, key, row.error), row)
        options, new = row_options(row.own, run, self._decode, encoder, limits)
        if row.prompt_ids is not None:
            ids = list(row.prompt_ids)
        elif encoded is None:
            raise NoTokenizer
        else:
            ids = encoded + (list(limits.ends[:1]) if limits.seq2seq else [])
        if not ids and options.start_id is not None and not limits.seq2seq:
            ids = [options.start_id]
        if not ids:
            raise ValueError(
                "the prompt has no tokens; decode.start_id, or its own, would stand in its place"
            )
        tokens = len(ids)
        most, rule = longest(self._dataset, new, limits)
        if most is not None and tokens > most:
            too_long = f"the prompt has {tokens} tokens, {rule}"
            if self._dataset.too_long == "skip":
                record = skip_record(row, key, f"line {row.line}: {too_long}")
                return self._repeating(record, row)
            if self._dataset.too_long == "error" or most < 1:
                raise ValueError(too_long)
            # an encoder reads the beginning and the end token, a prompt is continued at its end
            ids = [*ids[: most - 1], ids[-1]] if limits.seq2seq else ids[-most:]
        problem = misfit(ids, new, self._decode.lanes, limits)
        if problem is not None:
            raise ValueError(problem)
        return GenerateRequest(row, key, ids, new, tokens - len(ids), options)

    def record(
        self, request: GenerateRequest, answer: Generated, encoder: Encoder
    ) -> dict[str, Any]:
        """The line of samples.jsonl for an answered request."""
        row, record = request.row, answer_record(request, answer, encoder, self._decode)
        if row.prompt_ids is not None:
            record["prompt_ids"] = list(row.prompt_ids)
        record = self._repeating(record, row)
        asked = record.get("openai")
        if asked is not None and (asked["echo"] or request.options.token_logprobs):
            record["openai"] = asked | _texts(request, answer, encoder)
        return record

    def _repeating(self, record: dict[str, Any], row: Row) -> dict[str, Any]:
        return record | dict(row.repeats)

    def summarise(self, samples: Iterable[dict[str, Any]]) -> Summary:
        """How rows ended, and how many tokens came."""
        tally = Tally(False)
        for sample in samples:
            tally.add(sample)
        return tally.summary()


def _texts(request: GenerateRequest, answer: Generated, encoder: Encoder) -> dict[str, Any]:
    """What the answer to a request of OpenAI's needs of the tokenizer: the prompt's text and, where
    log-probabilities are asked for, the text of each token. Without one ids stand for tokens."""

    def each(ids: Sequence[int]) -> list[str]:
        try:
            return [encoder.decode([i]) for i in ids]
        except NoTokenizer:
            return [f"token_id:{i}" for i in ids]

    try:
        text = request.row.text if request.row.text is not None else encoder.decode(request.ids)
    except NoTokenizer:
        text = None
    found: dict[str, Any] = {"prompt_text": text}
    if request.options.token_logprobs:
        found["token_texts"] = [each(h.ids) for h in answer.hypotheses]
    if answer.prompt_logprobs is not None:
        found["prompt_token_texts"] = each(request.ids)
    return found
