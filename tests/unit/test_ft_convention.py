"""decode.convention=ft: FasterTransformer's rules, each by an example worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from search_rows import CPU

from ftjob.comm import Solo
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.config.words import csv_words, list_words
from ftjob.decode.processors import Processors
from ftjob.decode.search import SearchRow, make_search
from ftjob.tasks.base import GenerateRequest, Row

INF = math.inf


def edited(
    logits: list[float],
    options: RowOptions,
    prompt: list[int],
    new: tuple[int, ...] = (),
    ends: tuple[int, ...] = (),
    convention: Any = "ft",
) -> list[float]:
    """Logits of one row after its options' edits."""
    ours = Processors(DecodeConfig(convention=convention), ends, 1, CPU)
    ours.enter(0, [SearchRow(9, prompt, options)])
    for token in new:
        ours.follow(torch.tensor([[token]]))
    scores = torch.tensor([logits])
    ours.apply(scores, Solo())
    return [float(v) for v in scores[0]]


def test_temperature_comes_before_presence_penalty() -> None:
    """Id 1 was seen: 2 / (0.5 + 1e-6) - 1 = 3 - 4e-6, not (2 - 1) / 0.5 = 2."""
    options = RowOptions(temperature=0.5, presence_penalty=1.0, top_k=2)
    found = edited([1.0, 2.0, -1.0], options, prompt=[7], new=(1,))
    assert found == pytest.approx([1 / 0.500001, 2 / 0.500001 - 1, -1 / 0.500001], abs=1e-6)
    after = edited([1.0, 2.0, -1.0], options, prompt=[7], new=(1,), convention="hf")
    assert after == pytest.approx([2.0, 2.0, -2.0], abs=1e-6)


def test_temperature_scales_greedy_rows_too() -> None:
    found = edited([1.0, 3.0], RowOptions(temperature=2.0), prompt=[0])
    assert found == pytest.approx([1 / 2.000001, 3 / 2.000001], abs=1e-6)
    assert edited([1.0, 3.0], RowOptions(temperature=2.0), [0], convention="hf") == [1.0, 3.0]


def test_presence_penalty_counts_the_prompt_and_each_id_once() -> None:
    options = RowOptions(presence_penalty=0.5)
    found = edited([1.0, 1.0, 1.0, 1.0], options, prompt=[0, 0, 1], new=(2, 2, 0))
    assert found == [0.5, 0.5, 0.5, 1.0]
    new_alone = edited([1.0] * 4, options, prompt=[0, 0, 1], new=(2, 2, 0), convention="hf")
    assert new_alone == [0.5, 1.0, 0.5, 1.0]


def test_repetition_penalty_is_multiplicative_and_counts_each_id_once() -> None:
    options = RowOptions(repetition_penalty=2.0)
    found = edited([1.0, -1.0, 4.0, -4.0], options, prompt=[0, 1, 1], new=(0, 2, 2))
    assert found == [0.5, -2.0, 2.0, -4.0]


def test_repetition_penalty_of_an_encoder_decoder_model_counts_the_decoders_ids() -> None:
    """The start token, and not the source."""
    request = GenerateRequest(Row(0, 1, b"", ""), "", [5, 6, 1], 9)
    assert list(SearchRow.of(request, 0).context) == [0]
    own = GenerateRequest(Row(0, 1, b"", ""), "", [5, 6, 1], 9, options=RowOptions(start_id=3))
    assert list(SearchRow.of(own, 0).context) == [3]
    assert list(SearchRow.of(request, None).context) == [5, 6, 1]
    assert list(SearchRow.of(own, None).context) == [5, 6, 1]


def test_bad_words_ban_one_id_always_and_the_last_of_several_after_the_others() -> None:
    options = RowOptions(bad_words=((3,), (1, 2)))
    assert edited([0.0] * 4, options, prompt=[0]) == [0.0, 0.0, 0.0, -INF]
    assert edited([0.0] * 4, options, prompt=[0], new=(1,)) == [0.0, 0.0, -INF, -INF]
    assert edited([0.0] * 4, options, prompt=[0, 1]) == [0.0, 0.0, -INF, -INF]
    assert edited([0.0] * 4, options, prompt=[0], new=(1, 0)) == [0.0, 0.0, 0.0, -INF]


def test_bad_words_never_ban_id_0_and_may_ban_an_end_id() -> None:
    options = RowOptions(bad_words=((0,), (1, 0), (2,)))
    assert edited([0.0] * 3, options, prompt=[1], ends=(2,)) == [0.0, 0.0, -INF]
    assert edited([0.0] * 3, options, prompt=[1], ends=(2,), convention="hf") == [-INF, 0.0, 0.0]


def test_end_ids_are_masked_for_the_first_min_length_new_tokens() -> None:
    options = RowOptions(min_length=2)
    for new, end in (((), -INF), ((1,), -INF), ((1, 1), 0.0), ((1, 1, 1), 0.0)):
        assert edited([0.0, 0.0, 0.0], options, prompt=[1, 1, 1], new=new, ends=(2,))[2] == end


PROBS = [0.1, 0.4, 0.3, 0.2]


def tokens(options: RowOptions, seeds: int = 4000, convention: Any = "ft") -> list[float]:
    """The share of each token of `PROBS` among draws."""
    search = make_search(DecodeConfig(convention=convention, top_k=2), (), seeds, 4, CPU)
    search.enter(0, [SearchRow(1, [0], options, draw) for draw in range(seeds)])
    chosen = search.advance(torch.tensor([PROBS]).log().repeat(seeds, 1), Solo())
    counts = torch.bincount(chosen.ids[:, 0], minlength=4)
    return [float(c) / seeds for c in counts]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        # within 0.6 of the mass: 0.4 of token 1, and of token 2 the 0.2 that lie below
        (RowOptions(top_p=0.6), [0, 4 / 6, 2 / 6, 0]),
        # token 3 begins just below
        (RowOptions(top_p=0.75), [0, 40 / 75, 30 / 75, 5 / 75]),
        # the two of top_k have 4/7 and 3/7 of their mass, of which 0.8 is taken
        (RowOptions(top_k=2, top_p=0.8), [0, (4 / 7) / 0.8, (0.8 - 4 / 7) / 0.8, 0]),
        # no top_p is all of the top_k
        (RowOptions(top_k=3), [0, 4 / 9, 3 / 9, 2 / 9]),
        (RowOptions(top_k=3, top_p=0.3), [0, 1, 0, 0]),
        # neither is greedy, as is one of the two alone
        (RowOptions(), [0, 1, 0, 0]),
        (RowOptions(top_k=1, top_p=0.9), [0, 1, 0, 0]),
        (RowOptions(top_p=1.0), PROBS),
    ],
)
def test_shares_of_draws(options: RowOptions, wanted: list[float]) -> None:
    assert tokens(options) == pytest.approx(wanted, abs=0.03)


def test_transformers_keeps_the_boundary_token_whole() -> None:
    assert tokens(RowOptions(top_p=0.6), convention="hf") == pytest.approx(
        [0, 4 / 7, 3 / 7, 0], abs=0.03
    )


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ([[5, 6, 7, 8], [1, 3, 4, -1]], ((5,), (6, 7), (8,))),
        ([[[5, 6, 0], [2, -1, -1]]], ((5, 6),)),
        ([[0], [-1]], ()),
        ([[9, 0, 0], [1, -1, -1]], ((9,),)),
    ],
)
def test_word_list_arrays(array: Any, words: Any) -> None:
    """Row 0 the ids of all words, row 1 where each ends, padded with -1."""
    assert list_words(array) == words


@pytest.mark.parametrize(
    "array", [[[1, 2], [1]], [[1], [2]], [[1, 2], [2, 1]], [1, 2], "a", [[1.0], [1]], [[True], [1]]]
)
def test_what_is_no_word_list_array(array: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        list_words(array)


def test_word_list_text_is_csv_and_each_field_as_it_is() -> None:
    assert csv_words('foo, bar,"a, b"," x"') == ("foo", " bar", "a, b", " x")
    assert csv_words("") == ()

    def encode(texts: Any) -> list[list[int]]:
        return [[len(text)] for text in texts]

    options = RowOptions(bad_words="foo, foo", stop_words=("ab", (7, 8), 9)).with_ids(encode)
    assert options.bad == ((3,), (4,))
    assert options.stops == ((2,), (7, 8), (9,))
    with pytest.raises(ValueError, match="stop_words: the word '' has no tokens"):
        RowOptions(stop_words=("",)).with_ids(lambda texts: [[] for _ in texts])
