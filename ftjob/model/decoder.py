"""A pipeline stage of a decoder-only transformer: embedding, its layers, norm and head.

Knows its layers and its `Comm`, never its rank. `device` builds and fills it; `decode/scoring`
runs batches through it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ftjob.comm import Comm
from ftjob.model.arch import Arch
from ftjob.model.attention import Attention, Packing
from ftjob.model.layers import Embedding, Kind, LayerNorm, Linear, Mlp, WeightFormat, parameter


class Layer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual."""

    def __init__(self, arch: Arch, weights: WeightFormat, kind: Kind, group: Comm) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(arch.hidden, arch.norm_eps, kind)
        self.attention = Attention(arch, weights, kind, group)
        self.mlp_norm = LayerNorm(arch.hidden, arch.norm_eps, kind)
        self.mlp = Mlp(arch, weights, kind, group)

    def forward(self, x: torch.Tensor, packing: Packing, only_wanted: bool) -> torch.Tensor:
        """[N, H] -> [N, H], or [M, H]: after the last layer only the wanted positions matter."""
        residual = x[packing.wanted] if only_wanted else x
        x = self.attention.add_to(residual, self.attention_norm(x), packing, only_wanted)
        return self.mlp.add_to(x, self.mlp_norm(x))


class Stage(nn.Module):
    """The part of the decoder that one device holds: the layers of `span`, the embedding if it
    is the `first` stage, the head if it is the `last`."""

    def __init__(
        self,
        arch: Arch,
        span: range,
        weights: WeightFormat,
        kind: Kind,
        group: Comm,
        *,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.arch, self.group, self.first, self.last = arch, group, first, last
        if first:
            self.embed = Embedding(arch, kind, group)
        self.layers = nn.ModuleDict({str(i): Layer(arch, weights, kind, group) for i in span})
        self.final = str(span[-1]) if last else None
        if last:
            self.norm = LayerNorm(arch.hidden, arch.norm_eps, kind)
            if not (arch.tied_head and first):
                rows = -(-arch.vocab // group.size)
                self.head = parameter(rows, arch.hidden, dtype=kind[0], device=kind[1])

    @property
    def head_weight(self) -> torch.Tensor:
        """This device's part of the head, [V/T, H]: the embedding's where both are here."""
        return self.embed.tokens if self.arch.tied_head and self.first else self.head

    def room(self, name: str) -> torch.Tensor:
        """Where a tensor of the stream goes: the parameter `name` itself, to be filled in place.

        A linear layer makes its weight out of what it is given: there it is a tensor without
        memory (on "meta") of the shape and dtype that `fill` wants.
        """
        owner = self.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, Linear) and name.endswith(".weight"):
            return owner.wanted_weight()
        return self.get_parameter(name)

    def fill(self, name: str, part: torch.Tensor, cuts_input: bool) -> None:
        """Put a cut tensor into the parameter `name`; one that is there already stays.

        Raises:
            ValueError: where the shapes differ (a wrong rule, so a bug of ours).
        """
        target = self.get_parameter(name)
        if target.shape != part.shape:
            raise ValueError(f"{name}: holds {list(target.shape)}, was given {list(part.shape)}")
        owner = self.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, Linear) and name.endswith(".weight"):
            owner.set_weight(part, self.group if cuts_input else None)
        elif part is not target:
            target.copy_(part)

    def forward(self, x: torch.Tensor, packing: Packing, pulse: Callable[[], None]) -> torch.Tensor:
        """Token ids [N] on the first stage, else the stage before's output [N, H].

        Gives [N, H], or on the last stage [M, H] at the wanted positions, normed for `logits`.
        `pulse` is called after each layer, as a sign of life.
        """
        if self.first:
            x = self.embed(x, packing.positions)
        for number, layer in self.layers.items():
            x = layer(x, packing, only_wanted=number == self.final)
            pulse()
        return self.norm(x) if self.last else x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[M, H] -> f32 [M, V/T]: this device's part of the vocabulary, padding at -inf."""
        scores = F.linear(x, self.head_weight).float()
        rows = scores.shape[1]
        true = self.arch.vocab - self.group.rank * rows
        if true < rows:
            scores[:, max(0, true) :] = -torch.inf
        return scores
