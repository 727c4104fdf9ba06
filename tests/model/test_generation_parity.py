"""Our generation against transformers' `generate`, row by row: the same ids and scores for every
family and setting of the search, whatever rows share a batch and however the model is split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from generate_job import generate, generation_job
from generation_oracle import END, LIMITS, MOST, lively, logits_after, reference, rows_for

from ftjob.tasks.base import Generated

FAMILIES = {"gpt2": 2, "v1_0": 2, "v1_1": 4, "mt5": 5}  # and the seed of its weights
NOTHING: Mapping[str, Any] = MappingProxyType({})
Hypotheses = list[tuple[list[int], float]]
# Each differs from the others in what decides.
SEARCHES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "greedy": {"beams": 1},
        "two, sums alone": {"beams": 2, "length_penalty": 0.0},
        "four": {"beams": 4},
        "four, never": {"beams": 4, "early_stopping": "never", "n_best": 2},
        "four, long": {"beams": 4, "length_penalty": 2.0},
        "four, first full pool": {"beams": 4, "early_stopping": True, "length_penalty": 2.0},
        "four, long, never": {
            "beams": 4,
            "length_penalty": 2.0,
            "early_stopping": "never",
            "n_best": 4,
        },
        "four, short, never": {
            "beams": 4,
            "length_penalty": -1.0,
            "early_stopping": "never",
            "n_best": 4,
        },
        "five": {"beams": 5, "length_penalty": 0.6, "n_best": 3},
        "eight, short": {"beams": 8, "length_penalty": -1.0, "early_stopping": True, "n_best": 8},
    }
)
# With a search whose beams part, join and end at different steps.
BATCHES: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType(
    {
        "a row at a time": ("v1_1", "five", {"lanes": 5}),
        "three rows, a chunk each": ("gpt2", "four, never", {"lanes": 12, "max_tokens": 1}),
        "as the rows come": ("v1_0", "four", {"lanes": 28, "order": "dataset"}),
        "seldom looked at": ("gpt2", "five", {"lanes": 20, "stop_every": 5}),
        "sorted in threes": ("mt5", "greedy", {"lanes": 2, "window": 3}),
        "halves of layers": ("gpt2", "five", {"tensor": 2}),
        "quarters of layers": ("v1_1", "greedy", {"tensor": 4, "lanes": 3}),
        "halves, odd vocabulary": ("v1_0", "four, long, never", {"tensor": 2, "lanes": 16}),
        "two stages": ("mt5", "four, never", {"pipeline": 2, "lanes": 16}),
        "two stages of GPT": ("gpt2", "greedy", {"pipeline": 2, "lanes": 4, "stop_every": 3}),
        "two stages of halves": ("v1_0", "five", {"tensor": 2, "pipeline": 2, "lanes": 20}),
    }
)


class Oracle:
    """A model on disk and in memory, and rows for it."""

    def __init__(self, family: str, seed: int, folder: Path) -> None:
        self.family, self.folder = family, folder
        self.model = lively(family, seed)
        self.model.save_pretrained(folder)
        self.rows = rows_for(self.model)
        self._expected: dict[str, list[Hypotheses]] = {}

    def expected(self, search: str) -> list[Hypotheses]:
        """What transformers answers; asked once."""
        if search not in self._expected:
            pairs = zip(self.rows, LIMITS, strict=True)
            self._expected[search] = [
                reference(self.model, ids, most, SEARCHES[search]) for ids, most in pairs
            ]
        return self._expected[search]

    def ours(self, search: str, more: Mapping[str, Any] = NOTHING, **batch: Any) -> list[Generated]:
        """What our device threads answer; `more` goes to decode."""
        decode = {"max_new_tokens": MOST, **SEARCHES[search], **more}
        about = {"family": "gpt2" if self.family == "gpt2" else "t5"}
        job = generation_job(self.folder, decode, model=about, **batch)
        return generate(job, self.rows, LIMITS)


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Oracle]:
    """Every family's."""
    return {
        family: Oracle(family, seed, tmp_path_factory.mktemp(family))
        for family, seed in FAMILIES.items()
    }


def assert_same(ours: Sequence[Generated], theirs: Sequence[Hypotheses], search: str) -> None:
    """The same hypotheses with the same scores; a row may differ where it recorded a near tie."""
    decode = SEARCHES[search]
    penalty = decode.get("length_penalty", 1.0) if decode["beams"] > 1 else 0.0
    excused = 0
    for number, (got, wanted) in enumerate(zip(ours, theirs, strict=True)):
        if [h.ids for h in got.hypotheses] != [ids for ids, _ in wanted]:
            assert got.near_ties, f"row {number}: {got.hypotheses}, expected {wanted}"
            excused += 1
            continue
        for hypothesis, (_, score) in zip(got.hypotheses, wanted, strict=True):
            assert hypothesis.score == pytest.approx(score, rel=1e-5, abs=1e-4)
            expected = score * len(hypothesis.ids) ** penalty
            assert hypothesis.cum_logprob == pytest.approx(expected, rel=1e-5, abs=1e-4)
            ended = hypothesis.ids[-1] == END
            assert hypothesis.finish_reason == ("eos" if ended else "length")
    assert excused <= 1


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers(
    oracles: dict[str, Oracle], family: str, search: str
) -> None:
    oracle = oracles[family]
    assert_same(oracle.ours(search), oracle.expected(search), search)


@pytest.mark.parametrize("case", BATCHES)
def test_answers_do_not_depend_on_batch_and_split(oracles: dict[str, Oracle], case: str) -> None:
    family, search, batch = BATCHES[case]
    oracle = oracles[family]
    assert_same(oracle.ours(search, **batch), oracle.expected(search), search)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracles_tell_searches_apart(oracles: dict[str, Oracle], family: str) -> None:
    """Answers have many lengths, and each setting matters to some row: else parity says little."""
    oracle = oracles[family]
    best = {name: [row[0][0] for row in oracle.expected(name)] for name in SEARCHES}

    def differing(first: str, second: str) -> int:
        return sum(a != b for a, b in zip(best[first], best[second], strict=True))

    for name in ("greedy", "two, sums alone", "four, first full pool", "five"):
        assert len({len(ids) for ids in best[name]}) >= 4, name
    for first, second in (
        ("greedy", "four"),
        ("two, sums alone", "four"),
        ("four", "four, long"),
        ("four, first full pool", "four, long"),
        ("four, long, never", "four, short, never"),
        ("four, never", "eight, short"),
    ):
        assert differing(first, second) >= 3, (first, second)
    assert differing("four, long", "four, long, never") >= (3 if family == "gpt2" else 1)


@pytest.mark.parametrize(("family", "search"), [("v1_0", "five"), ("gpt2", "greedy")])
def test_token_logprobs_are_those_of_the_tokens(
    oracles: dict[str, Oracle], family: str, search: str
) -> None:
    oracle = oracles[family]
    answers = oracle.ours(search, {"token_logprobs": True})
    for ids, answer in zip(oracle.rows, answers, strict=True):
        for hypothesis in answer.hypotheses:
            with torch.inference_mode():
                logprobs = logits_after(oracle.model, ids, hypothesis.ids).log_softmax(1)
            wanted = logprobs.gather(1, torch.tensor(hypothesis.ids).unsqueeze(1)).squeeze(1)
            assert hypothesis.logprobs == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-4)
            total = pytest.approx(sum(wanted.tolist()), rel=1e-5, abs=1e-4)
            assert hypothesis.cum_logprob == total
