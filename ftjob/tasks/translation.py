"""Translation: every source is continued to its translation, scored by BLEU and chrF.

An encoder-decoder model gets prefix, source and end token, a decoder-only one prefix and source as
its prompt. The records' score and tables are made in `translation_score`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftjob.config.groups import DatasetConfig, DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.tasks.base import (
    Encoder,
    Generated,
    GenerateRequest,
    Metric,
    ModelLimits,
    Request,
    Row,
    Summary,
    error_record,
    skip_record,
)
from ftjob.tasks.generation import answer_record, longest, misfit, run_options
from ftjob.tasks.translation_score import Tally, metrics
from ftjob.tasks.values import has_references

if TYPE_CHECKING:
    from ftjob.tasks.bleu import Counts


class Translation:
    """The task. Without references it translates and gives no score."""

    name = "translation"

    def __init__(self, dataset: DatasetConfig, decode: DecodeConfig) -> None:
        self._dataset, self._decode = dataset, decode
        self._scored = has_references(dataset)
        self.headline: tuple[str, ...] = ("bleu",) if self._scored else ()
        self.metrics: Mapping[str, Metric] = metrics(self._scored)
        self._counts: Counts | None = None

    def prepare(
        self, rows: Sequence[Row], keys: Sequence[str], encoder: Encoder, limits: ModelLimits
    ) -> list[Request | dict[str, Any]]:
        """A request for each row, or the record of a row that is none: an error, or skipped."""
        prefix = self._dataset.prefix or ""
        given = [i for i, row in enumerate(rows) if row.text is not None and row.text.strip()]
        encoded = encoder.encode([f"{prefix}{rows[i].text}" for i in given])
        # without its last space, which joins the source's first token
        (before,) = encoder.encode([prefix.rstrip()])
        ids = dict(zip(given, encoded, strict=True))
        options = run_options(self._decode, encoder, limits)
        return [
            self._request(row, key, ids.get(i, []), len(before), limits, options)
            for i, (row, key) in enumerate(zip(rows, keys, strict=True))
        ]

    def _request(
        self,
        row: Row,
        key: str,
        ids: list[int],
        prefix: int,
        limits: ModelLimits,
        options: RowOptions,
    ) -> GenerateRequest | dict[str, Any]:
        """What becomes of a row with these ids, the first `prefix` of them the prefix's."""

        def refused(message: str) -> dict[str, Any]:
            return error_record(row, key, f"line {row.line}: {message}")

        if row.error is not None:
            return error_record(row, key, row.error)
        if row.text is None or not row.text.strip():
            return refused("the source is empty")
        end = list(limits.ends[:1]) if limits.seq2seq else []
        new = row.max_new_tokens or self._decode.max_new_tokens
        most, rule = longest(self._dataset, new, limits)
        tokens = len(ids) + len(end)
        if most is not None and tokens > most:
            too_long = f"the source has {tokens} tokens, {rule}"
            if self._dataset.too_long == "skip":
                return skip_record(row, key, f"line {row.line}: {too_long}")
            if self._dataset.too_long == "error":
                return refused(too_long)
            if most - len(end) <= prefix:
                return refused(f"{too_long}: that leaves none for the source after the prefix")
            ids = ids[: most - len(end)]
        ids = ids + end
        problem = misfit(ids, new, self._decode.lanes, limits)
        if problem is not None:
            return refused(problem)
        return GenerateRequest(row, key, ids, new, tokens - len(ids), options)

    def record(
        self, request: GenerateRequest, answer: Generated, encoder: Encoder
    ) -> dict[str, Any]:
        """The line of samples.jsonl for an answered request."""
        record = answer_record(request, answer, encoder, self._decode)
        target = request.row.target
        if target is not None:
            record["chrf"] = self._chrf(str(record["output"]), target)
        return record

    def _chrf(self, output: str, target: str) -> float:
        """A sentence's chrF; sacrebleu is imported with the first record, where it is needed."""
        if self._counts is None:
            from ftjob.tasks.bleu import Counts

            self._counts = Counts()
        return self._counts.sentence_chrf(output, target)

    def summarise(self, samples: Iterable[dict[str, Any]]) -> Summary:
        """The score of the records with an answer."""
        tally = Tally(self._scored)
        for sample in samples:
            tally.add(sample)
        return tally.summary()
