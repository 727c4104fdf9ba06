"""Attention in its four forms: causal over packed rows, both ways over an encoder's rows, over the
cache of decode steps, and from there to the source.

`decoder` and `seq2seq` call it in every layer; `packing` says how rows lie, `StepView` what a step
of the cache may see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ftjob.comm import Comm
from ftjob.model.arch import Arch
from ftjob.model.layers import Kind, Linear, Residual, RowLinear, WeightFormat
from ftjob.model.packing import Blocks, Group, Packing, SourcePacking


@dataclass(frozen=True)
class Kept:
    """Keys and values of one layer: [2, rows, heads, columns, size]."""

    both: torch.Tensor

    def put(self, rows: torch.Tensor, columns: torch.Tensor, kv: torch.Tensor) -> None:
        """Keep [M, 2 * heads * size] at (rows [M], columns [M])."""
        _, _, heads, _, size = self.both.shape
        self.both[:, rows, :, columns] = kv.reshape(-1, 2, heads, size)

    def put_step(self, view: StepView, kv: torch.Tensor) -> None:
        """Keep a step's [n * lanes, 2 * heads * size] in the columns of that step."""
        _, _, heads, _, size = self.both.shape
        new = kv.view(view.rows, view.lanes, 2, heads, size).permute(2, 0, 3, 1, 4)
        self.both[:, : view.rows, :, view.column : view.keys] = new


@dataclass(frozen=True)
class StepView:
    """What a decode step of `rows` rows, of so many lanes each, sees of their cache.

    Of the first `keys` columns those from `column` on are its own, one a lane. `positions`
    [rows * lanes] are the lanes' places in their rows, where the model has such. `mask`
    [rows or 1, 1 or heads, lanes or 1, keys] f32 is added to the scores: -inf where a lane must not
    look. `distances` [keys] counts steps back to each column. `sources` [rows, 1, 1, source] is the
    mask of the source. Without a mask all is seen. `kept` and `across` have a `Kept` for each layer
    of the stage, of the row so far and of the source.
    """

    rows: int
    lanes: int
    column: int
    keys: int
    positions: torch.Tensor | None
    mask: torch.Tensor | None
    distances: torch.Tensor | None
    sources: torch.Tensor | None
    kept: Sequence[Kept]
    across: Sequence[Kept]


def look(
    q: torch.Tensor, kept: Kept, rows: int, keys: int, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """A few queries a row over the first `keys` columns: q [n * lanes, heads * size] -> the same.

    Plain products: for one query over few keys torch's fused attention is slower on a CPU, and for
    more it is no faster (`eval/bench/cpu_parts`).
    """
    _, _, heads, _, size = kept.both.shape
    k, v = kept.both[:, :rows, :, :keys].flatten(1, 2).unbind(0)  # [n * heads, keys, size]
    q = (q if scale == 1.0 else q * scale).view(rows, -1, heads, size).transpose(1, 2)
    lanes = q.shape[2]
    scores = torch.bmm(q.reshape(-1, lanes, size), k.transpose(1, 2)).float()
    scores = scores.view(rows, heads, lanes, keys)
    if mask is not None:
        scores.add_(mask)
    weights = scores.softmax(dim=-1).to(v.dtype).flatten(0, 1)
    out = torch.bmm(weights, v).view(rows, heads, lanes, size)
    return out.transpose(1, 2).reshape(-1, heads * size)


def _split_by(x: torch.Tensor, views: Sequence[StepView]) -> tuple[torch.Tensor, ...]:
    """[N, ...] -> the lanes of each view."""
    return torch.split(x, [view.rows * view.lanes for view in views])


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
        residual: torch.Tensor,
        x: torch.Tensor,
        packing: Packing,
        only_wanted: bool,
        kept: tuple[Kept, torch.Tensor] | None = None,
    ) -> Residual:
        """residual + causal attention of the normed x: [N, H], or [M, H] at the wanted positions
        alone with the residual already there. Keys and values are `kept` besides, at the rows [N]
        of their tokens."""
        qkv = self.qkv(x)
        if kept is not None:
            kept[0].put(kept[1], packing.positions, qkv[:, self.width :])
        if packing.blocks is not None:
            assert packing.wanted_blocks is not None
            q = qkv[packing.wanted, : self.width] if only_wanted else qkv[:, : self.width]
            blocks = packing.wanted_blocks if only_wanted else packing.blocks
            return self.out.add_to(residual, self._blockwise(q, qkv, blocks, None))
        attend = self._wanted if only_wanted else self._causal
        parts = [attend(qkv[g.start : g.stop], g) for g in packing.groups]
        return self.out.add_to(residual, parts[0] if len(parts) == 1 else torch.cat(parts))

    def keep(self, x: torch.Tensor, packing: Packing, kept: tuple[Kept, torch.Tensor]) -> None:
        """Only keep keys and values of the normed x [N, H]."""
        kept[0].put(kept[1], packing.positions, self.qkv(x)[:, self.width :])

    def both_ways(
        self,
        residual: torch.Tensor,
        x: torch.Tensor,
        packing: SourcePacking,
        masks: list[torch.Tensor],
    ) -> Residual:
        """residual + attention of the normed x over whole rows: [N, H]. `masks` has for each group
        what is added to its scores, [1 or rows, heads, width, width]; for blocks, alone, the
        biases of all distances, [heads, 2 * reach + 1]."""
        qkv = self.qkv(x)
        if packing.blocks is not None:
            out = self._blockwise(qkv[:, : self.width], qkv, packing.blocks, masks[0])
            return self.out.add_to(residual, out)
        parts = []
        for g, mask in zip(packing.groups, masks, strict=True):
            own = qkv[g.start : g.stop]
            own = own if g.spread is None else own[g.spread]
            q, k, v = self._split(own, g.rows, g.width, 3)
            mask = mask.to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
            out = out.transpose(1, 2).reshape(-1, self.width)
            parts.append(out if g.keep is None else out[g.keep])
        return self.out.add_to(residual, parts[0] if len(parts) == 1 else torch.cat(parts))

    def step(
        self, residual: torch.Tensor, x: torch.Tensor, views: Sequence[StepView], layer: int
    ) -> Residual:
        """residual + attention of a decode step over the cache of this layer of the stage, which
        gets its keys and values first: [N, H], the lanes of one view after the other's."""
        qkv = self.qkv(x)
        parts = []
        for own, view in zip(_split_by(qkv, views), views, strict=True):
            kept = view.kept[layer]
            kept.put_step(view, own[:, self.width :])
            q = own[:, : self.width]
            parts.append(look(q, kept, view.rows, view.keys, view.mask, self.scale))
        return self.out.add_to(residual, parts[0] if len(parts) == 1 else torch.cat(parts))

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

    def keep(
        self, encoded: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, kept: Kept
    ) -> None:
        """Keep keys and values of the encoder's output [N, H] at (rows [N], positions [N])."""
        kept.put(rows, positions, self.kv(encoded))

    def step(
        self, residual: torch.Tensor, x: torch.Tensor, views: Sequence[StepView], layer: int
    ) -> Residual:
        """residual + attention of the normed x over the source: [N, H]."""
        parts = []
        for q, view in zip(_split_by(self.q(x), views), views, strict=True):
            across = view.across[layer]
            columns = across.both.shape[3]
            parts.append(look(q, across, view.rows, columns, view.sources, self.scale))
        return self.out.add_to(residual, parts[0] if len(parts) == 1 else torch.cat(parts))
