"""LAMBADA: predict the last word of a passage. Scored teacher-forced in one pass, or generated.

Context and target are `text.rsplit(" ", 1)`, unstripped; the target is tokenised as " " + word,
apart from the context. One pass gives strict last word (lm-eval's acc), the last BPE token
(FasterTransformer's figure), word perplexity and, on demand, 1- to 4-gram accuracy, which under
teacher forcing equals FasterTransformer's generate-and-compare. `lambada_score` counts the records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ftjob.config.groups import DecodeConfig
from ftjob.config.options import DEFAULTS
from ftjob.tasks.base import (
    Answer,
    Encoder,
    Generated,
    GenerateRequest,
    Metric,
    ModelLimits,
    Request,
    Row,
    Scored,
    ScoreRequest,
    Summary,
    error_record,
    is_answer,
    near_ties,
)
from ftjob.tasks.generation import answer_fields, misfit, run_options
from ftjob.tasks.lambada_score import Tally

SCORED: Mapping[str, Metric] = MappingProxyType({
    "acc": Metric(
        "Strict last word",
        "A row counts when every token of the last word is "
        "the model's most likely token (lm-eval's acc). The word is tokenised "
        "as ' word', apart from its context.",
        "%",
    ),
    "last_token_acc": Metric(
        "Last BPE token",
        "A row counts when its very last token is "
        "the most likely one, the word's earlier tokens given "
        "(FasterTransformer's last token accuracy).",
        "%",
    ),
    "perplexity": Metric(
        "Word perplexity",
        "exp of minus the mean over rows of the last "
        "word's summed log-probability (lm-eval's perplexity).",
        "",
        higher_is_better=False,
    ),
})  # fmt: skip
GENERATED: Mapping[str, Metric] = MappingProxyType({
    "acc": Metric(
        "Strict last word",
        "A row counts when the tokens generated after its context are those of the last word. "
        "The word is tokenised as ' word', apart from its context.",
        "%",
    ),
    "last_token_acc": Metric(
        "Last BPE token",
        "A row counts when the last token generated is the last of the word, whatever came before "
        "it (as FasterTransformer generates and compares).",
        "%",
    ),
})  # fmt: skip


class Lambada:
    """The task. `ngrams` > 0 scores every position, so that n-gram accuracy can be counted; with
    `decode` the last word is generated instead, and compared."""

    name = "lambada"
    headline: tuple[str, ...] = ("acc",)

    def __init__(self, ngrams: int = 0, decode: DecodeConfig | None = None) -> None:
        self.ngrams, self._decode = ngrams, decode
        self.metrics = GENERATED if decode is not None else SCORED
        if ngrams:
            self.metrics = MappingProxyType({
                **self.metrics,
                **{f"{n}gram_acc": _ngram_metric(n) for n in range(1, ngrams + 1)},
            })  # fmt: skip

    def prepare(
        self, rows: Sequence[Row], keys: Sequence[str], encoder: Encoder, limits: ModelLimits
    ) -> list[Request | dict[str, Any]]:
        """A request for each row, or the error record of a row that cannot be one."""
        splits = [row.text.rsplit(" ", 1) if row.text is not None else [] for row in rows]
        pairs = [i for i, parts in enumerate(splits) if len(parts) == 2]
        contexts = encoder.encode([splits[i][0] for i in pairs])
        targets = encoder.encode([" " + splits[i][1] for i in pairs])
        encoded = dict(zip(pairs, zip(contexts, targets, strict=True), strict=True))
        out: list[Request | dict[str, Any]] = []
        options = DEFAULTS
        if self._decode is not None:
            options = run_options(self._decode, encoder, limits)
        for i, (row, key) in enumerate(zip(rows, keys, strict=True)):
            context, target = encoded.get(i, ([], []))
            before_last = len(context) + len(target) - 1
            problem = None
            if i not in encoded:
                problem = "no space before a last word"
            elif not context:
                problem = "no text before the last word"
            elif limits.positions is not None and before_last > limits.positions:
                problem = (
                    f"{before_last} tokens before the last, but the model has "
                    f"{limits.positions} positions"
                )
            elif self._decode is not None:
                problem = misfit(context, len(target), self._decode.lanes, limits)
            if row.error is not None:
                out.append(error_record(row, key, row.error))
            elif problem is not None:
                out.append(error_record(row, key, f"line {row.line}: {problem}"))
            elif self._decode is not None:
                out.append(GenerateRequest(row, key, context, len(target), options=options))
            else:
                first = 1 if self.ngrams else len(context)
                out.append(ScoreRequest(row, key, context + target, first, len(context)))
        return out

    def record(self, request: Request, answer: Answer, encoder: Encoder) -> dict[str, Any]:
        """The line of samples.jsonl for an answered request."""
        if isinstance(request, GenerateRequest):
            assert isinstance(answer, Generated)
            return self._generated(request, answer, encoder)
        assert isinstance(answer, Scored)
        return self._scored(request, answer, encoder)

    def _scored(self, request: ScoreRequest, scored: Scored, encoder: Encoder) -> dict[str, Any]:
        skip = request.target_from - request.scored_from
        target, best = request.ids[request.target_from :], scored.best[skip:]
        record = _head(request) | {
            "output": encoder.decode(best),
            "output_ids": best,
            "finish_reason": "length",
            "error": None,
            "correct": best == target,
            "last_token_correct": best[-1] == target[-1],
            "logprob": math.fsum(scored.logprobs[skip:]),
            "near_ties": near_ties(scored.gaps[skip:]),
            "tokens": len(request.ids),
            "target_tokens": len(target),
        }
        if self.ngrams:
            hits = [b == t for b, t in zip(scored.best, request.ids[1:], strict=True)]
            record["near_ties_elsewhere"] = len(near_ties(scored.gaps[:skip]))
            record["ngrams"] = [
                [
                    sum(all(hits[i : i + n]) for i in range(len(hits) - n + 1)),
                    max(0, len(hits) - n + 1),
                ]
                for n in range(1, self.ngrams + 1)
            ]
        return record

    def _generated(
        self, request: GenerateRequest, answer: Generated, encoder: Encoder
    ) -> dict[str, Any]:
        assert self._decode is not None
        record = _head(request)
        (target,) = encoder.encode([record["target"]])
        ids = answer.hypotheses[0].ids
        return (
            record
            | answer_fields(request, answer, encoder, self._decode)
            | {
                "correct": ids == target,
                # an answer that ended early has no token there
                "last_token_correct": ids[len(target) - 1 :] == target[-1:],
                "tokens": len(request.ids),
                "target_tokens": len(target),
            }
        )

    def summarise(self, samples: Iterable[dict[str, Any]]) -> Summary:
        """The score of the records with an answer."""
        tally = Tally(self.ngrams, generated=self._decode is not None)
        for sample in samples:
            if is_answer(sample):
                tally.add(sample)
        return tally.summary()


def _head(request: Request) -> dict[str, Any]:
    """What a record says of the row."""
    row = request.row
    assert row.text is not None
    context, _, word = row.text.rpartition(" ")
    return {
        "id": row.id or request.key,
        "key": request.key,
        "index": row.index,
        "line": row.line,
        "input": context,
        "target": f" {word}",
    }


def _ngram_metric(n: int) -> Metric:
    return Metric(
        f"{n}-gram",
        f"Of all positions followed by at least {n} tokens, the share where "
        f"greedy decoding would give the next {n} exactly "
        f"(FasterTransformer's {n}-gram accuracy).",
        "%",
    )
