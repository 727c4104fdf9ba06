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
    For the wanted positions: `queries` [rows * most wanted] are their places in the group, padded
    likewise, `query_keep` takes padded -> wanted, `mask` is [rows, 1, most wanted, width].
    """

    start: int
    stop: int
    rows: int
    width: int
    spread: torch.Tensor | None
    keep: torch.Tensor | None
    queries: torch.Tensor
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
        row = start = 0
        while row < len(lengths):
            end = row
            while end < len(lengths) and lengths[end] >= FILL * lengths[row]:
                end += 1
            groups.append(_group(lengths[row:end], wanted_from[row:end], start, device))
            row, start = end, groups[-1].stop
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
        sizes = torch.tensor(lengths)
        positions = torch.arange(int(sizes.sum())) - starts.repeat_interleave(sizes)
        wanted = (positions >= torch.tensor(wanted_from).repeat_interleave(sizes)).nonzero()
        return Packing(positions.to(device), wanted.squeeze(1).to(device), tuple(groups))


def _group(
    lengths: Sequence[int], wanted_from: Sequence[int], start: int, device: torch.device
) -> Group:
    sizes = torch.tensor(lengths)
    first = torch.tensor(wanted_from)
    width = int(sizes.max())
    spread, keep = _padding(sizes, width, 0 * sizes)
    queries, query_keep = _padding(sizes, int((sizes - first).max()), first)
    at = first.unsqueeze(1) + torch.arange(len(queries) // len(lengths))  # [rows, queries]
    mask = torch.arange(width) <= at.unsqueeze(2)  # [rows, queries, width]
    equal = bool((sizes == width).all())
    return Group(
        start,
        start + int(sizes.sum()),
        len(lengths),
        width,
        None if equal else spread.to(device),
        None if equal else keep.to(device),
        queries.to(device),
        query_keep.to(device),
        mask.unsqueeze(1).to(device),
    )


def _padding(
    sizes: torch.Tensor, width: int, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index packed -> [rows * width] of each row's positions from `first` on (padding repeats the
    row's last), and the way back."""
    starts = sizes.cumsum(0) - sizes
    columns = first.unsqueeze(1) + torch.arange(width)
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

    def add_to(
        self, residual: torch.Tensor, x: torch.Tensor, packing: Packing, only_wanted: bool
    ) -> torch.Tensor:
        """residual + attention of the normed x: [N, H], or [M, H] at the wanted positions alone
        with the residual already there."""
        qkv = self.qkv(x)
        attend = self._wanted if only_wanted else self._causal
        parts = [attend(qkv[g.start : g.stop], g) for g in packing.groups]
        return self.out.add_to(residual, parts[0] if len(parts) == 1 else torch.cat(parts))

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
