"""FasterTransformer's beam search for models without an encoder: finished beams stay and compete.

`search.make_search` gives it to the generate loop for decode.convention=ft, which feeds it logits
and harvests answers; `beam` has the search with a pool.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

import torch

from ftjob.comm import Comm
from ftjob.config.groups import DecodeConfig
from ftjob.decode.logits import top_logprobs
from ftjob.decode.processors import Processors
from ftjob.decode.search import (
    TOKEN_BITS,
    Advance,
    Harvest,
    SearchRow,
    ancestry,
    grown,
    one_by_one,
    smallest_ties,
    steps_at_first,
)
from ftjob.model.arrays import Array, sent
from ftjob.tasks.base import Generated, Hypothesis


class CompetingBeams:
    """W beams a row, of which finished ones go on with an end token at log-probability 0.

    A step looks at the 2 W likeliest tokens of each beam and keeps the W best candidates of all, by
    cum_logprob / length ** length_penalty + diversity x (rank within the beam, modulo W), the lower
    beam and then the lower rank of equals. Length counts a row's own prompt, never padding, and the
    new tokens, end token included. A row ends when all of its beams have, or at its limit; its
    answers stand in the order of the last step. The score reported is the one without diversity.

    Near ties: the last candidate kept against the best one dropped, with diversity the order of a
    beam's tokens, and at the end the order of the beams that are reported.
    """

    def __init__(
        self,
        decode: DecodeConfig,
        ends: tuple[int, ...],
        slots: int,
        vocab: int,
        device: torch.device,
    ) -> None:
        self.beams = width = decode.beams
        self._sign = 1.0 if decode.diversity_sign == "ft" else -1.0
        self._vocab, self._looks = vocab, min(2 * width, vocab)
        self._processors = Processors(decode, ends, slots, device)
        self._rows = torch.arange(slots, device=device)
        self._rank = torch.arange(self._looks, device=device) % width
        self._length = torch.zeros(slots, dtype=torch.int64, device=device)
        self._limit = torch.zeros_like(self._length)
        self._context = torch.zeros_like(self._length)
        self._done = torch.ones(slots, dtype=torch.bool, device=device)
        # length penalty and diversity rate: [slots, 2]
        self._weights = torch.zeros((slots, 2), device=device)
        # Of each beam: cum_logprob, new tokens, whether it is finished; what the best W + 1
        # candidates of the last step ranked by.
        self._cums = torch.zeros((slots, width), device=device)
        self._sizes = torch.zeros((slots, width), dtype=torch.int64, device=device)
        self._ended = torch.zeros((slots, width), dtype=torch.bool, device=device)
        self._ranked = torch.zeros((slots, width + 1), device=device)
        # Per step and lane, the token and the lane before it, and its own log-probability. One
        # column more than there are steps: there a finished row's steps go to waste.
        steps = steps_at_first(decode) + 1
        self._history = torch.zeros((slots, steps, width), dtype=torch.int64, device=device)
        self._logprobs = torch.zeros((slots, steps, width), device=device)
        self._gaps = torch.zeros((slots, steps), device=device)

    def enter(self, first: int, rows: Sequence[SearchRow]) -> None:
        """New rows into slots `first`..."""
        self._processors.enter(first, rows)
        columns = max(row.limit for row in rows) + 1
        if columns > self._history.shape[1]:
            self._history = grown(self._history, columns)
            self._logprobs, self._gaps = grown(self._logprobs, columns), grown(self._gaps, columns)
        slots = slice(first, first + len(rows))
        device = self._limit.device
        self._length[slots] = 0
        self._limit[slots] = sent([row.limit for row in rows], device, torch.int64)
        self._context[slots] = sent([len(row.context) for row in rows], device, torch.int64)
        weights = [
            [row.options.length_penalty, self._sign * row.options.beam_search_diversity_rate]
            for row in rows
        ]
        self._weights[slots] = sent(weights, device, torch.float32)
        self._done[slots] = False
        # all beams start alike: only the first may be continued
        self._cums[slots] = -torch.inf
        self._cums[slots, 0] = 0.0
        self._sizes[slots] = 0
        self._ended[slots] = False

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what is kept of slots over others."""
        self._processors.move(sources, targets)
        device = self._limit.device
        at, to = (sent(slots, device, torch.int64) for slots in (sources, targets))
        for state in (
            *(self._length, self._limit, self._context, self._done, self._weights, self._cums),
            *(self._sizes, self._ended, self._ranked),
            *(self._history, self._logprobs, self._gaps),
        ):
            state[to] = state[at]

    def advance(self, logits: torch.Tensor, group: Comm) -> Advance:
        """See `Search`."""
        width, looks = self.beams, self._looks
        n, logits = len(logits) // width, logits.float()
        self._processors.apply(logits, group)
        # one more than are candidates, to see how close it was
        values, ids, norm = top_logprobs(logits, min(looks + 1, self._vocab), group)
        logprobs = (values - norm.unsqueeze(1))[:, :looks].view(n, width, looks)
        ids = ids[:, :looks].view(n, width, looks)
        ended = self._ended[:n].unsqueeze(2)  # [n, W, 1]
        # a finished beam has one continuation
        only = torch.full_like(self._rank, -torch.inf, dtype=logprobs.dtype)
        only[0] = 0.0
        logprobs = only.where(ended, logprobs)
        again = self._processors.ends[:n, :1].clamp(min=0).unsqueeze(2)
        ids = again.where(ended, ids)
        cums = (logprobs + self._cums[:n].unsqueeze(2)).flatten(1)  # [n, W * k]
        sizes = self._sizes[:n] + ~self._ended[:n]
        powers = self._powers(sizes).repeat_interleave(looks, dim=1)
        bonus = self._weights[:n, 1:] * self._rank.repeat(width)
        keys, order = (cums / powers + bonus).sort(dim=1, descending=True, stable=True)
        ranked, order = keys[:, : width + 1], order[:, :width]
        tokens = ids.flatten(1).gather(1, order)
        parents = order.div(looks, rounding_mode="floor")
        was = self._ended[:n].gather(1, parents)
        ends = was | self._processors.ending(tokens, parents)

        before, at, rows = self._done[:n], self._length[:n], self._rows[:n]
        gap = (ranked[:, -2] - ranked[:, -1]).nan_to_num(nan=torch.inf, posinf=torch.inf)
        neighbours = (values[:, :-1] - values[:, 1:]).amin(dim=1).view(n, width).amin(dim=1)
        diverse = self._weights[:n, 1] != 0
        self._gaps[rows, at] = torch.minimum(gap, neighbours.where(diverse, torch.inf))
        self._history[rows, at] = parents << TOKEN_BITS | tokens
        self._logprobs[rows, at] = logprobs.flatten(1).gather(1, order)
        keep = before.unsqueeze(1)  # a finished row stays as it is
        for state, now in (
            (self._cums, cums.gather(1, order)),
            (self._sizes, sizes.gather(1, parents)),
            (self._ended, ends),
            (self._ranked, ranked),
        ):
            state[:n] = state[:n].where(keep, now)
        done = before | ends.all(dim=1) | (at + 1 >= self._limit[:n])
        self._length[:n], self._done[:n] = at + ~before, done
        self._processors.follow(tokens, parents)
        return Advance(tokens, parents, done)

    def clear(self, first: int, stop: int) -> None:
        """The slots first..stop-1 hold no rows any more."""
        self._processors.clear(first, stop)
        self._done[first:stop] = True

    def kind(self, n: int) -> Hashable | None:
        """See `Search`."""
        edits = self._processors.kind(n)
        return None if edits is None else (edits, self._history.shape[1])

    def _powers(self, sizes: torch.Tensor) -> torch.Tensor:
        """(prompt + new tokens) ** length_penalty, of new tokens [n, W]."""
        n = len(sizes)
        lengths = (sizes + self._context[:n].unsqueeze(1)).double()
        # within what float32 can divide by, whatever the penalty
        return lengths.pow(self._weights[:n, :1].double()).clamp(1e-30, 1e30).float()

    def harvest(self, slots: Sequence[int]) -> Harvest:
        """The hypotheses of finished rows."""
        whole = (self._length, self._cums, self._sizes, self._ranked)
        steps = (self._history, self._logprobs, self._gaps)
        return Harvest(slots, self._processors.rows, one_by_one(self._answer), whole, steps)

    def _answer(
        self,
        row: SearchRow,
        length: int,
        totals: Array,
        counts: Array,
        rankings: Array,
        every: Array,
        singly: Array,
        close: Array,
    ) -> Generated:
        history, logprobs = every[:length].tolist(), singly[:length].tolist()
        gaps, cums, sizes = close[:length].tolist(), totals.tolist(), counts.tolist()
        ranked = [key for key in rankings.tolist() if key != -torch.inf]
        found: list[Hypothesis] = []
        for beam in range(min(row.options.n_best, len(ranked), self.beams)):
            ids, singles = ancestry(beam, history, logprobs)
            ids, singles = ids[: sizes[beam]], singles[: sizes[beam]]
            score = cums[beam] / (len(row.context) + sizes[beam]) ** row.options.length_penalty
            own = singles if row.options.token_logprobs else None
            reason = self._processors.reason(row, ids)
            found.append(Hypothesis(ids, score, cums[beam], reason, own))
        final = [(len(found[0].ids) - 1, a - b) for a, b in pairwise(ranked[: len(found) + 1])]
        return Generated(found, smallest_ties([*enumerate(gaps), *final]))
