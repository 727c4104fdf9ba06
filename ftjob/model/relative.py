"""T5's relative positions: a learned bias a head and bucket of distances, added to the scores.

A stack's layers share one table. `seq2seq` adds the biases to the masks of its attention.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ftjob.comm import Comm
from ftjob.model.arch import Arch
from ftjob.model.residual import Kind, parameter


def buckets_of(
    relative: torch.Tensor, both_ways: bool, buckets: int, max_distance: int
) -> torch.Tensor:
    """The bucket of key position - query position, int64, from 0 to buckets - 1.

    Half of the buckets (of each direction) are single distances, the others grow with the
    logarithm up to `max_distance`. Source: Raffel et al. 2020, section 2.1, and the published T5
    code (Mesh TensorFlow, _relative_position_bucket); in float32 as there, so that the edges agree.
    """
    first = torch.zeros_like(relative)
    if both_ways:
        buckets //= 2
        first = (relative > 0).to(torch.int64) * buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    growth = torch.log(distance.float() / exact) / math.log(max_distance / exact)
    far = exact + (growth.clamp(min=0) * (buckets - exact)).to(torch.int64)
    return first + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


class RelativeBias(nn.Module):
    """The table of one stack, [buckets, heads / T]."""

    def __init__(self, arch: Arch, both_ways: bool, kind: Kind, group: Comm) -> None:
        super().__init__()
        assert arch.relative is not None
        sizes = arch.relative
        heads = arch.heads // group.size
        self.reach = sizes.max_distance
        self.table = parameter(sizes.buckets, heads, dtype=kind[0], device=kind[1])
        every = torch.arange(-self.reach, self.reach + 1)
        found = buckets_of(every, both_ways, sizes.buckets, sizes.max_distance)
        self.buckets = found.to(kind[1])
        self._by_head: torch.Tensor | None = None

    def forward(self, relative: torch.Tensor) -> torch.Tensor:
        """The f32 biases of key - query distances: int64 [...] -> [..., heads / T]. Beyond
        `max_distance` all are alike."""
        found = self.buckets[relative.clamp(-self.reach, self.reach) + self.reach]
        return F.embedding(found, self.table).float()

    @property
    def by_head(self) -> torch.Tensor:
        """The f32 biases of the distances -`max_distance` to it: [heads / T, 2 * reach + 1]. Made
        once, when the table is filled: every decode step looks at them."""
        if self._by_head is None:
            self._by_head = F.embedding(self.buckets, self.table).float().t().contiguous()
        return self._by_head
