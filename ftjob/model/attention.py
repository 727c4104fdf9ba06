"""Attention in its four forms: causal over packed rows, both ways over an encoder's rows, over the
cache of decode steps, and from there to the source.

`decoder` and `seq2seq` call it in every layer; `packing` says how rows lie, `StepView` what a step
of the cache may see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ftjob.comm import Comm
from ftjob.model.arch import Arch
from ftjob.model.layers import Kind, Linear, RowLinear, WeightFormat
from ftjob.model.packing import Group, Packing, SourcePacking


@dataclass(frozen=True)
class Kept:
    """Keys and values of one layer, each [slots, heads, capacity, size]."""

    keys: torch.Tensor
    values: torch.Tensor

    def put(self, slots: torch.Tensor, columns: torch.Tensor, kv: torch.Tensor) -> None:
        """Keep [M, 2 * heads * size] at (slots [M], columns [M])."""
        heads, size = self.keys.shape[1], self.keys.shape[3]
        keys, values = kv.view(-1, 2, heads, size).unbind(1)
        self.keys[slots, :, columns] = keys
        self.values[slots, :, columns] = values


@dataclass(frozen=True)
class StepView:
    """What a decode step sees of the cache: the first `rows` slots of W lanes each.

    `slots`, `columns` [rows * W] are where each lane's new key goes, `positions` [rows * W] its
    place in the row. `mask` [rows, 1, W, keys] f32 is -inf where a lane must not look, `distances`
    [rows, keys] counts tokens back to each key. `sources` [rows, 1, 1, source] is the mask of the
    source, behind an encoder.
    """

    rows: int
    beams: int
    slots: torch.Tensor
    columns: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    distances: torch.Tensor
    sources: torch.Tensor | None


def look(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """A few queries a row over many keys: q [n * W, heads * size], keys and values
    [n, heads, K, size], mask [n, 1 or heads, W or 1, K] -> [n * W, heads * size].

    Plain products: on a CPU torch's fused attention takes 1.2 to 2.6 times as long for 1 to 4
    queries, and here beams share the keys of their row.
    """
    rows, heads, _, size = keys.shape
    q = (q if scale == 1.0 else q * scale).view(rows, -1, heads, size).transpose(1, 2)
    scores = torch.matmul(q, keys.transpose(2, 3)).float()  # [n, heads, W, K]
    weights = scores.add_(mask).softmax(dim=-1).to(values.dtype)
    return torch.matmul(weights, values).transpose(1, 2).reshape(-1, heads * size)


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
    ) -> torch.Tensor:
        """residual + causal attention of the normed x: [N, H], or [M, H] at the wanted positions
        alone with the residual already there. Keys and values are `kept` besides, at the slots [N]
        of their tokens."""
        qkv = self.qkv(x)
        if kept is not None:
            kept[0].put(kept[1], packing.positions, qkv[:, self.width :])
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
    ) -> torch.Tensor:
        """residual + attention of the normed x over whole rows: [N, H]. `masks` has for each group
        what is added to its scores, [1 or rows, heads, width, width]."""
        qkv = self.qkv(x)
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
        self, residual: torch.Tensor, x: torch.Tensor, view: StepView, kept: Kept
    ) -> torch.Tensor:
        """residual + attention of a decode step over the cache, which gets its keys and values
        first: [n * W, H]."""
        qkv = self.qkv(x)
        kept.put(view.slots, view.columns, qkv[:, self.width :])
        seen = view.mask.shape[3]
        keys, values = (t[: view.rows, :, :seen] for t in (kept.keys, kept.values))
        return self.out.add_to(
            residual, look(qkv[:, : self.width], keys, values, view.mask, self.scale)
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
        self, encoded: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, kept: Kept
    ) -> None:
        """Keep keys and values of the encoder's output [N, H] at (slots [N], positions [N])."""
        kept.put(slots, positions, self.kv(encoded))

    def step(
        self, residual: torch.Tensor, x: torch.Tensor, view: StepView, kept: Kept
    ) -> torch.Tensor:
        """residual + attention of the normed x over the source: [n * W, H]."""
        assert view.sources is not None
        seen = view.sources.shape[3]
        keys, values = (t[: view.rows, :, :seen] for t in (kept.keys, kept.values))
        return self.out.add_to(residual, look(self.q(x), keys, values, view.sources, self.scale))
