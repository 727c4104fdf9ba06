"""The edits of scores that options ask for are those of transformers' own processors, row by row,
for rows of different options in one batch; on each part of a vocabulary cut over a group.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from search_rows import CPU, own_part
from thread_comm import run_group
from transformers.generation import logits_process as theirs

from ftjob.comm import Comm, Solo
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import DEFAULTS, RowOptions
from ftjob.decode.processors import Processors
from ftjob.decode.search import SearchRow

VOCAB, ENDS = 29, (7, 11)
WORDS = ((3,), (4, 5), (7,), (1, 2, 3), (0,))
OPTIONS = [
    DEFAULTS,
    RowOptions(repetition_penalty=1.7),
    RowOptions(repetition_penalty=0.5, top_p=0.9, temperature=0.3),
    RowOptions(min_length=4),
    RowOptions(bad_words=WORDS),
    RowOptions(no_repeat_ngram=1),
    RowOptions(no_repeat_ngram=2, bad_words=((6,),), min_length=2),
    RowOptions(no_repeat_ngram=3, repetition_penalty=1.2, top_k=5, temperature=2.0),
    RowOptions(temperature=0.0, top_k=4),
    RowOptions(presence_penalty=0.8, frequency_penalty=0.4, min_length=9),
    RowOptions(frequency_penalty=-0.4),
    RowOptions(end_id=(5, 6, 8), min_length=5),
]


def by_transformers(options: RowOptions, ids: torch.Tensor, context: int) -> list[Any]:
    """Their processors for a row, in the order of their `generate`."""
    ends = list(options.ends or ENDS)
    found: list[Any] = []
    if options.repetition_penalty != 1:
        found.append(theirs.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.no_repeat_ngram:
        found.append(theirs.NoRepeatNGramLogitsProcessor(options.no_repeat_ngram))
    if options.bad_words:
        words = [list(word) for word in options.bad]
        found.append(theirs.NoBadWordsLogitsProcessor(words, eos_token_id=ends))
    if options.min_length:
        found.append(
            theirs.MinNewTokensLengthLogitsProcessor(
                context, options.min_length, torch.tensor(ends)
            )
        )
    if options.drawn and options.temperature != 1:
        found.append(theirs.TemperatureLogitsWarper(options.temperature))
    return found


def expected(options: RowOptions, ids: torch.Tensor, context: int, row: torch.Tensor) -> Any:
    scores = row.clone()
    counts = torch.bincount(ids[0, context:], minlength=VOCAB)
    scores -= options.presence_penalty * (counts > 0) + options.frequency_penalty * counts
    for processor in by_transformers(options, ids, context):
        scores = processor(ids, scores)
    return scores


class Lanes:
    """Rows with random contexts in a `Processors`, and their tokens kept beside it."""

    def __init__(self, options: list[RowOptions], width: int = 1, **decode: Any) -> None:
        self.generator = torch.Generator().manual_seed(3)
        lanes = {"beams": width} if decode.pop("beam", True) else {"num_return_sequences": width}
        self.options, self.width = options, width
        self.ours = Processors(DecodeConfig(**lanes, **decode), ENDS, len(options), CPU)
        contexts = [self.draw(3 + i % 5).tolist() for i in range(len(options))]
        self.context = [len(c) for c in contexts]
        self.held = [[list(c) for _ in range(width)] for c in contexts]
        rows = [SearchRow(12, c, o) for c, o in zip(contexts, options, strict=True)]
        self.ours.enter(0, rows)

    def draw(self, count: int) -> torch.Tensor:
        return torch.randint(0, 9, (count,), generator=self.generator)

    def logits(self) -> torch.Tensor:
        shape = (len(self.options) * self.width, VOCAB)
        return torch.randn(shape, generator=self.generator) * 3

    def step(self) -> None:
        """Random tokens, behind random parents."""
        n = len(self.options)
        ids = self.draw(n * self.width).view(n, self.width)
        parents = torch.randint(0, self.width, (n, self.width), generator=self.generator)
        self.held = [
            [[*lanes[p], t] for p, t in zip(some.tolist(), own.tolist(), strict=True)]
            for lanes, some, own in zip(self.held, parents, ids, strict=True)
        ]
        self.ours.follow(ids, parents)

    def check(self, logits: torch.Tensor, found: torch.Tensor, log: bool = False) -> None:
        for i, options in enumerate(self.options):
            for lane in range(self.width):
                at = i * self.width + lane
                ids = torch.tensor([self.held[i][lane]])
                row = logits[at : at + 1]
                edited = by_transformers(options, ids, self.context[i])
                if log and (edited or options.presence_penalty or options.frequency_penalty):
                    row = row.log_softmax(1)
                wanted = expected(options, ids, self.context[i], row)
                torch.testing.assert_close(found[at : at + 1], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [1, -1])
def test_edits_are_those_of_transformers(order: int) -> None:
    lanes = Lanes(OPTIONS[::order])
    changed = 0
    for _ in range(9):
        logits = lanes.logits()
        found = logits.clone()
        lanes.ours.apply(found, Solo())
        lanes.check(logits, found)
        changed += int((found != logits).any(dim=1).sum())
        lanes.step()
    assert changed > 60


def test_lanes_follow_their_parents() -> None:
    some = [o for o in OPTIONS if not o.drawn]
    lanes = Lanes(some, width=3)
    for _ in range(9):
        logits = lanes.logits()
        found = logits.clone()
        lanes.ours.apply(found, Solo())
        lanes.check(logits, found, log=True)
        lanes.step()


@pytest.mark.parametrize("ways", [2, 4])
@pytest.mark.parametrize("convention", ["hf", "ft"])
def test_a_cut_vocabulary_is_edited_alike(ways: int, convention: Any) -> None:
    """29 ids over 2 or 4 ranks; a rank knows its columns alone."""

    class Rank(Solo):
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, ways

    some = [o for o in OPTIONS if convention == "hf" or not o.frequency_penalty]
    lanes = Lanes(some, convention=convention)
    for _ in range(6):
        logits = lanes.logits()
        whole = logits.clone()
        lanes.ours.apply(whole, Solo())
        for rank in range(ways):
            part = own_part(logits, Rank(rank))
            lanes.ours.apply(part, Rank(rank))
            torch.testing.assert_close(part, own_part(whole, Rank(rank)), rtol=0, atol=0)
        lanes.step()


def test_slots_that_move_and_leave() -> None:
    """The options, the words and the tokens behind a row go with it."""
    lanes = Lanes(OPTIONS)
    lanes.step()
    logits = lanes.logits()
    last = len(OPTIONS) - 1
    lanes.ours.move([last], [1])
    lanes.ours.move([last - 1], [4])
    lanes.options = [*OPTIONS]
    for source, target in ((last, 1), (last - 1, 4)):
        for state in (lanes.options, lanes.held, lanes.context):
            state[target] = state[source]  # type: ignore[index]
    lanes.options = lanes.options[: last - 1]
    found = logits[: last - 1].clone()
    lanes.ours.apply(found, Solo())
    lanes.check(logits, found)


@pytest.mark.parametrize("ways", [1, 2])
def test_a_lane_of_which_all_is_banned_is_left_as_it_was(ways: int) -> None:
    """It goes on with some token, and with numbers; one that has a single token left takes that."""
    all_but = [tuple((i,) for i in range(VOCAB) if i != keep) for keep in (None, 5)]
    options = [RowOptions(bad_words=words, repetition_penalty=2.0) for words in all_but]

    def work(group: Comm) -> list[torch.Tensor]:
        ours = Processors(DecodeConfig(convention="ft"), (), 2, CPU)
        ours.enter(0, [SearchRow(9, [5], o) for o in options])
        part = own_part(logits, group)
        before = part.clone()
        ours.apply(part, group)
        return [before, part]

    logits = Lanes([DEFAULTS] * 2).logits()
    logits[:, 0] = -torch.inf  # which ft never bans
    kept = 0
    for before, after in run_group(ways, work) if ways > 1 else [work(Solo())]:
        assert torch.equal(before[0], after[0])
        kept += int((after[1] > -torch.inf).sum())
    assert kept == 1


def test_a_step_without_options_touches_nothing() -> None:
    lanes = Lanes([DEFAULTS, RowOptions(top_k=3), RowOptions(token_logprobs=True)])
    logits = lanes.logits()
    found = logits.clone()
    assert lanes.ours.apply(found, Solo()) is None
    assert torch.equal(found, logits)


def test_stop_words_span_steps_and_the_prompts_edge() -> None:
    ours = Processors(DecodeConfig(num_return_sequences=2), ENDS, 3, CPU)
    words = RowOptions(stop_words=((1, 2, 3), (5,), (8, 9)))
    ours.enter(
        0, [SearchRow(9, [4, 8], words), SearchRow(9, [1], DEFAULTS), SearchRow(9, [], words)]
    )
    seen = []
    for ids in ([[9, 1], [5, 5], [9, 8]], [[1, 2], [1, 2], [9, 9]], [[2, 3], [3, 3], [5, 1]]):
        seen.append(ours.ending(torch.tensor(ids)).tolist())
        ours.follow(torch.tensor(ids))
    assert seen == [
        [[True, False], [False, False], [False, False]],
        [[False, False], [False, False], [False, True]],
        [[False, True], [False, False], [True, False]],
    ]


def test_stop_words_behind_other_lanes() -> None:
    """Candidates of beams: each token behind the lane it continues."""
    ours = Processors(DecodeConfig(beams=2), ENDS, 1, CPU)
    ours.enter(0, [SearchRow(9, [4], RowOptions(stop_words=((4, 1, 2), (3,))))])
    ours.follow(torch.tensor([[1, 5]]), torch.tensor([[0, 0]]))
    ids, parents = torch.tensor([[2, 2, 3, 3, 7, 1]]), torch.tensor([[0, 1, 0, 1, 0, 1]])
    assert ours.ending(ids, parents).tolist() == [[True, False, True, True, True, False]]
    assert ours.reason(ours.rows[0], [1, 2]) == "stop"
    assert ours.reason(ours.rows[0], [5, 2]) == "length"
    assert ours.reason(ours.rows[0], [5, 7]) == "eos"


@pytest.mark.parametrize("convention", ["hf", "ft"])
def test_no_step_waits_for_a_device(convention: Any) -> None:
    """Tensors without data: whatever asks for a value is an error."""
    meta = torch.device("meta")
    ours = Processors(DecodeConfig(convention=convention), ENDS, len(OPTIONS), meta)
    stops = [RowOptions(stop_words=((1, 2), (3,)))]
    ours.enter(0, [SearchRow(5, [1, 2, 3], o) for o in [*OPTIONS[1:], *stops]])
    for n in (len(OPTIONS), 2):
        ours.apply(torch.empty(n, VOCAB, device=meta), Solo())
        ours.ending(torch.empty(n, 1, dtype=torch.int64, device=meta))
        ours.follow(torch.empty(n, 1, dtype=torch.int64, device=meta))
    ours.move([3], [0])
