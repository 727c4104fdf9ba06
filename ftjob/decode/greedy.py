"""Greedy search: every row takes its most likely token until it ends.

`search.make_search` gives it to the generate loop, which feeds it logits and harvests answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ftjob.comm import Comm
from ftjob.config.groups import DecodeConfig
from ftjob.decode.logits import top_logprobs
from ftjob.decode.search import Advance, ends_among, grown, smallest_ties
from ftjob.tasks.base import Generated, Hypothesis


class Greedy:
    """The most likely token of each row, the lowest id of equals.

    Rounding can turn a row's path only where its two highest logits are closer than `NEAR_TIE`:
    until the first such position two runs see the same tokens before them, and choose the same.
    The gap is kept for every token of the answer, so `near_ties` is complete.
    """

    beams = 1

    def __init__(
        self,
        decode: DecodeConfig,
        ends: tuple[int, ...],
        slots: int,
        vocab: int,
        device: torch.device,
    ) -> None:
        self._ends = ends
        self._end_ids = torch.tensor(ends, dtype=torch.int64, device=device)
        self._looks = min(2, vocab)
        self._token_logprobs = decode.token_logprobs
        self._rows = torch.arange(slots, device=device)
        self._length = torch.zeros(slots, dtype=torch.int64, device=device)
        self._limit = torch.zeros_like(self._length)
        self._done = torch.ones(slots, dtype=torch.bool, device=device)
        # One column more than there are tokens: there a finished row's steps go to waste.
        self._ids = torch.zeros((slots, 1), dtype=torch.int64, device=device)
        # log-probability of each token, and its logit's distance to the next: [slots, steps, 2]
        self._figures = torch.zeros((slots, 1, 2), device=device)

    def enter(self, first: int, max_new_tokens: Sequence[int]) -> None:
        """New rows into slots `first`.., each with the most new tokens it may get."""
        columns = max(max_new_tokens) + 1
        if columns > self._ids.shape[1]:
            self._ids, self._figures = grown(self._ids, columns), grown(self._figures, columns)
        slots = slice(first, first + len(max_new_tokens))
        self._length[slots] = 0
        self._limit[slots] = torch.tensor(max_new_tokens, device=self._limit.device)
        self._done[slots] = False

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy what is kept of slots over others."""
        for state in (self._length, self._limit, self._done, self._ids, self._figures):
            state[targets] = state[sources]

    def advance(self, logits: torch.Tensor, group: Comm) -> Advance:
        """One step of slots 0..n-1, from f32 logits [n, V/T], which may be overwritten."""
        n = logits.shape[0]
        values, ids, norm = top_logprobs(logits, self._looks, group)  # [n, 2], [n, 2], [n]
        chosen, gaps = ids[:, 0], values[:, 0] - values[:, -1]
        if self._looks == 1:
            gaps = torch.full_like(gaps, torch.inf)
        rows, at = self._rows[:n], self._length[:n]
        self._ids[rows, at] = chosen
        self._figures[rows, at] = torch.stack((values[:, 0] - norm, gaps), dim=1)
        before = self._done[:n]
        length = at + ~before
        done = before | ends_among(chosen, self._end_ids) | (length >= self._limit[:n])
        self._length[:n], self._done[:n] = length, done
        return Advance(chosen.unsqueeze(1), torch.zeros_like(ids[:, :1]), done)

    def harvest(self, slot: int) -> Generated:
        """The one hypothesis of a finished row; its score is its cum_logprob."""
        length = int(self._length[slot])
        ids = self._ids[slot, :length].tolist()
        figures = self._figures[slot, :length].tolist()
        logprobs = [logprob for logprob, _ in figures]
        total = math.fsum(logprobs)
        best = Hypothesis(
            ids,
            total,
            total,
            "eos" if ids[-1] in self._ends else "length",
            logprobs if self._token_logprobs else None,
        )
        ties = smallest_ties([(at, gap) for at, (_, gap) in enumerate(figures)])
        return Generated([best], ties)
