"""LAMBADA: predict the last word of a passage. Scored teacher-forced, in one pass.

Context and target are `text.rsplit(" ", 1)`, unstripped; the target is tokenised as " " + word,
apart from the context. One pass gives strict last word (lm-eval's acc), the last BPE token
(FasterTransformer's figure), word perplexity and, on demand, 1- to 4-gram accuracy, which under
teacher forcing equals FasterTransformer's generate-and-compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ftjob.tasks.base import (
    Encoder,
    Metric,
    ModelLimits,
    Request,
    Row,
    Scored,
    ScoreRequest,
    Summary,
    error_record,
    near_ties,
)

WORST_ROWS = 12
LENGTH_BIN = 25


class Lambada:
    """The task. `ngrams` > 0 scores every position, so that n-gram accuracy can be counted."""

    name = "lambada"
    headline: tuple[str, ...] = ("acc",)

    def __init__(self, ngrams: int = 0) -> None:
        self.ngrams = ngrams
        self.metrics = {
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
            **{
                f"{n}gram_acc": Metric(
                    f"{n}-gram",
                    f"Of all positions followed by at least {n} tokens, the share where "
                    f"greedy decoding would give the next {n} exactly "
                    f"(FasterTransformer's {n}-gram accuracy).",
                    "%",
                )
                for n in range(1, ngrams + 1)
            },
        }

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
        positions = limits.positions
        for i, (row, key) in enumerate(zip(rows, keys, strict=True)):
            context, target = encoded.get(i, ([], []))
            tokens = len(context) + len(target)
            if row.error is not None:
                out.append(error_record(row, key, row.error))
            elif i not in encoded:
                out.append(error_record(row, key, f"line {row.line}: no space before a last word"))
            elif not context:
                out.append(error_record(row, key, f"line {row.line}: no text before the last word"))
            elif positions is not None and tokens - 1 > positions:
                out.append(
                    error_record(
                        row,
                        key,
                        f"line {row.line}: {tokens - 1} tokens before the last, but the "
                        f"model has {positions} positions",
                    )
                )
            else:
                first = 1 if self.ngrams else len(context)
                out.append(ScoreRequest(row, key, context + target, first, len(context)))
        return out

    def record(self, request: ScoreRequest, scored: Scored, encoder: Encoder) -> dict[str, Any]:
        """The line of samples.jsonl for an answered request."""
        row, skip = request.row, request.target_from - request.scored_from
        assert row.text is not None
        context, _, word = row.text.rpartition(" ")
        target, best = request.ids[request.target_from :], scored.best[skip:]
        record: dict[str, Any] = {
            "id": row.id or request.key,
            "key": request.key,
            "index": row.index,
            "line": row.line,
            "input": context,
            "target": f" {word}",
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

    def summarise(self, samples: Iterable[dict[str, Any]]) -> Summary:
        """The score of the records without an error."""
        tally = _Tally(self.ngrams)
        for sample in samples:
            if sample["error"] is None:
                tally.add(sample)
        return tally.summary()


class _Tally:
    """Sums over the rows; memory does not grow with them, but for the worst few."""

    def __init__(self, ngrams: int) -> None:
        self.rows = self.correct = self.last = 0
        self.logprob = self.logprob_squared = 0.0
        self.bins: dict[int, list[int]] = {}
        self.worst: list[tuple[float, dict[str, Any]]] = []
        self.ngrams = [[0, 0] for _ in range(ngrams)]

    def add(self, sample: dict[str, Any]) -> None:
        self.rows += 1
        self.correct += sample["correct"]
        self.last += sample["last_token_correct"]
        self.logprob += sample["logprob"]
        self.logprob_squared += sample["logprob"] ** 2
        context = sample["tokens"] - sample["target_tokens"]
        bin_ = self.bins.setdefault(context // LENGTH_BIN, [0, 0])
        bin_[0] += sample["correct"]
        bin_[1] += 1
        self.worst.append((sample["logprob"], sample))
        if len(self.worst) > 4 * WORST_ROWS:
            self.worst = sorted(self.worst, key=lambda w: w[0])[:WORST_ROWS]
        for total, counted in zip(self.ngrams, sample.get("ngrams", []), strict=False):
            total[0] += counted[0]
            total[1] += counted[1]

    def summary(self) -> Summary:
        if not self.rows:
            return Summary()
        n = self.rows
        mean = self.logprob / n
        variance = max(0.0, self.logprob_squared / n - mean * mean)
        word_error = math.sqrt(variance / (n - 1)) if n > 1 else 0.0
        out = Summary()
        for name, hits in (("acc", self.correct), ("last_token_acc", self.last)):
            out.values[name], out.stderrs[name] = hits / n, rate_error(hits, n)
        # delta method: the standard error of exp(-x) is exp(-x) times that of x
        if -mean < 700:  # beyond, a double overflows
            out.values["perplexity"] = math.exp(-mean)
            out.stderrs["perplexity"] = out.values["perplexity"] * word_error
        for i, (hits, count) in enumerate(self.ngrams, start=1):
            if count:  # positions of a row hang together, so a binomial error would be too small
                out.values[f"{i}gram_acc"] = hits / count
        out.charts = [
            {
                "title": "Accuracy against context length",
                "kind": "rate",
                "x": "context tokens",
                "y": "strict last word",
                "points": [
                    {
                        "label": f"{b * LENGTH_BIN}-{(b + 1) * LENGTH_BIN - 1}",
                        "value": hits / count,
                        "stderr": rate_error(hits, count),
                        "count": count,
                    }
                    for b, (hits, count) in sorted(self.bins.items())
                ],
            }
        ]
        worst = sorted(self.worst, key=lambda w: (w[0], w[1]["index"]))[:WORST_ROWS]
        out.tables = [
            {
                "title": "Worst rows",
                "note": "lowest log-probability of the last word",
                "columns": ["line", "end of the context", "target", "output", "log-probability"],
                "rows": [
                    [
                        str(s["line"]),
                        f"…{s['input'][-90:]}",
                        s["target"],
                        s["output"],
                        f"{s['logprob']:.2f}",
                    ]
                    for _, s in worst
                ],
            }
        ]
        return out


def rate_error(hits: int, count: int) -> float:
    """The standard error of a rate: sqrt(p (1 - p) / (n - 1)), as lm-eval has it."""
    p = hits / count
    return math.sqrt(p * (1 - p) / (count - 1)) if count > 1 else 0.0
