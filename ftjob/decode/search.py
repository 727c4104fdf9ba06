"""What a search over decode slots is, and which one a configuration asks for.

A slot holds one row, with all its beams, at its own number of steps. The generate loop makes the
logits of the first n slots, the search chooses the next tokens and says which rows are finished,
and a finished row's `Generated` is harvested once. Nothing but `harvest` waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ftjob.comm import Comm
from ftjob.config.groups import DecodeConfig
from ftjob.tasks.base import NEAR_TIE, Generated


@dataclass(frozen=True)
class Advance:
    """What a step chose: the new tokens [n, W] int64, the beam each of them continues [n, W] int64,
    and which rows are finished [n] bool. Finished rows go on giving valid ids and beams."""

    ids: torch.Tensor
    parents: torch.Tensor
    finished: torch.Tensor


class Search(Protocol):
    """Chooses tokens. Slots at work are always the first n; a row's answer depends on its own
    logits alone, never on its slot or its neighbours."""

    @property
    def beams(self) -> int:
        """Lanes of a slot: W."""

    def enter(self, first: int, max_new_tokens: Sequence[int]) -> None:
        """New rows into slots `first`.., each with the most new tokens it may get."""

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy what is kept of slots over others, all at once: int64 [M] each. So the rows that
        stay become the first ones again."""

    def advance(self, logits: torch.Tensor, group: Comm) -> Advance:
        """One step of slots 0..n-1, from f32 logits [n * W, V/T], which may be overwritten. A row
        that is finished already stays as it is."""

    def harvest(self, slot: int) -> Generated:
        """The answer of a finished row; waits for the device."""


def make_search(
    decode: DecodeConfig, ends: tuple[int, ...], slots: int, vocab: int, device: torch.device
) -> Search:
    """The search that `decode` asks for, over `slots` empty slots. A row ends with one of the ids
    `ends`, if there are any; `vocab` counts the true ids, without padding."""
    # imported here because both need Advance
    from ftjob.decode.beam import BeamSearch
    from ftjob.decode.greedy import Greedy

    if decode.beams == 1:
        return Greedy(decode, ends, slots, vocab, device)
    return BeamSearch(decode, ends, slots, vocab, device)


def grown(state: torch.Tensor, columns: int) -> torch.Tensor:
    """State [slots, step, ...] with room for more steps."""
    larger = state.new_zeros((state.shape[0], columns, *state.shape[2:]))
    larger[:, : state.shape[1]] = state
    return larger


def ends_among(ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Which of ids [...] are end ids: bool [...]."""
    return (ids.unsqueeze(-1) == ends).any(dim=-1)


def smallest_ties(gaps: Sequence[tuple[int, float]]) -> list[list[float]]:
    """[[position, gap], ...] of the gaps that rounding could turn, the smallest per position."""
    smallest: dict[int, float] = {}
    for position, gap in gaps:
        if gap < NEAR_TIE:
            smallest[position] = min(gap, smallest.get(position, gap))
    return [[position, round(gap, 9)] for position, gap in sorted(smallest.items())]
