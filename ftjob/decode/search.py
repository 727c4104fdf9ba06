"""What a search over decode slots is, and which one a configuration asks for.

A slot holds one row, with all its beams, at its own number of steps. The generate loop makes the
logits of the first n slots, the search chooses the next tokens and says which rows are finished,
and a finished row's `Generated` is harvested once. Nothing but a `Harvest` waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ftjob.comm import Comm
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import DEFAULTS, RowOptions
from ftjob.decode.looks import Fetched
from ftjob.model.arrays import sent
from ftjob.tasks.base import NEAR_TIE, Generated, GenerateRequest

# A token and the beam it continues in one number; in a pool of beams below the step as well.
TOKEN_BITS, BEAM_BITS = 32, 8
# For more steps than these states grow when they are asked for.
FIRST_STEPS = 2048


@dataclass(frozen=True)
class Advance:
    """What a step chose: the new tokens [n, W] int64, the beam each of them continues [n, W] int64,
    and which rows are finished [n] bool. Finished rows go on giving valid ids and beams."""

    ids: torch.Tensor
    parents: torch.Tensor
    finished: torch.Tensor

    def message(self) -> torch.Tensor:
        """All of it as one tensor [n, 2 * W + 1] int64, as the last stage sends it home."""
        flags = self.finished.unsqueeze(1).to(torch.int64)
        return torch.cat([self.ids, self.parents, flags], dim=1)

    @staticmethod
    def of(message: torch.Tensor) -> Advance:
        """What such a message says."""
        width = message.shape[1] // 2
        return Advance(message[:, :width], message[:, width:-1], message[:, -1].bool())


@dataclass(frozen=True)
class SearchRow:
    """What a search must know of a row: the most new tokens it may get, the tokens before the first
    of them, its options, and the hash of content and occurrence that its draws depend on, if there
    are any, as a signed word of 64 bits."""

    limit: int
    context: Sequence[int] = ()
    options: RowOptions = DEFAULTS
    draw: int = 0

    @classmethod
    def of(cls, request: GenerateRequest, start: int | None) -> SearchRow:
        """The row of a request; behind an encoder the answer begins with `start`, or the row's own,
        else (None) with the prompt."""
        options = request.options
        own = start if options.start_id is None else options.start_id
        context = request.ids if start is None or own is None else [own]
        # a hash, which nobody asks for where nothing is drawn
        draw = request.draw if options.drawn else 0
        return cls(request.max_new_tokens, context, options, draw)


class Harvest:
    """Answers on their way to the host: `answers` makes them of rows and of what is kept of them.

    Those are the states of their slots, `whole` [rows, ...] and then `steps` [rows, step, ...], the
    latter as far as any of the rows may have come. They are copied at once.
    """

    def __init__(
        self,
        slots: Sequence[int],
        rows: Sequence[SearchRow],
        answers: Callable[..., list[Generated]],
        whole: Sequence[torch.Tensor],
        steps: Sequence[torch.Tensor],
    ) -> None:
        self._rows, self._answers = [rows[slot] for slot in slots], answers
        at = sent(slots, whole[0].device, torch.int64)
        most = max(row.limit for row in self._rows)
        self._kept = [Fetched(state[at]) for state in whole]
        self._kept += [Fetched(state[at, :most]) for state in steps]

    def __call__(self, check: Callable[[], None] = lambda: None) -> list[Generated]:
        """The answers; `check` is called while the device works, see `Fetched.take`."""
        return self._answers(self._rows, *(each.take(check).numpy() for each in self._kept))


def one_by_one(answer: Callable[..., Generated]) -> Callable[..., list[Generated]]:
    """The answers of all rows by what makes that of one, of the row and its states."""
    return lambda rows, *held: [answer(*row) for row in zip(rows, *held, strict=True)]


class Search(Protocol):
    """Chooses tokens. Slots at work are always the first n; a row's answer depends on its own
    logits alone, never on its slot or its neighbours."""

    @property
    def beams(self) -> int:
        """Lanes of a slot: W."""

    def enter(self, first: int, rows: Sequence[SearchRow]) -> None:
        """New rows into slots `first`..."""

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what is kept of slots over others, all at once. So the rows that stay become the
        first ones again."""

    def advance(self, logits: torch.Tensor, group: Comm) -> Advance:
        """One step of slots 0..n-1, from logits [n * W, V/T] of any float dtype, which may be
        overwritten. A row that is finished already stays as it is."""

    def clear(self, first: int, stop: int) -> None:
        """The slots first..stop-1 hold no rows any more, and may be stepped all the same."""

    def kind(self, n: int) -> Hashable | None:
        """What `advance` over n slots depends on beside the tensors it works on: while it stays
        the same the same is done to the same tensors. None where rows ask for what changes from
        step to step."""

    def harvest(self, slots: Sequence[int]) -> Harvest:
        """The answers of finished rows, on their way: the slots may be moved over at once."""


def make_search(
    decode: DecodeConfig,
    ends: tuple[int, ...],
    slots: int,
    vocab: int,
    device: torch.device,
    seq2seq: bool = False,
) -> Search:
    """The search that `decode` asks for, over `slots` empty slots. A row ends with one of the ids
    `ends`, if there are any, or of its own; `vocab` counts the true ids, without padding. Of beams
    FasterTransformer has other rules where there is no encoder (`seq2seq`)."""
    # imported here because all need Advance
    from ftjob.decode.beam import BeamSearch
    from ftjob.decode.competing import CompetingBeams
    from ftjob.decode.sampling import Sampling

    if decode.beams == 1:
        return Sampling(decode, ends, slots, vocab, device)
    if decode.convention == "ft" and not seq2seq:
        return CompetingBeams(decode, ends, slots, vocab, device)
    return BeamSearch(decode, ends, slots, vocab, device)


def steps_at_first(decode: DecodeConfig) -> int:
    """For how many steps states have columns before a row asks for more: what they are stays the
    same for most runs, and so does what was captured with them."""
    return min(decode.max_new_tokens, FIRST_STEPS)


def grown(state: torch.Tensor, columns: int) -> torch.Tensor:
    """State [slots, step, ...] with room for more steps."""
    larger = state.new_zeros((state.shape[0], columns, *state.shape[2:]))
    larger[:, : state.shape[1]] = state
    return larger


def ends_among(ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Which of ids [n, W] are end ids, of each row's own [n, E]: bool [n, W]."""
    return (ids.unsqueeze(-1) == ends.unsqueeze(1)).any(dim=-1)


def smallest_ties(gaps: Sequence[tuple[int, float]]) -> list[list[float]]:
    """[[position, gap], ...] of the gaps that rounding could turn, the smallest per position."""
    smallest: dict[int, float] = {}
    for position, gap in gaps:
        if gap < NEAR_TIE:
            smallest[position] = min(gap, smallest.get(position, gap))
    return [[position, round(gap, 9)] for position, gap in sorted(smallest.items())]


def ancestry(
    beam: int, history: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]
) -> tuple[list[int], list[float]]:
    """The tokens of a beam after the steps of `history`, each a token and the lane before it by
    lane, and their log-probabilities."""
    ids, singles = [], []
    for at in range(len(history) - 1, -1, -1):
        singles.append(logprobs[at][beam])
        beam, token = divmod(history[at][beam], 1 << TOKEN_BITS)
        ids.append(token)
    return ids[::-1], singles[::-1]
