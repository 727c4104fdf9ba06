"""Greedy and beam search give transformers' answers, row by row, for every setting of theirs."""

from __future__ import annotations

from typing import Any

import pytest
from search_rows import Line, Oracle, lines, run_slots

from ftjob.config.groups import DecodeConfig
from ftjob.tasks.base import Generated

PENALTIES = [0.0, 0.6, 1.0, 2.0, -1.0]
STOPS: list[Any] = [False, True, "never"]


def check(oracle: Oracle, line: Line, decode: DecodeConfig, ours: Generated) -> int:
    """Compare with transformers; returns how many hypotheses ended by themselves."""
    wanted = oracle.generate(line, decode)
    assert [h.ids for h in ours.hypotheses] == [ids for ids, _ in wanted]
    for found, (ids, score) in zip(ours.hypotheses, wanted, strict=True):
        assert found.finish_reason == ("eos" if ids[-1] in oracle.ends else "length")
        steps = [oracle.logits(line, [ids[:i]])[0].log_softmax(0) for i in range(len(ids))]
        singles = [float(s[t]) for s, t in zip(steps, ids, strict=True)]
        assert found.cum_logprob == pytest.approx(sum(singles), abs=1e-4)
        if score is None:
            assert found.score == found.cum_logprob
        else:
            assert found.score == pytest.approx(score, abs=1e-4)
        if decode.token_logprobs:
            assert found.logprobs == pytest.approx(singles, abs=1e-5)
        else:
            assert found.logprobs is None
    return sum(h.finish_reason == "eos" for h in ours.hypotheses)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_beams_are_those_of_transformers(kind: str, stop: Any, penalty: float) -> None:
    rows = lines([5, 9], [14, 9], seed=3)
    for beams, ends in ((2, (7,)), (4, (7, 11)), (5, (3,)), (8, (7, 11, 30))):
        oracle = Oracle(kind, ends, bias=1.5, seed=beams)
        decode = DecodeConfig(
            beams=beams, length_penalty=penalty, early_stopping=stop, n_best=(beams + 1) // 2
        )
        for line in rows:
            (ours,) = run_slots(oracle, [line], decode)
            check(oracle, line, decode, ours)
