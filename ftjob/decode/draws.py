"""Random numbers that depend on what is drawn for and on nothing else, and the draw itself.

Philox-4x32-10 (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3) on whole-number
tensors: the counter is position, lane and row, the key is the seed. No state, so a row's draws are
the same in every batch, slot and layout. `sampling` draws tokens with it.
"""

from __future__ import annotations

import torch

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words = tuple[torch.Tensor, ...]


def philox(counter: Words, key: Words) -> Words:
    """Four words of 32 random bits, from four of counter and two of key; all int64 tensors that
    hold 0 .. 2**32 - 1."""
    a, b, c, d = counter
    k, m = key
    for _ in range(_ROUNDS):
        # a product of 64 bits wraps into the sign: its bits are right, and so is each half
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, c = (second >> 32 & _LOW) ^ b ^ k, (first >> 32 & _LOW) ^ d ^ m
        b, d = second & _LOW, first & _LOW
        k, m = k + _STEPS[0] & _LOW, m + _STEPS[1] & _LOW
    return a, b, c, d


def uniform(
    seed: torch.Tensor, row: torch.Tensor, lane: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """Numbers above 0 and at most 1, float64 [M], from int64 tensors [M]: the row's seed, the hash
    of its content and occurrence, which of its sequences, and the new token's place."""
    counter = (position & _LOW, lane & _LOW, row & _LOW, row >> 32 & _LOW)
    high, low, *_ = philox(counter, (seed & _LOW, seed >> 32 & _LOW))
    return ((high << 21 | low >> 11) + 1).double() * 2.0**-53


def nucleus(
    probs: torch.Tensor, p: torch.Tensor, whole_boundary: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is left of falling probabilities [M, K] under top_p `p` [M]: weights [M, K], and how
    close p was to a place where another token would be kept, [M].

    A token is kept while the mass before it is below p. The last one kept has its whole mass
    (transformers), or only the part below p (FasterTransformer, which draws within p).
    """
    through = probs.cumsum(dim=1)
    before = through - probs
    kept = before < p.unsqueeze(1)
    if whole_boundary:
        weights = probs.where(kept, 0.0)
        inside = (p.unsqueeze(1) - before).masked_fill(~kept, torch.inf)
        outside = (before - p.unsqueeze(1)).masked_fill(kept, torch.inf)
        close = torch.minimum(inside.amin(dim=1), outside.amin(dim=1))
        return weights, close.masked_fill(p >= 1, torch.inf)
    weights = torch.minimum(probs, (p.unsqueeze(1) - before).clamp(min=0))
    return weights, torch.full_like(p, torch.inf)


def draw(weights: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The places [M] at which u [M] falls into weights [M, K], and how close it was to the next
    such place, as a share of all weights [M]. Weights should lie in an order that rounding does not
    change, such as by rising id."""
    through = weights.double().cumsum(dim=1)
    total = through[:, -1:]
    mark = u.unsqueeze(1) * total
    # the place exists, because u is at most 1; its weight is above 0, because u is
    at = (through < mark).sum(dim=1, keepdim=True).clamp(max=weights.shape[1] - 1)
    above = through.gather(1, at)
    below = above - weights.gather(1, at)
    up = (above - mark).masked_fill(above >= total, torch.inf)
    down = (mark - below).masked_fill(below <= 0, torch.inf)
    return at.squeeze(1), (torch.minimum(up, down) / total).squeeze(1).float()
