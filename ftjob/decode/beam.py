"""Beam search with a pool of finished hypotheses, for many slots at once.

The rules are those of transformers 5.17 (`_beam_search` in generation/utils.py) for a row alone, or
FasterTransformer's for encoder-decoder models, which are transformers 4.24's with early stopping.
`search.make_search` gives it to the generate loop, which feeds it logits and harvests answers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

import torch

from ftjob import kernels
from ftjob.comm import Comm
from ftjob.config.groups import DecodeConfig
from ftjob.decode.logits import top_logprobs
from ftjob.decode.processors import Processors
from ftjob.decode.search import (
    BEAM_BITS,
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


class BeamSearch:
    """W beams a row. A step ranks all continuations of all beams by cum_logprob. Of the first W,
    those that end join the pool, under score = cum_logprob / length ** length_penalty; at the
    length limit all W do. The first W that do not end go on. The pool keeps the W best scores. A
    full pool stops its row: at once (`early_stopping` true), or when the best beam, at its present
    length, does not beat the pool's worst (false); for "never" at the row's limit instead, where
    length_penalty > 0, since more tokens then raise a score.

    Near ties. Between steps only three things bear on the answer: the set of open beams (their
    order only names the lanes), the pool, and whether the row goes on. Rounding moves every
    cum_logprob by far less than `NEAR_TIE`, so two runs that agree before a step agree after it
    unless one of these comparisons, which are all that a step makes, was closer than that:
    - the last open beam kept against the best one dropped, where the row goes on;
    - a candidate that ends against the other side of the first W: to leave them it must fall
      behind the best of those outside, to enter them pass the last inside (at the limit any
      candidate);
    - the last of the pool against the best that it refused or evicted;
    - the best open beam against the pool's worst, where that stops the row.
    The gap of the step is the smallest of them; the answer adds those between hypotheses that
    follow each other, the first one not reported included, at the last position of the best. Of
    each lane the W + 1 + ends highest tokens are looked at, of a row the (1 + ends) * W + 1 best.
    Whatever ranks lower has W + 1 candidates before it that do not end, so it is never kept nor
    the best dropped; and since it may end, the lowest that was looked at counts like one that does.
    A length penalty below 0 magnifies rounding with the scores: their gaps count before that. With
    FasterTransformer's diversity candidates rank, and join the pool, by their score with rate x
    rank; there the order of the tokens of a lane bears on the answer too, and its gaps count.
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
        self._ft = decode.convention == "ft"
        self._early_stopping = True if self._ft else decode.early_stopping
        self._sign = 1.0 if decode.diversity_sign == "ft" else -1.0
        self._vocab = vocab
        self._processors = Processors(decode, ends, slots, device)
        self._look_at(len(ends), False)
        self._rows = torch.arange(slots, device=device)
        self._first = torch.arange(width, device=device)
        self._length = torch.zeros(slots, dtype=torch.int64, device=device)
        self._limit = torch.zeros_like(self._length)
        self._done = torch.ones(slots, dtype=torch.bool, device=device)
        self._penalty = torch.zeros(slots, device=device)
        self._rate = torch.zeros_like(self._penalty)
        self._open = torch.zeros((slots, width), device=device)  # cum_logprob of the open beams
        # Per step and lane, the token and the lane before it, and its own log-probability. One
        # column more than there are steps: there a finished row's steps go to waste.
        steps = steps_at_first(decode) + 1
        self._history = torch.zeros((slots, steps, width), dtype=torch.int64, device=device)
        self._logprobs = torch.zeros((slots, steps, width), device=device)
        self._gaps = torch.zeros((slots, steps), device=device)
        # length ** length_penalty behind each step
        self._power = torch.ones((slots, steps), device=device)
        # The pool, best first: score, cum_logprob, the last token's own; how each one ended.
        self._pool = torch.zeros((slots, width, 3), device=device)
        self._endings = torch.zeros((slots, width), dtype=torch.int64, device=device)

    def _look_at(self, ends: int, diverse: bool) -> None:
        """How many tokens of a lane and candidates of a row are looked at, where so many tokens may
        end one; FasterTransformer's diversity ranks 2 W of each lane, and the next tells how close
        it was."""
        width = self.beams
        self._ends, self._diverse = ends, diverse
        self._looks = min(max(width + 1 + ends, 2 * width + 1 if diverse else 0), self._vocab)
        self._candidates = min(width * self._looks, (1 + ends) * width + 1)

    def enter(self, first: int, rows: Sequence[SearchRow]) -> None:
        """New rows into slots `first`..."""
        self._processors.enter(first, rows)
        limits, options = [row.limit for row in rows], [row.options for row in rows]
        columns = max(limits) + 1
        if columns > self._history.shape[1]:
            self._history, self._power = grown(self._history, columns), grown(self._power, columns)
            self._logprobs, self._gaps = grown(self._logprobs, columns), grown(self._gaps, columns)
        ends = max(len(self._processors.ends_of(row)) + len(row.options.stops) for row in rows)
        diverse = any(o.beam_search_diversity_rate for o in options)
        if ends > self._ends or diverse > self._diverse:
            self._look_at(max(ends, self._ends), diverse or self._diverse)
        slots = slice(first, first + len(rows))
        device = self._limit.device
        self._length[slots] = 0
        self._limit[slots] = sent(limits, device, torch.int64)
        self._penalty[slots] = sent([o.length_penalty for o in options], device, torch.float32)
        lengths = torch.arange(1, self._power.shape[1] + 1, dtype=torch.float64, device=device)
        powers = lengths.pow(self._penalty[slots].double().unsqueeze(1))
        # within what float32 can divide by, whatever the penalty
        self._power[slots] = powers.clamp(1e-30, 1e30).float()
        rates = [self._sign * o.beam_search_diversity_rate for o in options]
        self._rate[slots] = sent(rates, device, torch.float32)
        self._done[slots] = False
        # all beams start alike: only the first may be continued
        self._open[slots] = -torch.inf
        self._open[slots, 0] = 0.0
        self._pool[slots] = -torch.inf

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what is kept of slots over others."""
        self._processors.move(sources, targets)
        device = self._limit.device
        at, to = (sent(slots, device, torch.int64) for slots in (sources, targets))
        for state in (
            *(self._length, self._limit, self._done, self._open, self._penalty, self._rate),
            *(self._history, self._logprobs, self._gaps, self._power, self._pool, self._endings),
        ):
            state[to] = state[at]

    def clear(self, first: int, stop: int) -> None:
        """The slots first..stop-1 hold no rows any more."""
        self._processors.clear(first, stop)
        self._done[first:stop] = True

    def kind(self, n: int) -> Hashable | None:
        """See `Search`."""
        edits = self._processors.kind(n)
        return (
            None if edits is None else (edits, self._looks, self._diverse, self._history.shape[1])
        )

    def advance(self, logits: torch.Tensor, group: Comm) -> Advance:
        """See `Search`."""
        width, looks, n = self.beams, self._looks, len(logits) // self.beams
        if kernels.used(logits.device) and (taken := self._taken(n, logits, group)) is not None:
            return taken
        logits = logits.float()
        edited = self._processors.apply(logits, group)
        values, ids, norm = top_logprobs(logits, looks, group)  # [n * W, k], [n * W, k], [n * W]
        if edited is not None:
            norm = norm.masked_fill(edited, 0.0)
        at, rows = self._length[:n], self._rows[:n]
        last = at + 1 >= self._limit[:n]
        powers = self._power[rows, at]
        logprobs = (values - norm.unsqueeze(1)).view(n, width, looks)
        lanes_cums = (logprobs + self._open[:n].unsqueeze(2)).flatten(1)  # [n, W * k]
        reached = lanes_cums
        if self._diverse:
            reached = self._with_ranks(lanes_cums.view(n, width, looks), powers)
        keys, order = reached.sort(dim=1, descending=True, stable=True)
        keys, order = keys[:, : self._candidates], order[:, : self._candidates]  # [n, C]
        # the most that a continuation may reach which is not among these
        unseen = keys[:, -1]
        if looks < self._vocab:
            unseen = reached[:, looks - 1 :: looks].amax(dim=1).maximum(unseen)
        tokens = ids.reshape(n, -1).gather(1, order)
        parents = order.div(looks, rounding_mode="floor")
        ending = self._processors.ending(tokens, parents)
        cums = lanes_cums.gather(1, order) if self._diverse else keys
        own = logprobs.flatten(1).gather(1, order)

        lanes = ending.to(torch.int8).sort(dim=1, stable=True).indices[:, : width + 1]
        going = keys.masked_fill(ending, -torch.inf).gather(1, lanes)  # [n, W + 1], falling
        lanes = lanes[:, :width]

        steps = parents << TOKEN_BITS | tokens
        inside, cut = ending[:, :width], last.unsqueeze(1)
        if self._ft:  # what is cut at the limit fills up a pool that is not full
            held = (self._pool[:n, :, 0] > -torch.inf).sum(dim=1) + inside.sum(dim=1)
            cut = cut & (held < width).unsqueeze(1)
        joining = inside | cut
        scores = keys[:, :width] / powers.unsqueeze(1)
        pick = self._first.expand(n, width)
        opened = going[:, :width]
        if self._diverse:  # those that are cut join, and all go on, by what they are without ranks
            opened = cums.gather(1, lanes).masked_fill(opened == -torch.inf, -torch.inf)
            joining = torch.cat((inside, cut.expand(n, width)), dim=1)
            pick = torch.cat((pick, lanes), dim=1)
            scores = torch.cat((scores, opened / powers.unsqueeze(1)), dim=1)
        figures = torch.stack((scores, cums.gather(1, pick), own.gather(1, pick)), dim=2)
        pooled = self._join(joining, figures, steps.gather(1, pick))  # falling
        stops, stop_gaps = self._stop(last, powers, going[:, 0], pooled[:, width - 1])

        before = self._done[:n]
        gaps = self._gap(
            keys, ending | last.unsqueeze(1), unseen, going, stops, pooled, stop_gaps, powers
        )
        if self._diverse:  # which of two tokens has which rank
            neighbours = (values[:, :-1] - values[:, 1:]).amin(dim=1).view(n, width).amin(dim=1)
            gaps = torch.minimum(gaps, neighbours.where(self._rate[:n] != 0, torch.inf))
        self._gaps[rows, at] = gaps
        self._history[rows, at] = steps.gather(1, lanes)
        self._logprobs[rows, at] = own.gather(1, lanes)
        self._open[:n] = opened
        self._length[:n] = at + ~before
        self._done[:n] = done = before | stops
        chosen, parents = tokens.gather(1, lanes), parents.gather(1, lanes)
        self._processors.follow(chosen, parents)
        return Advance(chosen, parents, done)

    def _taken(self, n: int, logits: torch.Tensor, group: Comm) -> Advance | None:
        """`advance` in one kernel behind the look at the logits; None where rows ask for edits,
        stop words or diversity, or have too many candidates for that."""
        # imported here because a machine without a GPU may be without triton
        from ftjob.kernels.beams import Beams, advance, fits

        plain = not self._diverse and self._processors.kind(n) is not None
        if not plain or not fits(self.beams, self._looks, self._candidates):
            return None
        beams = Beams(
            *(self._length, self._limit, self._done, self._penalty, self._open, self._history),
            *(self._logprobs, self._gaps, self._power, self._pool, self._endings),
        )
        found = top_logprobs(logits, self._looks, group)
        chosen = advance(
            *(found, beams, self._processors.ends, self._candidates),
            more=self._looks < self._vocab,
            ft=self._ft,
            early=self._early_stopping,
        )
        return Advance(*chosen)

    def _with_ranks(self, cums: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
        """What [n, W, k] continuations rank by, [n, W * k]: the cum_logprob that gives the score
        with the diversity rate times the rank within the lane, modulo W."""
        n, width, looks = cums.shape
        rank = torch.arange(looks, device=cums.device)
        rate = self._rate[:n].view(n, 1, 1)
        ranked = cums + rate * (rank % width) * powers.view(n, 1, 1)
        return ranked.masked_fill((rank >= 2 * width) & (rate != 0), -torch.inf).flatten(1)

    def _join(
        self, joining: torch.Tensor, figures: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """Put those candidates into the pool that are `joining` [n, J], of figures [n, J, 3] and
        steps [n, J]; gives the scores of the pool before and of those [n, W + J], falling: the
        first W stay."""
        n, width = len(joining), self.beams
        # a beam that was never opened has no continuation, and a finished row stays as it is
        out = ~joining | (figures[..., 0] == -torch.inf) | self._done[:n].unsqueeze(1)
        figures = figures.masked_fill(out.unsqueeze(2), -torch.inf)
        pool = torch.cat((self._pool[:n], figures), dim=1)  # [n, W + J, 3]
        steps = self._length[:n].unsqueeze(1) << (TOKEN_BITS + BEAM_BITS) | steps
        endings = torch.cat((self._endings[:n], steps), dim=1)
        scores, order = pool[..., 0].sort(dim=1, descending=True, stable=True)
        order = order[:, :width]
        self._endings[:n] = endings.gather(1, order)
        self._pool[:n] = pool.gather(1, order.unsqueeze(2).expand(-1, -1, 3))
        return scores

    def _stop(
        self, last: torch.Tensor, powers: torch.Tensor, best: torch.Tensor, worst: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows end with this step [n], and how close the scores' part in that was [n]: `best`
        is the highest open cum_logprob, `worst` the pool's last score, -inf until it is full."""
        if self._early_stopping is True:
            return last | (worst > -torch.inf), torch.full_like(worst, torch.inf)
        n = len(last)
        if self._early_stopping == "never":
            final = self._power[self._rows[:n], self._limit[:n] - 1]
            powers = final.where(self._penalty[:n] > 0, powers)
        hope = best / powers
        return last | (hope <= worst), (hope - worst).abs().masked_fill(last, torch.inf)

    def _gap(
        self,
        cums: torch.Tensor,
        ending: torch.Tensor,
        unseen: torch.Tensor,
        going: torch.Tensor,
        stops: torch.Tensor,
        scores: torch.Tensor,
        stop_gaps: torch.Tensor,
        powers: torch.Tensor,
    ) -> torch.Tensor:
        """The closest decision of the step [n]; see the class."""
        width = self.beams
        inside = cums[:, :width] - cums[:, width : width + 1]
        outside = cums[:, width - 1 : width] - cums[:, width:]
        ended = torch.cat((inside, outside), dim=1).masked_fill(~ending, torch.inf)  # [n, C]
        hidden = cums[:, width - 1] - unseen
        kept = (going[:, width - 1] - going[:, width]).masked_fill(stops, torch.inf)
        pooled = torch.stack((scores[:, width - 1] - scores[:, width], stop_gaps), dim=1)
        pooled = pooled * powers.clamp(max=1.0).unsqueeze(1)
        every = torch.cat((ended, torch.stack((hidden, kept), dim=1), pooled), dim=1)
        # NaN: both sides are -inf, which decides nothing
        return every.nan_to_num(nan=torch.inf, posinf=torch.inf).amin(dim=1)

    def harvest(self, slots: Sequence[int]) -> Harvest:
        """The hypotheses of finished rows."""
        whole = (self._length, self._endings, self._pool)
        steps = (self._history, self._logprobs, self._gaps)
        return Harvest(slots, self._processors.rows, one_by_one(self._answer), whole, steps)

    def _answer(
        self,
        row: SearchRow,
        length: int,
        endings: Array,
        pooled: Array,
        every: Array,
        singly: Array,
        close: Array,
    ) -> Generated:
        options = row.options
        history, logprobs = every[:length].tolist(), singly[:length].tolist()
        pool = [f for f in pooled.tolist() if f[0] != -torch.inf]
        found: list[Hypothesis] = []
        for ending, figures in zip(endings.tolist(), pool, strict=False):
            if len(found) == options.n_best:
                break
            step, code = divmod(ending, 1 << (TOKEN_BITS + BEAM_BITS))
            beam, token = divmod(code, 1 << TOKEN_BITS)
            ids, singles = ancestry(beam, history[:step], logprobs)
            ids, singles = [*ids, token], [*singles, figures[2]]
            own = singles if options.token_logprobs else None
            reason = self._processors.reason(row, ids)
            found.append(Hypothesis(ids, figures[0], figures[1], reason, own))
        unit = float(length) ** min(0.0, options.length_penalty)
        ordered = [(a[0] - b[0]) * unit for a, b in pairwise(pool[: len(found) + 1])]
        final = [(len(found[0].ids) - 1, gap) for gap in ordered]
        return Generated(found, smallest_ties([*enumerate(close[:length].tolist()), *final]))
