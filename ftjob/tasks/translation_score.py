"""The score of a translation run: figures, chart and tables out of its records.

`translation` streams the records through a `Tally`; memory holds some thirty numbers a sentence
and the texts of the few that are shown. The summary goes into results.json.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ftjob.tasks.base import SKIPPED, Metric, Summary, is_answer

if TYPE_CHECKING:
    from ftjob.tasks.bleu import Counts

SHOWN_ROWS = 8
SHOWN_LISTS = 4
LENGTH_BIN = 10


def metrics(scored: bool) -> dict[str, Metric]:
    """The figures of a run, with or without references."""
    found = {
        "eos_rate": Metric(
            "Ended by themselves",
            "Rows whose answer ends with the end token; the others were cut at max_new_tokens.",
            "%",
        ),
        "output_tokens": Metric(
            "Output tokens", "New tokens of all rows, end tokens included.", "", None
        ),
    }
    if not scored:
        return found
    interval = "The 95% interval is that of 1,000 bootstrap resamples."
    return {
        "bleu": Metric("BLEU", f"Corpus BLEU by sacrebleu, from 0 to 100. {interval}"),
        "chrf": Metric("chrF", f"Corpus chrF2 by sacrebleu, from 0 to 100. {interval}"),
        "length_ratio": Metric(
            "Length ratio",
            "Words of the outputs by words of the references, as BLEU counts them.",
            "",
            None,
        ),
        **found,
    }


class Tally:
    """Counts over the rows, and the rows to be shown."""

    def __init__(self, scored: bool) -> None:
        self._counts: Counts | None = None
        if scored:
            from ftjob.tasks.bleu import Counts

            self._counts = Counts()
        self._rows = self._ended = self._tokens = self._skipped = self._cut = 0
        self._bins: dict[int, list[float]] = {}
        self._worst: list[tuple[float, dict[str, Any]]] = []
        self._best: list[tuple[float, dict[str, Any]]] = []
        self._lists: list[dict[str, Any]] = []

    def add(self, sample: dict[str, Any]) -> None:
        """Count a record."""
        self._skipped += sample["finish_reason"] == SKIPPED
        if not is_answer(sample):
            return
        self._rows += 1
        self._ended += sample["finish_reason"] == "eos"
        self._tokens += sample["output_tokens"]
        self._cut += "cut_tokens" in sample
        if "hypotheses" in sample and len(self._lists) < SHOWN_LISTS:
            self._lists.append(sample)
        if self._counts is None:
            return
        chrf = self._counts.add(sample["output"], sample["target"])
        sums = self._bins.setdefault(sample["tokens"] // LENGTH_BIN, [0.0, 0.0, 0.0])
        for i, value in enumerate((1.0, chrf, chrf * chrf)):
            sums[i] += value
        self._worst.append((chrf, sample))
        self._best.append((-chrf, sample))
        if len(self._worst) > 4 * SHOWN_ROWS:
            self._worst, self._best = _first(self._worst), _first(self._best)

    def summary(self) -> Summary:
        """The score of what was counted."""
        out = Summary(notes=self._notes())
        if not self._rows:
            return out
        if self._counts is not None:
            for name, figure in (("bleu", self._counts.bleu()), ("chrf", self._counts.chrf())):
                out.values[name], out.stderrs[name] = figure.value, figure.stderr
                out.intervals[name] = figure.interval
                out.signatures[name] = figure.signature
            ratio = self._counts.length_ratio()
            if ratio is not None:
                out.values["length_ratio"] = ratio
            out.charts = [self._chart()]
            out.tables = [
                _sentences("Worst translations", "lowest chrF", _first(self._worst)),
                _sentences("Best translations", "highest chrF", _first(self._best)),
            ]
        out.values["eos_rate"] = rate = self._ended / self._rows
        if self._rows > 1:
            out.stderrs["eos_rate"] = math.sqrt(rate * (1 - rate) / (self._rows - 1))
        out.values["output_tokens"] = self._tokens
        if self._lists:
            out.tables.append(_n_best(self._lists))
        return out

    def _notes(self) -> list[str]:
        notes = []
        if self._skipped:
            notes.append(
                f"{_rows(self._skipped)} too long and left out (dataset.too_long=skip): they "
                "are in samples.jsonl and in no score."
            )
        if self._cut:
            notes.append(
                f"{_rows(self._cut)} too long: the end of the source was cut off "
                "(dataset.too_long=truncate)."
            )
        return notes

    def _chart(self) -> dict[str, Any]:
        points = []
        for number, (count, total, squares) in sorted(self._bins.items()):
            mean = total / count
            spread = max(0.0, squares / count - mean * mean)
            points.append({
                "label": f"{number * LENGTH_BIN}-{(number + 1) * LENGTH_BIN - 1}",
                "value": mean,
                "stderr": math.sqrt(spread / (count - 1)) if count > 1 else None,
                "count": int(count),
            })  # fmt: skip
        return {
            "title": "chrF against source length",
            "kind": "value",
            "x": "source tokens",
            "y": "mean chrF of a sentence",
            "points": points,
        }


def _rows(count: int) -> str:
    return f"{count} row was" if count == 1 else f"{count} rows were"


def _first(ranked: list[tuple[float, dict[str, Any]]]) -> list[tuple[float, dict[str, Any]]]:
    """The first few, equals in the order of the data set."""
    return sorted(ranked, key=lambda r: (r[0], r[1]["index"]))[:SHOWN_ROWS]


def _sentences(title: str, note: str, ranked: list[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    return {
        "title": title,
        "note": note,
        "columns": ["line", "chrF", "source", "reference", "output"],
        "rows": [
            [str(s["line"]), f"{abs(chrf):.1f}", s["input"], s["target"], s["output"]]
            for chrf, s in ranked
        ],
    }


def _n_best(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": "Hypotheses",
        "note": "of the first rows, as they rank; all are in samples.jsonl",
        "columns": ["line", "rank", "score", "output"],
        "rows": [
            [str(s["line"]), str(rank), f"{h['score']:.4f}", h["output"]]
            for s in samples
            for rank, h in enumerate(s["hypotheses"], start=1)
        ],
    }
