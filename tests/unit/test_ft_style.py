"""The lines that FasterTransformer's scripts printed, character by character where fixed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import sacrebleu

from ftjob.errors import ConfigError
from ftjob.results.ft_style import render_ft

ERROR: dict[str, Any] = {"error": "line 3: bad", "finish_reason": "error"}


def lambada(right: bool, ngrams: list[list[int]] | None = None) -> dict[str, Any]:
    sample = {"error": None, "finish_reason": "length", "last_token_correct": right}
    return sample | ({} if ngrams is None else {"ngrams": ngrams})


def test_lambada() -> None:
    results = {"results": {"lambada": {}}}
    samples = [lambada(True), lambada(False), ERROR, lambada(True)]
    assert render_ft(samples, results) == (
        "[INFO] last token accuracy: 66.67% (total token num: 3)\n"
    )
    few = [lambada(i == 0) for i in range(40)]
    assert "accuracy:  2.50% (total" in render_ft(few, results)


def test_lambada_with_ngrams() -> None:
    samples = [lambada(True, [[3, 9], [1, 8]]), lambada(True, [[2, 4], [0, 3]])]
    assert render_ft(samples, {"results": {"lambada": {}}}) == (
        "[INFO] last token accuracy: 100.00% (total token num: 2)\n"
        "[INFO] accuracy under 2 sentencs\n"
        "  1-gram accuracy: 38.46% (total token num: 13.0)\n"
        "  2-gram accuracy:  9.09% (total token num: 11.0)\n"
    )


def test_translation() -> None:
    texts = [
        ("Ein Mann läuft durch den Park .", "Ein Mann rennt durch den großen Park."),
        ("Zwei Hunde spielen im Schnee.", "Zwei Hunde spielen im Schnee."),
    ]
    bleu = sacrebleu.corpus_bleu([o for o, _ in texts], [[t for _, t in texts]], force=True)
    samples = [{"error": None, "finish_reason": "eos", "output": o, "target": t} for o, t in texts]
    results = {
        "results": {"translation": {"bleu,none": bleu.score}},
        "throughput": {"seconds": 2.0, "tokens": 30},
        "devices": [{"chunks": 2}, {"chunks": 1}],
    }
    lines = render_ft([*samples, ERROR], results).splitlines()
    assert lines[0] == f"       bleu score: {bleu.score:6.2f}"
    assert lines[1] == f"       bleu counts: {bleu.counts}"
    assert lines[2] == f"       bleu totals: {bleu.totals}"
    assert lines[3] == f"       bleu precisions: {bleu.precisions}"
    assert lines[4] == f"       bleu sys_len: {bleu.sys_len}; ref_len: {bleu.ref_len}"
    assert re.fullmatch(
        r"\[INFO\] ft_triton translates 3 batches taking 2\.00 sec to translate 30 tokens, "
        rf"BLEU score: {bleu.score:.2f}, 15 tokens/sec\. "
        rf"\({bleu.sys_len} words, {bleu.sys_len / 2:.0f} words/sec\)",
        lines[5],
    )


def test_other_runs_have_no_such_lines() -> None:
    for task in ("prompts", "translation"):
        with pytest.raises(ConfigError, match=rf"this run is {task} without such a score"):
            render_ft([], {"results": {task: {}}})
