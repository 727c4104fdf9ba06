"""The lines that FasterTransformer's evaluation scripts print, out of a run's samples and results.

`commands/report.py` prints them for `report.style=ft`, so that whatever greps for them goes on
working: wording, widths and FasterTransformer's own spelling are theirs, the figures are the run's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ftjob.errors import ConfigError
from ftjob.tasks.base import is_answer

Json = Mapping[str, Any]


def render_ft(samples: Iterable[Json], results: Json) -> str:
    """The lines of a LAMBADA or translation run.

    Raises:
        ConfigError: for a run of another task, or one without a score.
    """
    (task,) = results["results"]
    if task == "lambada":
        return _lambada(samples)
    if task == "translation" and "bleu,none" in results["results"][task]:
        return _translation(samples, results)
    raise ConfigError(
        f"report.style=ft: FasterTransformer printed results of LAMBADA and of translations with "
        f"references; this run is {task} without such a score."
    )


def _lambada(samples: Iterable[Json]) -> str:
    """The last token's accuracy and, where they were counted, those of n-grams: of the rows that
    have an answer."""
    rows = right = 0
    ngrams: list[list[int]] = []
    for sample in samples:
        if not is_answer(dict(sample)):
            continue
        rows += 1
        right += sample["last_token_correct"]
        for n, counted in enumerate(sample.get("ngrams", ())):
            if n == len(ngrams):
                ngrams.append([0, 0])
            ngrams[n] = [a + b for a, b in zip(ngrams[n], counted, strict=True)]
    lines = [
        f"[INFO] last token accuracy: {_percent(right, rows)}% (total token num: {rows})",
    ]
    if ngrams:
        lines.append(f"[INFO] accuracy under {rows} sentencs")
        for n, (hits, count) in enumerate(ngrams, start=1):
            accuracy = _percent(hits, count)
            lines.append(f"  {n}-gram accuracy: {accuracy}% (total token num: {float(count)})")
    return "\n".join([*lines, ""])


def _percent(hits: int, count: int) -> str:
    return f"{100 * hits / count if count else 0.0:5.2f}"


def _translation(samples: Iterable[Json], results: Json) -> str:
    """BLEU and its parts, and the speed: tokens count the end token, words are those BLEU counts;
    a batch is a chunk that entered together."""
    from ftjob.tasks.bleu import Counts

    counts = Counts()
    for sample in samples:
        if is_answer(dict(sample)):
            counts.add(sample["output"], sample["target"])
    parts, score = counts.bleu_parts(), results["results"]["translation"]["bleu,none"]
    seconds, tokens = results["throughput"]["seconds"], results["throughput"]["tokens"]
    batches = sum(device.get("chunks") or 0 for device in results["devices"])
    rate = tokens / seconds if seconds else 0.0
    words = parts.output_words / seconds if seconds else 0.0
    lines = [
        f"       bleu score: {score:6.2f}",
        f"       bleu counts: {parts.counts}",
        f"       bleu totals: {parts.totals}",
        f"       bleu precisions: {parts.precisions}",
        f"       bleu sys_len: {parts.output_words}; ref_len: {parts.reference_words}",
        f"[INFO] ft_triton translates {batches} batches taking {seconds:.2f} sec to translate "
        f"{tokens} tokens, BLEU score: {score:.2f}, {rate:.0f} tokens/sec. "
        f"({parts.output_words} words, {words:.0f} words/sec)",
    ]
    return "\n".join([*lines, ""])
