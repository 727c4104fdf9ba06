"""Beam search with a pool of finished hypotheses, for many slots at once.

The rules are those of transformers 5.17 (`_beam_search` in generation/utils.py) for a row alone.
`search.make_search` gives it to the generate loop, which feeds it logits and harvests answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch

from ftjob.comm import Comm
from ftjob.config.groups import DecodeConfig
from ftjob.decode.logits import top_logprobs
from ftjob.decode.search import Advance, ends_among, grown, smallest_ties
from ftjob.tasks.base import Generated, Hypothesis

# A token and the beam it continues in one number, in the pool below the step as well.
TOKEN_BITS, BEAM_BITS = 32, 8


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
    A length penalty below 0 magnifies rounding with the scores: their gaps count before that.
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
        self._decode = decode
        self._ends = ends
        self._end_ids = torch.tensor(ends, dtype=torch.int64, device=device)
        self._vocab = vocab
        self._looks = min(width + 1 + len(ends), vocab)
        self._candidates = min(width * self._looks, (1 + len(ends)) * width + 1)
        self._rows = torch.arange(slots, device=device)
        self._length = torch.zeros(slots, dtype=torch.int64, device=device)
        self._limit = torch.zeros_like(self._length)
        self._done = torch.ones(slots, dtype=torch.bool, device=device)
        self._open = torch.zeros((slots, width), device=device)  # cum_logprob of the open beams
        # Per step and lane, the token and the lane before it; `_logprobs` where asked for. One
        # column more than there are steps: there a finished row's steps go to waste.
        self._history = torch.zeros((slots, 1, width), dtype=torch.int64, device=device)
        figures = 3 if decode.token_logprobs else 2
        self._logprobs = torch.zeros((slots, 1, width * (figures - 2)), device=device)
        self._gaps = torch.zeros((slots, 1), device=device)
        self._powers = torch.zeros(0, device=device)  # length ** length_penalty, by length
        # The pool, best first: score, cum_logprob, the last token's own; how each one ended.
        self._pool = torch.zeros((slots, width, figures), device=device)
        self._endings = torch.zeros((slots, width), dtype=torch.int64, device=device)

    def enter(self, first: int, max_new_tokens: Sequence[int]) -> None:
        """New rows into slots `first`.., each with the most new tokens it may get."""
        columns = max(max_new_tokens) + 1
        if columns > self._history.shape[1]:
            self._history = grown(self._history, columns)
            self._logprobs, self._gaps = grown(self._logprobs, columns), grown(self._gaps, columns)
            # a finished row's next length is looked up as well
            lengths = torch.arange(columns + 1, dtype=torch.float64, device=self._gaps.device)
            # within what float32 can divide by, whatever the penalty
            self._powers = lengths.pow(self._decode.length_penalty).clamp(1e-30, 1e30).float()
        slots = slice(first, first + len(max_new_tokens))
        self._length[slots] = 0
        self._limit[slots] = torch.tensor(max_new_tokens, device=self._limit.device)
        self._done[slots] = False
        # all beams start alike: only the first may be continued
        self._open[slots] = -torch.inf
        self._open[slots, 0] = 0.0
        self._pool[slots] = -torch.inf

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy what is kept of slots over others."""
        for state in (
            *(self._length, self._limit, self._done, self._open),
            *(self._history, self._logprobs, self._gaps, self._pool, self._endings),
        ):
            state[targets] = state[sources]

    def advance(self, logits: torch.Tensor, group: Comm) -> Advance:
        """One step of slots 0..n-1, from f32 logits [n * W, V/T], which may be overwritten."""
        width, looks = self.beams, self._looks
        n = logits.shape[0] // width
        values, ids, norm = top_logprobs(logits, looks, group)  # [n * W, k], [n * W, k], [n * W]
        logprobs = (values - norm.unsqueeze(1)).view(n, width, looks)
        reached = (logprobs + self._open[:n].unsqueeze(2)).flatten(1)  # [n, W * k]
        cums, order = reached.sort(dim=1, descending=True, stable=True)
        cums, order = cums[:, : self._candidates], order[:, : self._candidates]  # [n, C]
        # the most that a continuation may reach which is not among these
        unseen = cums[:, -1]
        if looks < self._vocab:
            unseen = reached[:, looks - 1 :: looks].amax(dim=1).maximum(unseen)
        tokens = ids.reshape(n, -1).gather(1, order)
        parents = order.div(looks, rounding_mode="floor")
        ending = ends_among(tokens, self._end_ids)
        at = self._length[:n]
        last = at + 1 >= self._limit[:n]
        powers = self._powers[at + 1]

        lanes = ending.to(torch.int8).sort(dim=1, stable=True).indices[:, : width + 1]
        going = cums.masked_fill(ending, -torch.inf).gather(1, lanes)  # [n, W + 1], falling
        lanes = lanes[:, :width]

        steps = parents << TOKEN_BITS | tokens
        own = logprobs.flatten(1).gather(1, order) if self._decode.token_logprobs else None
        joining = ending[:, :width] | last.unsqueeze(1)
        scores = self._join(joining, powers, cums, steps, own)  # [n, 2W], falling
        stops, stop_gaps = self._stop(last, powers, going[:, 0], scores[:, width - 1])

        before = self._done[:n]
        rows = self._rows[:n]
        self._gaps[rows, at] = self._gap(
            cums, ending | last.unsqueeze(1), unseen, going, stops, scores, stop_gaps, powers
        )
        self._history[rows, at] = steps.gather(1, lanes)
        if own is not None:
            self._logprobs[rows, at] = own.gather(1, lanes)
        self._open[:n] = going[:, :width]
        self._length[:n] = at + ~before
        self._done[:n] = done = before | stops
        return Advance(tokens.gather(1, lanes), parents.gather(1, lanes), done)

    def _join(
        self,
        joining: torch.Tensor,
        powers: torch.Tensor,
        cums: torch.Tensor,
        steps: torch.Tensor,
        own: torch.Tensor | None,
    ) -> torch.Tensor:
        """Put those of the first W candidates into the pool that are `joining` [n, W]; gives the
        scores of the pool before and of those [n, 2W], falling: the first W stay."""
        n, width = joining.shape
        cums = cums[:, :width]
        # a beam that was never opened has no continuation, and a finished row stays as it is
        joining = joining & (cums != -torch.inf) & ~self._done[:n].unsqueeze(1)
        scores = (cums / powers.unsqueeze(1)).masked_fill(~joining, -torch.inf)
        figures = (scores, cums) if own is None else (scores, cums, own[:, :width])
        pool = torch.cat((self._pool[:n], torch.stack(figures, dim=2)), dim=1)  # [n, 2W, F]
        steps = self._length[:n].unsqueeze(1) << (TOKEN_BITS + BEAM_BITS) | steps[:, :width]
        endings = torch.cat((self._endings[:n], steps), dim=1)
        scores, order = pool[..., 0].sort(dim=1, descending=True, stable=True)
        order = order[:, :width]
        self._endings[:n] = endings.gather(1, order)
        self._pool[:n] = pool.gather(1, order.unsqueeze(2).expand(-1, -1, pool.shape[2]))
        return scores

    def _stop(
        self, last: torch.Tensor, powers: torch.Tensor, best: torch.Tensor, worst: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows end with this step [n], and how close the scores' part in that was [n]: `best`
        is the highest open cum_logprob, `worst` the pool's last score, -inf until it is full."""
        if self._decode.early_stopping is True:
            return last | (worst > -torch.inf), torch.full_like(worst, torch.inf)
        if self._decode.early_stopping == "never" and self._decode.length_penalty > 0:
            powers = self._powers[self._limit[: len(last)]]
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

    def harvest(self, slot: int) -> Generated:
        """The hypotheses of a finished row."""
        length = int(self._length[slot])
        history: list[list[int]] = self._history[slot, :length].tolist()
        logprobs: list[list[float]] = self._logprobs[slot, :length].tolist()
        gaps: list[float] = self._gaps[slot, :length].tolist()
        pool = [f for f in self._pool[slot].tolist() if f[0] != -torch.inf]
        found: list[Hypothesis] = []
        for ending, figures in zip(self._endings[slot].tolist(), pool, strict=False):
            if len(found) == self._decode.n_best:
                break
            ids, singles = self._follow(ending, history, logprobs)
            own = [*singles, figures[2]] if self._decode.token_logprobs else None
            reason: Literal["eos", "length"] = "eos" if ids[-1] in self._ends else "length"
            found.append(Hypothesis(ids, figures[0], figures[1], reason, own))
        unit = float(length) ** min(0.0, self._decode.length_penalty)
        ordered = [(a[0] - b[0]) * unit for a, b in pairwise(pool[: len(found) + 1])]
        final = [(len(found[0].ids) - 1, gap) for gap in ordered]
        return Generated(found, smallest_ties([*enumerate(gaps), *final]))

    def _follow(
        self, ending: int, history: list[list[int]], logprobs: list[list[float]]
    ) -> tuple[list[int], list[float]]:
        """A hypothesis' tokens, and the log-probabilities of all but the last where kept, from how
        it ended back through the beams before."""
        step, code = divmod(ending, 1 << (TOKEN_BITS + BEAM_BITS))
        beam, token = divmod(code, 1 << TOKEN_BITS)
        ids, singles = [token], []
        for at in range(step - 1, -1, -1):
            if self._decode.token_logprobs:
                singles.append(logprobs[at][beam])
            beam, token = divmod(history[at][beam], 1 << TOKEN_BITS)
            ids.append(token)
        return ids[::-1], singles[::-1]
