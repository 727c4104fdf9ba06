"""A pipeline stage of a decoder-only transformer: embedding, its layers, norm and head.

`decode/scoring` runs packed rows through it, `decode/loop` prompts and then steps over the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from ftjob.comm import Comm
from ftjob.model.arch import Arch
from ftjob.model.arrays import Arena, Array
from ftjob.model.attention import Attention, Keep, Sight
from ftjob.model.layers import Mlp, WeightFormat
from ftjob.model.packing import Packing
from ftjob.model.residual import Kind, Residual, make_norm
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
        keep: Callable[[torch.Tensor], None] | None = None,
    ) -> Residual:
        """[N, H] -> [N, H], or [M, H]: after the last layer only the wanted positions matter."""
        residual, normed = self.attention_norm.add(x)
        if only_wanted:
            residual = residual.at(packing.wanted)
        x = self.attention.add_to(residual, normed, packing, only_wanted, keep)
        return self.mlp.add_to(*self.mlp_norm.add(x))

    def step(self, x: Residual, sight: Sight, layer: int) -> Residual:
        """[N, H] -> [N, H]; `layer` is this one's place in the stage."""
        x = self.attention.step(*self.attention_norm.add(x), sight, layer)
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
        """Token ids [N] on the first stage, else the stage before's output [N, H], which may be
        written over.

        Gives [N, H], or on the last stage [M, H] at the wanted positions, normed for `logits`.
        `pulse` is called after each layer, as a sign of life.
        """
        residual = Residual(self.embed(x, packing.positions) if self.first else x)
        for layer in self.stack:
            residual = layer(residual, packing, only_wanted=layer is self.final)
            pulse()
        return self.handed_on(residual)

    def entry(self, ids: Array, lengths: Sequence[int], arena: Arena) -> Entry:
        """Prompts but for their last token."""
        some = [n for n in lengths if n]
        packing, (there,) = Packing.beside([ids], some, [], arena.device, fill=True, arena=arena)
        return Entry(there, packing)

    def enter(
        self, x: torch.Tensor, entry: Entry, keep: Keep, pulse: Callable[[], None]
    ) -> torch.Tensor:
        """Prompts but for their last token, which is the first step's: their keys and values are
        kept, and nobody needs what the last layer makes of them."""
        packing = entry.packing
        assert isinstance(packing, Packing)
        residual = Residual(self.embed(x, packing.positions) if self.first else x)
        for i, layer in enumerate(self.stack):
            if layer is self.final:
                keep(i, layer.attention.keys_values(layer.attention_norm.add(residual)[1]))
            else:
                residual = layer(residual, packing, False, partial(keep, i))
            pulse()
        return x if self.last else residual.total()

    def step(self, x: torch.Tensor, sight: Sight, pulse: Callable[[], None]) -> torch.Tensor:
        """A token of every lane: ids [N] on the first stage, else [N, H], to [N, H]."""
        if self.first:
            x = self.embed(x, sight.positions)
        residual = Residual(x)
        for i, layer in enumerate(self.stack):
            residual = layer.step(residual, sight, i)
            pulse()
        return self.handed_on(residual)
