"""What a step of the lanes sees on a CPU: the cache of each cohort through plain products.

`cache` makes a `StepView` of each cohort, `lanes` puts them together for the stage's layers. On a
GPU `pool` does the same for all rows at once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ftjob.model.relative import RelativeBias

# A softmax over fewer numbers than this takes them one by one (`eval/bench/cpu_parts`).
VECTOR = 16


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


class CohortsSight:
    """The `Sight` of lanes of several cohorts, view after view."""

    def __init__(self, views: Sequence[StepView]) -> None:
        ends = list(itertools.accumulate(view.rows * view.lanes for view in views))
        starts = [0, *ends[:-1]]
        self._parts = list(zip(map(slice, starts, ends), views, strict=True))

    @property
    def positions(self) -> torch.Tensor | None:
        """See `Sight`."""
        places = [view.positions for _, view in self._parts if view.positions is not None]
        return torch.cat(places) if places else None

    def biased(self, bias: RelativeBias) -> CohortsSight:
        """See `Sight`."""
        return CohortsSight([_biased(view, bias) for _, view in self._parts])

    def own(self, layer: int, qkv: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Sight`."""
        parts, width = [], qkv.shape[1] // 3
        for lanes, view in self._parts:
            kept, part = view.kept[layer], qkv[lanes]
            kept.put_step(view, part[:, width:])
            parts.append(look(part[:, :width], kept, view.rows, view.keys, view.mask, scale))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def source(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Sight`."""
        parts = []
        for lanes, view in self._parts:
            across = view.across[layer]
            columns = across.both.shape[3]
            parts.append(look(q[lanes], across, view.rows, columns, view.sources, scale))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


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
    weights = weights_of(scores).to(v.dtype).flatten(0, 1)
    out = torch.bmm(weights, v).view(rows, heads, lanes, size)
    return out.transpose(1, 2).reshape(-1, heads * size)


def weights_of(scores: torch.Tensor) -> torch.Tensor:
    """The softmax of scores [..., keys] over keys."""
    keys = scores.shape[-1]
    if keys < VECTOR:
        scores = F.pad(scores, (0, VECTOR - keys), value=-torch.inf)
    return scores.softmax(dim=-1)[..., :keys]


def _biased(view: StepView, bias: RelativeBias) -> StepView:
    """The view with the biases of relative positions in its mask."""
    assert view.distances is not None
    added: torch.Tensor = bias(-view.distances)  # [keys, heads]
    added = added.t()[None, :, None]  # [1, heads, 1, keys]
    return dataclasses.replace(view, mask=added if view.mask is None else view.mask + added)
