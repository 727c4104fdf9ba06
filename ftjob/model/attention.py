"""Causal attention over packed rows: no padding reaches the linear layers.

`Packing` says where each row lies in the packed axis and which positions are wanted at the end;
`attend` runs the attention itself, group by group of rows of similar length. `decoder` calls it
in every layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ftjob.comm import Comm
from ftjob.model.arch import Arch
from ftjob.model.layers import Kind, Linear, RowLinear, WeightFormat

# Rows share a group while the shortest has at least this share of the longest one's tokens.
FILL = 0.8


@dataclass(frozen=True)
class Group:
    """`rows` rows from packed position `start` to `stop`, seen as [rows, width].

    Rows shorter than `width` are padded on the right, inside attention only: a causal mask hides
    the padding from every true query. `spread` [rows * width] takes packed -> padded, `keep`
    takes padded -> packed; both are None where all rows are `width` long.
    For the wanted positions: `wanted` is their range within the selection, `query_spread`
    [rows * queries] and `query_keep` as above, `mask` [rows, 1, queries, width].
    """

    start: int
    stop: int
    rows: int
    width: int
    spread: torch.Tensor | None
    keep: torch.Tensor | None
    wanted: slice
    query_spread: torch.Tensor
    query_keep: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Packing:
    """Rows behind each other in one axis of N tokens, longest first; M of the N are wanted."""

    positions: torch.Tensor
    wanted: torch.Tensor
    groups: tuple[Group, ...]

    @staticmethod
    def of(lengths: Sequence[int], wanted_from: Sequence[int], device: torch.device) -> Packing:
        """Rows of the given lengths, in falling order; each wants positions wanted_from..end.

        Raises:
            ValueError: where lengths are not in falling order or a row wants nothing.
        """
        if any(a < b for a, b in itertools.pairwise(lengths)):
            raise ValueError("rows must be packed longest first")
        if any(not 0 <= w < n for w, n in zip(wanted_from, lengths, strict=True)):
            raise ValueError("every row must want at least one of its positions")
        groups: list[Group] = []
        row = start = found = 0
        while row < len(lengths):
            end = row
            while end < len(lengths) and lengths[end] >= FILL * lengths[row]:
                end += 1
            group = _group(lengths[row:end], wanted_from[row:end], start, found, device)
            groups.append(group)
            row, start, found = end, group.stop, group.wanted.stop
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
        sizes = torch.tensor(lengths)
        positions = torch.arange(int(sizes.sum())) - starts.repeat_interleave(sizes)
        wanted = (positions >= torch.tensor(wanted_from).repeat_interleave(sizes)).nonzero()
        return Packing(positions.to(device), wanted.squeeze(1).to(device), tuple(groups))


def _group(
    lengths: Sequence[int], wanted_from: Sequence[int], start: int, found: int, device: torch.device
) -> Group:
    sizes = torch.tensor(lengths)
    wants = sizes - torch.tensor(wanted_from)
    width, queries = int(sizes.max()), int(wants.max())
    spread, keep = _padding(sizes, width)
    query_spread, query_keep = _padding(wants, queries)
    at = torch.tensor(wanted_from).unsqueeze(1) + torch.arange(queries)  # [rows, queries]
    mask = torch.arange(width) <= at.unsqueeze(2)  # [rows, queries, width]
    equal = bool((sizes == width).all())
    return Group(
        start,
        start + int(sizes.sum()),
        len(lengths),
        width,
        None if equal else spread.to(device),
        None if equal else keep.to(device),
        slice(found, found + int(wants.sum())),
        query_spread.to(device),
        query_keep.to(device),
        mask.unsqueeze(1).to(device),
    )


def _padding(sizes: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Index packed -> [rows * width] (padding repeats the row's last), and the way back."""
    starts = sizes.cumsum(0) - sizes
    columns = torch.arange(width)
    spread = starts.unsqueeze(1) + torch.minimum(columns, (sizes - 1).unsqueeze(1))
    keep = (columns < sizes.unsqueeze(1)).flatten().nonzero().squeeze(1)
    return spread.flatten(), keep


class Attention(nn.Module):
    """Multi-head self-attention; the heads are cut over the tensor group."""

    def __init__(self, arch: Arch, weights: WeightFormat, kind: Kind, group: Comm) -> None:
        super().__init__()
        self.heads = arch.heads // group.size
        self.head_size = arch.head_size
        self.width = self.heads * self.head_size
        self.qkv = Linear(arch.hidden, 3 * self.width, weights, kind)
        self.out = RowLinear(self.width, arch.hidden, weights, kind, group)

    def forward(self, x: torch.Tensor, packing: Packing, only_wanted: bool) -> torch.Tensor:
        """[N, H] -> [N, H], or [M, H] at the wanted positions alone."""
        if only_wanted:
            kv = self.qkv.columns(x, self.width, 3 * self.width)
            q = self.qkv.columns(x[packing.wanted], 0, self.width)
            parts = [self._wanted(q[g.wanted], kv[g.start : g.stop], g) for g in packing.groups]
        else:
            qkv = self.qkv(x)
            parts = [self._causal(qkv[g.start : g.stop], g) for g in packing.groups]
        y: torch.Tensor = self.out(parts[0] if len(parts) == 1 else torch.cat(parts))
        return y

    def _causal(self, qkv: torch.Tensor, group: Group) -> torch.Tensor:
        """Every position of a group attends to itself and those before it: [n, heads * size]."""
        if group.spread is not None:
            qkv = qkv[group.spread]
        q, k, v = self._split(qkv, group.rows, group.width, 3)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = out.transpose(1, 2).reshape(-1, self.width)
        return out if group.keep is None else out[group.keep]

    def _wanted(self, q: torch.Tensor, kv: torch.Tensor, group: Group) -> torch.Tensor:
        """The wanted positions of a group attend to those before them: [m, heads * size]."""
        if group.spread is not None:
            kv = kv[group.spread]
        k, v = self._split(kv, group.rows, group.width, 2)
        queries = group.mask.shape[2]
        (q,) = self._split(q[group.query_spread], group.rows, queries, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
        return out.transpose(1, 2).reshape(-1, self.width)[group.query_keep]

    def _split(self, x: torch.Tensor, rows: int, width: int, parts: int) -> torch.Tensor:
        """[rows * width, parts * heads * size] -> [parts, rows, heads, width, size]."""
        x = x.view(rows, width, parts, self.heads, self.head_size)
        return x.permute(2, 0, 3, 1, 4)
