"""BLEU and chrF by sacrebleu, as numbers that can be kept a sentence each and summed.

`translation` counts every sentence once; the corpus figures, and those of its bootstrap resamples,
come from the counts. The only place that scores with sacrebleu.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

# As sacrebleu's own --confidence has them, so that the figures are the same.
RESAMPLES, SEED = 1000, 12345


@dataclass(frozen=True)
class Figure:
    """A corpus score with the standard deviation and the middle 95 % of its resamples."""

    value: float
    stderr: float
    interval: tuple[float, float]
    signature: str


@dataclass(frozen=True)
class BleuParts:
    """What corpus BLEU is computed of: n-grams that match and all, for n from 1, and words."""

    counts: list[int]
    totals: list[int]
    output_words: int
    reference_words: int

    @property
    def precisions(self) -> list[float]:
        """In percent, without smoothing."""
        pairs = zip(self.counts, self.totals, strict=True)
        return [100 * hits / total if total else 0.0 for hits, total in pairs]


class Counts:
    """Counts of every sentence, with one reference each, by sacrebleu's defaults.

    sacrebleu has no public way from a sentence's counts to a corpus: the two methods used here are
    those that its own resampling uses, there since 2.0, and a test holds them to `corpus_score`.
    """

    def __init__(self) -> None:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        # quiet about text that looks tokenised
        self._metrics: tuple[Any, Any] = (BLEU(force=True), CHRF())
        self._kept = (array("q"), array("q"))

    def add(self, output: str, reference: str) -> float:
        """Count a sentence; gives its chrF."""
        found = [self._of(metric, output, reference) for metric in self._metrics]
        for kept, counts in zip(self._kept, found, strict=True):
            kept.extend(counts)
        return self._score(self._metrics[1], found[1])

    def sentence_chrf(self, output: str, reference: str) -> float:
        """A sentence's chrF, without counting it."""
        return self._score(self._metrics[1], self._of(self._metrics[1], output, reference))

    def length_ratio(self) -> float | None:
        """Words of the outputs by words of the references, as BLEU counts them."""
        outputs, references = _table(self._kept[0], self._width(0))[:, :2].sum(axis=0)
        return float(outputs / references) if references else None

    def bleu_parts(self) -> BleuParts:
        """What corpus BLEU is computed of."""
        sums: list[int] = _table(self._kept[0], self._width(0)).sum(axis=0).tolist()
        orders = (len(sums) - 2) // 2
        return BleuParts(sums[2 : 2 + orders], sums[2 + orders :], sums[0], sums[1])

    def bleu(self) -> Figure:
        """Corpus BLEU."""
        return self._figure(0)

    def chrf(self) -> Figure:
        """Corpus chrF."""
        return self._figure(1)

    def _figure(self, which: int) -> Figure:
        metric, table = self._metrics[which], _table(self._kept[which], self._width(which))
        value = self._score(metric, table.sum(axis=0).tolist())
        scores = resampled(table, lambda counts: self._score(metric, counts))
        cut = len(scores) // 40
        return Figure(
            value,
            float(scores.std(ddof=1)) if scores[0] < scores[-1] else 0.0,  # the mean rounds
            (float(scores[cut]), float(scores[-1 - cut])),
            str(metric.get_signature()),
        )

    def _width(self, which: int) -> int:
        """Numbers a sentence: two lengths and counts by order, or three counts by order."""
        metric = self._metrics[which]
        return 2 + 2 * int(metric.max_ngram_order) if which == 0 else 3 * int(metric.order)

    @staticmethod
    def _of(metric: Any, output: str, reference: str) -> list[int]:
        (counts,) = metric._extract_corpus_statistics([output], [[reference]])
        return [int(c) for c in counts]

    @staticmethod
    def _score(metric: Any, counts: Sequence[int]) -> float:
        return float(metric._compute_score_from_stats(list(counts)).score)


def resampled(
    table: numpy.ndarray[Any, Any], score: Callable[[list[int]], float]
) -> numpy.ndarray[Any, Any]:
    """Scores of the resamples of sentences [N, counts], rising. The draws are sacrebleu's; a
    sentence drawn k times is weighed by k instead of copied, so a resample takes N numbers."""
    import numpy

    drawn = numpy.random.default_rng(SEED)
    n = len(table)
    weighed = (
        numpy.bincount(drawn.choice(n, size=n, replace=True), minlength=n) @ table
        for _ in range(RESAMPLES)
    )
    return numpy.sort([score(counts.tolist()) for counts in weighed])


def _table(kept: array[int], width: int) -> numpy.ndarray[Any, Any]:
    import numpy

    return numpy.frombuffer(kept, dtype=numpy.int64).reshape(-1, width)
