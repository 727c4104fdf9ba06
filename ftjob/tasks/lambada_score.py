"""The score of a LAMBADA run: figures, chart and table out of its records.

`lambada` streams the records through a `Tally`; memory does not grow with them. The summary goes
into results.json.
"""

from __future__ import annotations

import math
from typing import Any

from ftjob.tasks.base import Summary

WORST_ROWS = 12
LENGTH_BIN = 25


class Tally:
    """Sums over the rows; memory does not grow with them, but for the worst few."""

    def __init__(self, ngrams: int, generated: bool) -> None:
        self.generated = generated
        self.rows = self.correct = self.last = 0
        self.logprob = self.logprob_squared = 0.0
        self.bins: dict[int, list[int]] = {}
        self.worst: list[tuple[float, dict[str, Any]]] = []
        self.ngrams = [[0, 0] for _ in range(ngrams)]

    def add(self, sample: dict[str, Any]) -> None:
        """Count a record with an answer."""
        self.rows += 1
        self.correct += sample["correct"]
        self.last += sample["last_token_correct"]
        context = sample["tokens"] - (0 if self.generated else sample["target_tokens"])
        bin_ = self.bins.setdefault(context // LENGTH_BIN, [0, 0])
        bin_[0] += sample["correct"]
        bin_[1] += 1
        if self.generated:
            if not sample["correct"]:  # the surest mistakes first
                self.worst.append((-sample["cum_logprob"], sample))
        else:
            self.logprob += sample["logprob"]
            self.logprob_squared += sample["logprob"] ** 2
            self.worst.append((sample["logprob"], sample))
        if len(self.worst) > 4 * WORST_ROWS:
            self.worst = sorted(self.worst, key=lambda w: w[0])[:WORST_ROWS]
        for total, counted in zip(self.ngrams, sample.get("ngrams", []), strict=False):
            total[0] += counted[0]
            total[1] += counted[1]

    def summary(self) -> Summary:
        """The score of what was counted."""
        if not self.rows:
            return Summary()
        n = self.rows
        out = Summary()
        for name, hits in (("acc", self.correct), ("last_token_acc", self.last)):
            out.values[name], out.stderrs[name] = hits / n, rate_error(hits, n)
        mean = self.logprob / n
        variance = max(0.0, self.logprob_squared / n - mean * mean)
        word_error = math.sqrt(variance / (n - 1)) if n > 1 else 0.0
        # delta method: the standard error of exp(-x) is exp(-x) times that of x
        if not self.generated and -mean < 700:  # beyond, a double overflows
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
                "note": "wrong, with the highest log-probability"
                if self.generated
                else "lowest log-probability of the last word",
                "columns": ["line", "end of the context", "target", "output", "log-probability"],
                "rows": [
                    [
                        str(s["line"]),
                        f"…{s['input'][-90:]}",
                        s["target"],
                        s["output"],
                        f"{s['cum_logprob' if self.generated else 'logprob']:.2f}",
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
