"""How a lane's next token is chosen from its scores: the likeliest one, or a draw.

Each choice is vectorised over the lanes that ask for it; `sampling` sorts lanes into choices. All
devices of a tensor group see the same merged candidates, so all choose the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ftjob.comm import Comm
from ftjob.decode.draws import draw, nucleus
from ftjob.decode.logits import top_logprobs, whole_vocabulary

# How many candidates a CPU looks at for a nucleus before it sorts the whole vocabulary. A GPU sorts
# at once: to see whether they were enough it would have to wait.
FEW = (64, 1024)


@dataclass(frozen=True)
class Choice:
    """Tokens [M] and, f32 [M, 3], their log-probability over the whole vocabulary, the one to be
    shown with the token, and how close the decision was."""

    ids: torch.Tensor
    figures: torch.Tensor


@dataclass(frozen=True)
class Draws:
    """What lanes that draw need, each [M]: top_k int64, top_p f32, and the random number f64."""

    k: torch.Tensor
    p: torch.Tensor
    u: torch.Tensor


def likeliest(logits: torch.Tensor, vocab: int, group: Comm) -> Choice:
    """The most likely token of f32 logits [M, V/T], the lowest id of equals."""
    looks = min(2, vocab)
    values, ids, norm = top_logprobs(logits, looks, group)  # [M, 2], [M, 2], [M]
    gaps = values[:, 0] - values[:, -1] if looks > 1 else torch.full_like(norm, torch.inf)
    logprobs = values[:, 0] - norm
    return Choice(ids[:, 0], torch.stack((logprobs, logprobs, gaps), dim=1))


@dataclass(frozen=True)
class Candidates:
    """Tokens that may be drawn, of each lane: logits and ids [M, K], weights [M, K] that need not
    sum to 1; log-normalisers [M] of the whole vocabulary and of the shown log-probability; and how
    close it was to other candidates [M]. `by_id` says that ids rise."""

    values: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    norm: torch.Tensor
    shown: torch.Tensor
    close: torch.Tensor
    by_id: bool = False

    def drawn(self, u: torch.Tensor) -> Choice:
        """The tokens that u [M] falls on, tokens in order of their ids: two that are about as
        likely may be swapped by rounding."""
        values, ids, weights = self.values, self.ids, self.weights
        if not self.by_id:
            order = ids.argsort(dim=1)
            values, ids, weights = (t.gather(1, order) for t in (values, ids, weights))
        at, gap = draw(weights, u)
        value = values.gather(1, at.unsqueeze(1)).squeeze(1)
        figures = (value - self.norm, value - self.shown, torch.minimum(gap, self.close))
        return Choice(ids.gather(1, at.unsqueeze(1)).squeeze(1), torch.stack(figures, dim=1))


def top_k_candidates(
    logits: torch.Tensor, draws: Draws, most: int, vocab: int, ft: bool, group: Comm
) -> Candidates:
    """The k likeliest tokens, of these the nucleus; `most` is the highest k."""
    looks = min(most + 1, vocab)
    values, ids, norm = top_logprobs(logits, looks, group)
    k = draws.k.clamp(max=vocab).unsqueeze(1)
    inside = torch.arange(looks, device=logits.device) < k
    held = values.masked_fill(~inside, -torch.inf)
    weights, close = nucleus(held.softmax(dim=1), draws.p, not ft)
    last, after = values.gather(1, k - 1), values.gather(1, k.clamp(max=looks - 1))
    edge = (last - after).masked_fill(k >= looks, torch.inf).squeeze(1)
    shown = held.logsumexp(dim=1) if ft else norm
    return Candidates(values, ids, weights, norm, shown, torch.minimum(close, edge))


def all_candidates(logits: torch.Tensor, group: Comm) -> Candidates:
    """The whole vocabulary."""
    scores = whole_vocabulary(logits, group)
    norm = scores.logsumexp(dim=1)
    ids = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    close = torch.full_like(norm, torch.inf)
    return Candidates(scores, ids, scores.softmax(dim=1), norm, norm, close, by_id=True)


def nucleus_candidates(
    logits: torch.Tensor, p: torch.Tensor, few: int | None, ft: bool, group: Comm
) -> tuple[Candidates, torch.Tensor]:
    """The likeliest tokens that have p [M] of the mass together, looked for among the `few` (at
    least 2) likeliest or (None) all; and whether these were enough [M]."""
    if few is None:
        scores = whole_vocabulary(logits, group)
        values, ids = scores.sort(dim=1, descending=True, stable=True)
        norm = scores.logsumexp(dim=1)
    else:
        values, ids, norm = top_logprobs(logits, few, group)
    probs = (values - norm.unsqueeze(1)).exp()
    weights, close = nucleus(probs, p, not ft)
    # the nucleus ends before the last of them, so that all of it is here
    enough = torch.ones_like(p).bool() if few is None else probs[:, :-1].sum(dim=1) > p
    return Candidates(values, ids, weights, norm, norm, close), enough


def of_nucleus(logits: torch.Tensor, draws: Draws, vocab: int, ft: bool, group: Comm) -> Choice:
    """A draw from the nucleus. A lane's number of candidates depends on itself alone."""
    if logits.device.type != "cpu":
        return nucleus_candidates(logits, draws.p, None, ft, group)[0].drawn(draws.u)
    ids = torch.zeros(len(logits), dtype=torch.int64)
    figures = torch.zeros(len(logits), 3)
    left = torch.arange(len(logits))
    for few in (*(few for few in FEW if few < vocab), None):
        part = logits if len(left) == len(logits) else logits[left]
        found, enough = nucleus_candidates(part, draws.p[left], few, ft, group)
        choice = found.drawn(draws.u[left])
        ids[left[enough]], figures[left[enough]] = choice.ids[enough], choice.figures[enough]
        left = left[~enough]
        if not len(left):
            break
    return Choice(ids, figures)
