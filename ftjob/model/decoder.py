"""A pipeline stage of a decoder-only transformer: embedding, its layers, norm and head.

`decode/scoring` runs packed rows through it, `decode/loop` prompts and then steps over the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from ftjob.comm import Comm
from ftjob.model.arch import Arch
from ftjob.model.attention import Attention, Kept, StepView
from ftjob.model.layers import Kind, Mlp, Residual, WeightFormat, make_norm
from ftjob.model.packing import Packing
from ftjob.model.stage import Entry, Part, Stage


class Layer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual."""

    def __init__(self, arch: Arch, weights: WeightFormat, kind: Kind, group: Comm) -> None:
        super().__init__()
        self.attention_norm = make_norm(arch, kind)
        self.attention = Attention(arch, weights, kind, group)
        self.mlp_norm = make_norm(arch, kind)
        self.mlp = Mlp(arch, weights, kind, group)

    def forward(
        self,
        x: Residual,
        packing: Packing,
        only_wanted: bool,
        kept: tuple[Kept, torch.Tensor] | None = None,
    ) -> Residual:
        """[N, H] -> [N, H], or [M, H]: after the last layer only the wanted positions matter."""
        residual, normed = self.attention_norm.add(x)
        if only_wanted:
            residual = residual[packing.wanted]
        x = self.attention.add_to(residual, normed, packing, only_wanted, kept)
        return self.mlp.add_to(*self.mlp_norm.add(x))

    def step(self, x: Residual, views: Sequence[StepView], layer: int) -> Residual:
        """[N, H] -> [N, H], over the cache of this layer of the stage."""
        x = self.attention.step(*self.attention_norm.add(x), views, layer)
        return self.mlp.add_to(*self.mlp_norm.add(x))


class DecoderStage(Stage):
    """The layers of `part`, the embedding on the first stage, norm and head on the last."""

    def __init__(
        self, arch: Arch, part: Part, weights: WeightFormat, kind: Kind, group: Comm
    ) -> None:
        super().__init__(arch, part, kind, group)
        self.stack = [Layer(arch, weights, kind, group) for _ in part.layers]
        names = map(str, part.layers)
        self.layers = nn.ModuleDict(dict(zip(names, self.stack, strict=True)))
        self.final = self.stack[-1] if part.last else None

    def forward(self, x: torch.Tensor, packing: Packing, pulse: Callable[[], None]) -> torch.Tensor:
        """Token ids [N] on the first stage, else the stage before's output [N, H].

        Gives [N, H], or on the last stage [M, H] at the wanted positions, normed for `logits`.
        `pulse` is called after each layer, as a sign of life.
        """
        residual = Residual(self.embed(x, packing.positions) if self.first else x)
        for layer in self.stack:
            residual = layer(residual, packing, only_wanted=layer is self.final)
            pulse()
        return self.handed_on(residual)

    def enter(
        self, x: torch.Tensor, entry: Entry, kept: Sequence[Kept], pulse: Callable[[], None]
    ) -> torch.Tensor:
        """Prompts but for their last token, which is the first step's: the cache gets their keys
        and values, and nobody needs what the last layer makes of them."""
        lengths = [n for n in entry.lengths if n]
        numbers = np.repeat(np.arange(len(lengths)), lengths)
        wanted = [n - 1 for n in lengths]
        packing, (rows,) = Packing.beside([numbers], lengths, wanted, x.device, fill=False)
        residual = Residual(self.embed(x, packing.positions) if self.first else x)
        for layer, own in zip(self.stack, kept, strict=True):
            if layer is self.final:
                _, normed = layer.attention_norm.add(residual)
                layer.attention.keep(normed, packing, (own, rows))
            else:
                residual = layer(residual, packing, False, (own, rows))
            pulse()
        return residual.total()

    def step(
        self,
        x: torch.Tensor,
        views: Sequence[StepView],
        pulse: Callable[[], None],
    ) -> torch.Tensor:
        """A token of every lane: ids [N] on the first stage, else [N, H], to [N, H]."""
        if self.first:
            places = [v.positions for v in views if v.positions is not None]
            x = self.embed(x, torch.cat(places) if places else None)
        residual = Residual(x)
        for i, layer in enumerate(self.stack):
            residual = layer.step(residual, views, i)
            pulse()
        return self.handed_on(residual)
