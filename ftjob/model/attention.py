"""Attention in its four forms: causal over packed rows, both ways over an encoder's rows, over the
cache of decode steps, and from there to the source.

`decoder` and `seq2seq` call it in every layer; `packing` says how rows lie, a `Sight` looks at what
the lanes of a decode step may see, in the way of its device (`decode/lanes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ftjob.comm import Comm
from ftjob.model.arch import Arch
from ftjob.model.layers import Linear, RowLinear, WeightFormat
from ftjob.model.packing import Blocks, Group, Packing, SourcePacking
from ftjob.model.relative import RelativeBias
from ftjob.model.residual import Kind, Residual

# Takes the keys and values [N, 2 * heads * size] that a layer of the stage makes of tokens read.
Keep = Callable[[int, torch.Tensor], None]


class Sight(Protocol):
    """What the lanes of a decode step see: their rows so far and, behind an encoder, its output."""

    @property
    def positions(self) -> torch.Tensor | None:
        """The places [N] of the lanes' tokens in their rows, where the model has such."""

    def biased(self, bias: RelativeBias) -> Sight:
        """The same with the biases of relative positions added to the scores of rows so far."""

    def own(self, layer: int, qkv: torch.Tensor, scale: float) -> torch.Tensor:
        """Keep a layer's keys and values of the step, and look at the rows so far, the step
        included: [N, 3 * heads * size] -> [N, heads * size]."""

    def source(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """Look at the source: [N, heads * size] -> the same."""


class Attention(nn.Module):
    """Multi-head self-attention; the heads are cut over the tensor group."""

    def __init__(self, arch: Arch, weights: WeightFormat, kind: Kind, group: Comm) -> None:
        super().__init__()
        self.heads = arch.heads // group.size
        self.head_size, self.scale = arch.head_size, arch.attention_scale
        self.width = self.heads * self.head_size
        self.qkv = Linear(arch.hidden, 3 * self.width, weights, kind, bias=arch.biases)
        self.out = RowLinear(self.width, arch.hidden, weights, kind, group, bias=arch.biases)

    def add_to(
        self,
        residual: Residual,
        x: torch.Tensor,
        packing: Packing,
        only_wanted: bool,
        keep: Callable[[torch.Tensor], None] | None = None,
    ) -> Residual:
        """residual + causal attention of the normed x: [N, H], or [M, H] at the wanted positions
        alone with the residual already there. `keep` gets the keys and values besides."""
        qkv = self.qkv(x)
        if keep is not None:
            keep(qkv[:, self.width :])
        if packing.blocks is not None:
            assert packing.wanted_blocks is not None
            q = qkv[packing.wanted, : self.width] if only_wanted else qkv[:, : self.width]
            blocks = packing.wanted_blocks if only_wanted else packing.blocks
            return self.out.add_to(residual, self._blockwise(q, qkv, blocks, None))
        attend = self._wanted if only_wanted else self._causal
        parts = [attend(qkv[g.start : g.stop], g) for g in packing.groups]
        return self.out.add_to(residual, parts[0] if len(parts) == 1 else torch.cat(parts))

    def keys_values(self, x: torch.Tensor) -> torch.Tensor:
        """Only the keys and values of the normed x: [N, H] -> [N, 2 * heads * size]."""
        both: torch.Tensor = self.qkv(x)[:, self.width :]
        return both

    def both_ways(
        self,
        residual: Residual,
        x: torch.Tensor,
        packing: SourcePacking,
        masks: list[torch.Tensor],
    ) -> Residual:
        """residual + attention of the normed x over whole rows: [N, H]. `masks` has for each group
        what is added to its scores, [1, heads, width, width]; for blocks, alone, the biases of all
        distances, [heads, 2 * reach + 1]."""
        qkv = self.qkv(x)
        if packing.blocks is not None:
            out = self._blockwise(qkv[:, : self.width], qkv, packing.blocks, masks[0])
            return self.out.add_to(residual, out)
        parts = []
        for g, mask in zip(packing.groups, masks, strict=True):
            q, k, v = self._split(qkv[g.start : g.stop], g.rows, g.width, 3)
            mask = mask.to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
            parts.append(out.transpose(1, 2).reshape(-1, self.width))
        return self.out.add_to(residual, parts[0] if len(parts) == 1 else torch.cat(parts))

    def step(self, residual: Residual, x: torch.Tensor, sight: Sight, layer: int) -> Residual:
        """residual + attention of a decode step over the rows so far, which get its keys and
        values first; `layer` is this one's place in the stage: [N, H]."""
        return self.out.add_to(residual, sight.own(layer, self.qkv(x), self.scale))

    def _blockwise(
        self, q: torch.Tensor, qkv: torch.Tensor, blocks: Blocks, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The GPU's kernel; causal where there is no bias."""
        # imported here because a machine without a GPU may be without triton
        from ftjob.kernels.packed_attention import packed_attention

        kv, causal = qkv[:, self.width :], bias is None
        return packed_attention(
            q, kv, blocks, self.heads, causal=causal, scale=self.scale, bias=bias
        )

    def _causal(self, qkv: torch.Tensor, group: Group) -> torch.Tensor:
        """Every position of a group attends to itself and those before it: [n, heads * size]."""
        if group.spread is not None:
            qkv = qkv[group.spread]
        q, k, v = self._split(qkv, group.rows, group.width, 3)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = out.transpose(1, 2).reshape(-1, self.width)
        return out if group.keep is None else out[group.keep]

    def _wanted(self, qkv: torch.Tensor, group: Group) -> torch.Tensor:
        """The wanted positions of a group attend to those before them: [m, heads * size]."""
        q = qkv[group.queries, : self.width]
        if group.spread is not None:
            qkv = qkv[group.spread]
        _, k, v = self._split(qkv, group.rows, group.width, 3)
        (q,) = self._split(q, group.rows, group.mask.shape[2], 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
        return out.transpose(1, 2).reshape(-1, self.width)[group.query_keep]

    def _split(self, x: torch.Tensor, rows: int, width: int, parts: int) -> torch.Tensor:
        """[rows * width, parts * heads * size] -> [parts, rows, heads, width, size]."""
        x = x.view(rows, width, parts, self.heads, self.head_size)
        return x.permute(2, 0, 3, 1, 4)


class CrossAttention(nn.Module):
    """Attention from decode steps to the encoder's output; its keys and values are made once a
    source."""

    def __init__(self, arch: Arch, weights: WeightFormat, kind: Kind, group: Comm) -> None:
        super().__init__()
        width = arch.heads // group.size * arch.head_size
        self.scale = arch.attention_scale
        self.q = Linear(arch.hidden, width, weights, kind, bias=arch.biases)
        self.kv = Linear(arch.hidden, 2 * width, weights, kind, bias=arch.biases)
        self.out = RowLinear(width, arch.hidden, weights, kind, group, bias=arch.biases)

    def step(self, residual: Residual, x: torch.Tensor, sight: Sight, layer: int) -> Residual:
        """residual + attention of the normed x over the source: [N, H]."""
        return self.out.add_to(residual, sight.source(layer, self.q(x), self.scale))
