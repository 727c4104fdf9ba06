"""Greedy search and sampling: every lane takes or draws a token a step, until its row ends.

Rows that are greedy, draw from the top_k, or from a nucleus stand in one batch; a row has a lane
for each of its drawn answers. `search.make_search` gives it to the generate loop, which feeds it
logits and harvests answers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from ftjob import kernels
from ftjob.comm import Comm
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import RowOptions
from ftjob.decode import choose
from ftjob.decode.choose import Choice, Draws
from ftjob.decode.draws import uniform
from ftjob.decode.logits import top_logprobs
from ftjob.decode.processors import NOBODY, Processors
from ftjob.decode.search import (
    Advance,
    Harvest,
    SearchRow,
    grown,
    smallest_ties,
    steps_at_first,
)
from ftjob.model.arrays import Array, sent
from ftjob.tasks.base import NEAR_TIE, Generated, Hypothesis

# What is kept of a token: its log-probability, the one shown with it, the decision's gap.
FIGURES = 3


@dataclass(frozen=True)
class _Lanes:
    """Lanes that choose alike: `index` [M] into all of them, or None for all; `most` the highest
    top_k."""

    kind: str
    index: torch.Tensor | None
    most: int


class Sampling:
    """A token a lane and step: the likeliest, the lowest id of equals, or a draw.

    Rounding can turn a lane's path only where a decision is closer than `NEAR_TIE`: the two highest
    logits of a greedy one; of a draw the random number and the edge of a token's share of the
    mass, top_p and the mass at a token's edge, or the logits on both sides of top_k. Until the
    first such position two runs see the same tokens before them, and choose the same. The gap is
    kept for every token of the answer, so `near_ties` is complete.
    """

    def __init__(
        self,
        decode: DecodeConfig,
        ends: tuple[int, ...],
        slots: int,
        vocab: int,
        device: torch.device,
    ) -> None:
        self.beams = width = decode.lanes
        self._ft = decode.convention == "ft"
        self._vocab, self._device = vocab, device
        self._processors = Processors(decode, ends, slots, device)
        self._rows = torch.arange(slots, device=device).unsqueeze(1)
        self._lanes = torch.arange(width, device=device).expand(slots, width)
        self._length = torch.zeros((slots, width), dtype=torch.int64, device=device)
        self._limit = torch.zeros((slots, 1), dtype=torch.int64, device=device)
        self._done = torch.ones((slots, width), dtype=torch.bool, device=device)
        # One column more than there are tokens: there a finished lane's steps go to waste.
        steps = steps_at_first(decode) + 1
        self._ids = torch.zeros((slots, steps, width), dtype=torch.int64, device=device)
        self._figures = torch.zeros((slots, steps, width, FIGURES), device=device)
        # top_k, seed, the row's hash, the id that resets top_p: [slots, 4]
        self._whole = torch.ones((slots, 4), dtype=torch.int64, device=device)
        # top_p at first, its decay and least: [slots, 3]; and what it is now
        self._shares = torch.ones((slots, 3), device=device)
        self._p = torch.ones((slots, width), device=device)
        self._plans: dict[int, list[_Lanes]] = {}

    def enter(self, first: int, rows: Sequence[SearchRow]) -> None:
        """New rows into slots `first`..."""
        self._plans.clear()
        self._processors.enter(first, rows)
        columns = max(row.limit for row in rows) + 1
        if columns > self._ids.shape[1]:
            self._ids, self._figures = grown(self._ids, columns), grown(self._figures, columns)
        slots = slice(first, first + len(rows))
        options = [row.options for row in rows]
        self._length[slots] = 0
        device = self._device
        self._limit[slots, 0] = sent([row.limit for row in rows], device, torch.int64)
        asked = sent([[o.num_return_sequences] for o in options], device, torch.int64)
        self._done[slots] = self._lanes[slots] >= asked
        whole = [
            [o.top_k, o.seed, row.draw, -1 if o.top_p_reset is None else o.top_p_reset]
            for o, row in zip(options, rows, strict=True)
        ]
        self._whole[slots] = sent(whole, device, torch.int64)
        shares = [[o.top_p or 1.0, o.top_p_decay, o.top_p_min] for o in options]
        self._shares[slots] = sent(shares, device, torch.float32)
        self._p[slots] = self._shares[slots, :1]

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what is kept of slots over others."""
        self._plans.clear()
        self._processors.move(sources, targets)
        device = self._limit.device
        at, to = (sent(slots, device, torch.int64) for slots in (sources, targets))
        for state in (
            *(self._length, self._limit, self._done, self._ids),
            *(self._figures, self._whole, self._shares, self._p),
        ):
            state[to] = state[at]

    def clear(self, first: int, stop: int) -> None:
        """The slots first..stop-1 hold no rows any more."""
        self._plans.clear()
        self._processors.clear(first, stop)
        self._done[first:stop] = True

    def kind(self, n: int) -> Hashable | None:
        """See `Search`."""
        edits, plan = self._processors.kind(n), self._planned(n)
        decays = any(o.top_p_decay != 1 for o in self._processors.distinct(n))
        if edits is None or len(plan) != 1 or decays:
            return None
        return edits, plan[0].kind, plan[0].most, self._ids.shape[1]

    def advance(self, logits: torch.Tensor, group: Comm) -> Advance:
        """See `Search`."""
        n = len(logits) // self.beams
        if kernels.used(self._device) and self._plain(n):
            return self._take(n, logits, group)
        logits = logits.float()
        self._processors.apply(logits, group)
        choice = self._choose(n, logits, group)
        ids = choice.ids.view(n, self.beams)
        rows, lanes, at = self._rows[:n], self._lanes[:n], self._length[:n]
        self._ids[rows, at, lanes] = ids
        self._figures[rows, at, lanes] = choice.figures.view(n, self.beams, FIGURES)
        before = self._done[:n]
        length = at + ~before
        done = before | self._processors.ending(ids) | (length >= self._limit[:n])
        self._processors.follow(ids)
        self._decay(n, ids)
        self._length[:n], self._done[:n] = length, done
        return Advance(ids, self._lanes[:n], done.all(dim=1))

    def _plain(self, n: int) -> bool:
        """Whether all lanes take the likeliest token, and no row asks for edits or stop words."""
        kinds = [lanes.kind for lanes in self._planned(n)]
        return kinds == ["greedy"] and self._processors.kind(n) is not None

    def _take(self, n: int, logits: torch.Tensor, group: Comm) -> Advance:
        """`advance` of a plain step, in one kernel behind the look at the logits."""
        # imported here because a machine without a GPU may be without triton
        from ftjob.kernels.greedy import take

        found = top_logprobs(logits, min(2, self._vocab), group)
        steps, state = (self._ids, self._figures), (self._length, self._done)
        ids, finished = take(found, steps, state, self._limit, self._processors.ends)
        return Advance(ids, self._lanes[:n], finished)

    def _decay(self, n: int, ids: torch.Tensor) -> None:
        """top_p after a token (Lee et al. 2022, arXiv 2206.04624, section 3.2)."""
        if any(o.top_p_decay != 1 for o in self._processors.distinct(n)):
            first, decay, least = self._shares[:n].unsqueeze(1).unbind(dim=2)  # each [n, 1]
            now = torch.maximum(self._p[:n] * decay, least).where(decay != 1, self._p[:n])
            self._p[:n] = first.where(ids == self._whole[:n, 3:], now)

    def _choose(self, n: int, logits: torch.Tensor, group: Comm) -> Choice:
        """The next token of every lane of slots 0..n-1."""
        plan = self._planned(n)
        ids = torch.zeros(len(logits), dtype=torch.int64, device=self._device)
        figures = torch.zeros((len(logits), FIGURES), device=self._device)
        for lanes in plan:
            part = logits if lanes.index is None else logits[lanes.index]
            choice = self._choice(n, lanes, part, group)
            if lanes.index is None:
                return choice
            ids[lanes.index], figures[lanes.index] = choice.ids, choice.figures
        return Choice(ids, figures)

    def _choice(self, n: int, lanes: _Lanes, logits: torch.Tensor, group: Comm) -> Choice:
        if lanes.kind == "greedy":
            return choose.likeliest(logits, self._vocab, group)
        width, ft = self.beams, self._ft

        def own(state: torch.Tensor) -> torch.Tensor:
            """A column of state [slots] or [slots, W], for these lanes."""
            flat = state[:n].expand(n, width).flatten()
            return flat if lanes.index is None else flat[lanes.index]

        k, seed, row = (own(self._whole[:, i : i + 1]) for i in range(3))
        draws = Draws(k, own(self._p), uniform(seed, row, own(self._lanes), own(self._length)))
        if lanes.kind == "top_k":
            found = choose.top_k_candidates(logits, draws, lanes.most, self._vocab, ft, group)
            return found.drawn(draws.u)
        if lanes.kind == "all":
            return choose.all_candidates(logits, group).drawn(draws.u)
        return choose.of_nucleus(logits, draws, self._vocab, ft, group)

    def _planned(self, n: int) -> list[_Lanes]:
        if n not in self._plans:
            self._plans[n] = self._plan(n)
        return self._plans[n]

    def _plan(self, n: int) -> list[_Lanes]:
        """The lanes of slots 0..n-1 by how they choose; those without a row do as others do."""
        kinds: dict[str, list[int]] = {}
        rows = self._processors.rows[:n]
        own = {id(row.options): row.options for row in rows if row is not NOBODY}
        most = max((o.top_k for o in own.values()), default=0)
        asked = {key: _kind(options) for key, options in own.items()}
        if len(set(asked.values())) == 1:
            return [_Lanes(next(iter(asked.values())), None, most)]
        for slot, row in enumerate(rows):
            if row is not NOBODY:
                lanes = kinds.setdefault(asked[id(row.options)], [])
                lanes.extend(range(slot * self.beams, (slot + 1) * self.beams))
        return [
            _Lanes(kind, torch.tensor(lanes, device=self._device), most)
            for kind, lanes in kinds.items()
        ]

    def harvest(self, slots: Sequence[int]) -> Harvest:
        """The hypotheses of finished rows, one a drawn answer in order; their score is their
        cum_logprob."""
        rows, steps = self._processors.rows, (self._ids, self._figures)
        return Harvest(slots, rows, self._answers, (self._length,), steps)

    def _answers(
        self, rows: Sequence[SearchRow], lengths: Array, every: Array, figures: Array
    ) -> list[Generated]:
        """All rows' answers. A GPU may wait meanwhile, so numbers are put in the order in which
        they are read, [rows, W, step] and [rows, W, FIGURES, step], and as few of them as can be
        become objects. Log-probabilities are added token by token in f64: a row's sum is the same
        whatever rows it is harvested with."""
        every = np.ascontiguousarray(np.moveaxis(every, 1, -1))
        figures = np.ascontiguousarray(np.moveaxis(figures, 1, -1))
        sums = figures[:, :, 0].cumsum(axis=2, dtype=np.float64)
        totals = np.take_along_axis(sums, lengths[:, :, None] - 1, axis=2)[:, :, 0]
        made = np.arange(every.shape[2]) < lengths[:, :, None]
        close: Array = np.any((figures[:, :, 2] < NEAR_TIE) & made, axis=2)
        told = zip(lengths.tolist(), totals.tolist(), close.tolist(), strict=True)
        return [
            self._answer(row, own, numbers, zip(*lanes, strict=True))
            for row, own, numbers, lanes in zip(rows, every, figures, told, strict=True)
        ]

    def _answer(
        self,
        row: SearchRow,
        every: Array,
        figures: Array,
        lanes: Iterable[tuple[int, float, bool]],
    ) -> Generated:
        """A row's; `lanes` have their lengths, the sums of their log-probabilities, and whether
        there are near ties."""
        options = row.options
        found: list[Hypothesis] = []
        ties: list[tuple[int, float]] = []
        asked = islice(lanes, options.num_return_sequences)
        for lane, (length, total, close) in enumerate(asked):
            ids: list[int] = every[lane, :length].tolist()
            own = figures[lane, 1, :length].tolist() if options.token_logprobs else None
            found.append(Hypothesis(ids, total, total, self._processors.reason(row, ids), own))
            if close:
                gaps: list[float] = figures[lane, 2, :length].tolist()
                ties += [(i, gap) for i, gap in enumerate(gaps) if gap < NEAR_TIE]
        return Generated(found, smallest_ties(ties))


def _kind(options: RowOptions) -> str:
    """How a row chooses its tokens."""
    if not options.drawn:
        return "greedy"
    if options.top_k:
        return "top_k"
    return "all" if options.top_p == 1 and options.top_p_decay == 1 else "nucleus"
