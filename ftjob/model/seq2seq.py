"""A pipeline stage of an encoder-decoder transformer: layers of the encoder and of the decoder.

Every stage has its share of both, so that all work while sources are read and while tokens are
made. The last one norms the encoder's output, which then goes to all of them. `decode/loop` runs
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ftjob.comm import Comm
from ftjob.model.arch import Arch
from ftjob.model.arrays import Arena, Array
from ftjob.model.attention import Attention, CrossAttention, Keep, Sight
from ftjob.model.layers import Mlp, WeightFormat
from ftjob.model.packing import SourcePacking
from ftjob.model.relative import RelativeBias
from ftjob.model.residual import Kind, Residual, make_norm
from ftjob.model.stage import Entry, Part, Stage


class EncoderLayer(nn.Module):
    """Pre-norm attention over the whole source, and MLP, each added to the residual."""

    def __init__(self, arch: Arch, weights: WeightFormat, kind: Kind, group: Comm) -> None:
        super().__init__()
        self.attention_norm = make_norm(arch, kind)
        self.attention = Attention(arch, weights, kind, group)
        self.mlp_norm = make_norm(arch, kind)
        self.mlp = Mlp(arch, weights, kind, group)

    def forward(self, x: Residual, packing: SourcePacking, masks: list[torch.Tensor]) -> Residual:
        """[N, H] -> [N, H]."""
        x = self.attention.both_ways(*self.attention_norm.add(x), packing, masks)
        return self.mlp.add_to(*self.mlp_norm.add(x))


class DecoderLayer(nn.Module):
    """Pre-norm attention over the row so far, over the source, and MLP."""

    def __init__(self, arch: Arch, weights: WeightFormat, kind: Kind, group: Comm) -> None:
        super().__init__()
        self.attention_norm = make_norm(arch, kind)
        self.attention = Attention(arch, weights, kind, group)
        self.cross_norm = make_norm(arch, kind)
        self.cross = CrossAttention(arch, weights, kind, group)
        self.mlp_norm = make_norm(arch, kind)
        self.mlp = Mlp(arch, weights, kind, group)

    def step(self, x: Residual, sight: Sight, layer: int) -> Residual:
        """[N, H] -> [N, H]; `layer` is this one's place in the stage."""
        x = self.attention.step(*self.attention_norm.add(x), sight, layer)
        x = self.cross.step(*self.cross_norm.add(x), sight, layer)
        return self.mlp.add_to(*self.mlp_norm.add(x))


class Seq2SeqStage(Stage):
    """The encoder and decoder layers of `part`, the shared embedding on the first stage, both
    final norms and the head on the last."""

    def __init__(
        self, arch: Arch, part: Part, weights: WeightFormat, kind: Kind, group: Comm
    ) -> None:
        super().__init__(arch, part, kind, group)
        self.encoder_bias = RelativeBias(arch, True, kind, group)
        self.decoder_bias = RelativeBias(arch, False, kind, group)
        self.readers = [EncoderLayer(arch, weights, kind, group) for _ in part.encoder]
        self.stack = [DecoderLayer(arch, weights, kind, group) for _ in part.layers]
        self.encoder = nn.ModuleDict(
            {str(i): layer for i, layer in zip(part.encoder, self.readers, strict=True)}
        )
        self.layers = nn.ModuleDict(
            {str(i): layer for i, layer in zip(part.layers, self.stack, strict=True)}
        )
        if part.last:
            self.encoder_norm = make_norm(arch, kind)

    def entry(self, ids: Array, lengths: Sequence[int], arena: Arena) -> Entry:
        """Sources."""
        packing, there = SourcePacking.beside(ids, lengths, arena.device, arena)
        return Entry(there, packing)

    def enter(
        self, x: torch.Tensor, entry: Entry, keep: Keep, pulse: Callable[[], None]
    ) -> torch.Tensor:
        """Sources through the encoder: [N, H], on the last stage normed for `admit`."""
        packing = entry.packing
        assert isinstance(packing, SourcePacking)
        masks = self._masks(packing, x.device)
        residual = Residual(self.embed(x, packing.positions) if self.first else x)
        for layer in self.readers:
            residual = layer(residual, packing, masks)
            pulse()
        return self.encoder_norm.add(residual)[1] if self.last else residual.total()

    def _masks(self, packing: SourcePacking, device: torch.device) -> list[torch.Tensor]:
        """The biases that the scores get, as `Attention.both_ways` takes them."""
        if packing.blocks is not None:
            return [self.encoder_bias.by_head]
        places = torch.arange(packing.groups[0].width, device=device)  # of the longest
        bias: torch.Tensor = self.encoder_bias(places - places.unsqueeze(1))  # [query, key, heads]
        bias = bias.permute(2, 0, 1).contiguous().unsqueeze(0)  # [1, heads, query, key]
        return [bias[:, :, : g.width, : g.width] for g in packing.groups]

    def admit(self, encoded: torch.Tensor, keep: Keep) -> None:
        """Every decoder layer's keys and values of the sources, once."""
        for i, layer in enumerate(self.stack):
            keep(i, layer.cross.kv(encoded))

    def step(self, x: torch.Tensor, sight: Sight, pulse: Callable[[], None]) -> torch.Tensor:
        """A token of every lane: ids [N] on the first stage, else [N, H], to [N, H]."""
        if self.first:
            x = self.embed(x, None)
        sight = sight.biased(self.decoder_bias)
        residual = Residual(x)
        for i, layer in enumerate(self.stack):
            residual = layer.step(residual, sight, i)
            pulse()
        return self.handed_on(residual)
