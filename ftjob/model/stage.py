"""What every pipeline stage is: parameters to be filled, a head, and steps over the cache.

`decoder` and `seq2seq` derive the two kinds of models from it; `make_stage` chooses. A stage knows
its layers and its `Comm`, never its rank. `device` builds and fills it, `decode` runs batches
through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ftjob import kernels
from ftjob.comm import Comm, Form
from ftjob.kernels import linear_cpu
from ftjob.kernels.few_rows_configs import MOST_ROWS, arrivals
from ftjob.model.arch import Arch
from ftjob.model.arrays import Arena, Array
from ftjob.model.attention import Keep, Sight
from ftjob.model.layers import Embedding, Linear, WeightFormat
from ftjob.model.packing import Packing, SourcePacking
from ftjob.model.residual import Kind, Residual, make_norm, parameter, residual_dtype

# Columns of a product on a GPU in half precision come in multiples of so many.
EVEN = 64


@dataclass(frozen=True)
class Part:
    """What a stage holds: layers and encoder layers, and whether it is the first, the last."""

    layers: range
    encoder: range
    first: bool
    last: bool


@dataclass(frozen=True)
class Entry:
    """Rows that are about to be continued, longest first. `ids` [N] are the tokens to be read
    (prompts without their last token, or sources), and how they are packed. N is filled up
    on a GPU."""

    ids: torch.Tensor
    packing: Packing | SourcePacking


class Stage(nn.Module):
    """The part of a model that one device holds."""

    def __init__(self, arch: Arch, part: Part, kind: Kind, group: Comm) -> None:
        super().__init__()
        self.arch, self.group, self.first, self.last = arch, group, part.first, part.last
        if part.first:
            self.embed = Embedding(arch, kind, group)
        if part.last:
            self.norm = make_norm(arch, kind)
            if not (arch.tied_head and part.first):
                rows = -(-arch.vocab // group.size)
                self.head = parameter(rows, arch.hidden, dtype=kind[0], device=kind[1])
        self._packed_head: list[torch.Tensor] = []
        self._stream_dtype = residual_dtype(arch, kind[0])
        self._arrived = arrivals(kind[1]) if part.last and kernels.used(kind[1]) else None

    @property
    def head_weight(self) -> torch.Tensor:
        """This device's part of the head, [V/T, H]: the embedding's where both are here."""
        return self.embed.tokens if self.arch.tied_head and self.first else self.head

    @property
    def held_bytes(self) -> int:
        """Bytes of the parameters that this device really holds."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    def pack_head(self) -> None:
        """Keep a copy of the head as the CPU's fast products want it, before a long decode: a step
        makes logits of every lane (`eval/bench/cpu_parts` times the product)."""
        weight = self.head_weight
        if linear_cpu.available(weight.device, weight.dtype):
            self._packed_head = linear_cpu.pack(weight, False)

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

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[M, H] -> [M, V/T] in the model's dtype: this device's part of the vocabulary, padding
        at -inf."""
        scores = self.scores(x)
        if self.true_columns < scores.shape[1]:
            scores[:, self.true_columns :] = -torch.inf
        return scores

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """[M, H] -> [M, V/T]: the logits as the product gives them, in the model's dtype; those
        from `true_columns` on are padding."""
        if self.arch.scaled_head:
            x = x * self.arch.hidden**-0.5
        if self._packed_head:
            return linear_cpu.linear(x, self._packed_head, None)
        if self._arrived is not None and 0 < len(x) <= MOST_ROWS:
            # imported here because a machine without a GPU may be without triton
            from ftjob.kernels.few_rows import few_rows

            return few_rows(x, self.head_weight, self._arrived)
        return _even_product(x, self.head_weight)

    @property
    def true_columns(self) -> int:
        """How many columns of this device's part of the vocabulary are no padding."""
        rows = self.head_weight.shape[0]
        return min(rows, max(0, self.arch.vocab - self.group.rank * rows))

    def form(self, rows: int) -> Form:
        """Of the residual stream of so many rows, as stages hand it on."""
        return (rows, self.arch.hidden), self._stream_dtype

    def handed_on(self, residual: Residual) -> torch.Tensor:
        """What a stage gives of the stream behind its layers, [N, H]: normed on the last one."""
        return self.norm.add(residual)[1] if self.last else residual.total()

    def entry(self, ids: Array, lengths: Sequence[int], arena: Arena) -> Entry:
        """Rows of so many of the `ids` [N] int64 each, longest first, on the arena's device."""
        raise TypeError(f"{type(self).__name__} does not generate")

    def enter(
        self, x: torch.Tensor, entry: Entry, keep: Keep, pulse: Callable[[], None]
    ) -> torch.Tensor:
        """Read new rows: entry.ids on the first stage, else what the stage before gave, [N, H],
        which may be written over. `keep` gets keys and values of prompts. Gives [N, H] for the next
        stage, or on the last one for `admit`; without an encoder nobody needs what the last one
        gives."""
        raise TypeError(f"{type(self).__name__} does not generate")

    def admit(self, encoded: torch.Tensor, keep: Keep) -> None:
        """Make of the encoder's output [N, H] what the decode steps look at; nothing to do without
        an encoder."""

    def step(self, x: torch.Tensor, sight: Sight, pulse: Callable[[], None]) -> torch.Tensor:
        """One token of every lane: its ids [N] on the first stage, else [N, H]. Gives [N, H], on
        the last stage normed for `logits`."""
        raise TypeError(f"{type(self).__name__} does not generate")


def _even_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T: [M, H], [V, H] -> [M, V]. In half precision a GPU has fast products only where rows of
    the result begin at whole vectors, which an odd vocabulary's do not: they get room behind."""
    rows = weight.shape[0]
    even = rows // EVEN * EVEN
    if even == rows or not x.is_cuda or x.dtype == torch.float32:
        return F.linear(x, weight)
    out = x.new_empty(x.shape[0], even + EVEN)
    torch.mm(x, weight[:even].t(), out=out[:, :even])
    torch.mm(x, weight[even:].t(), out=out[:, even:rows])
    return out[:, :rows]


def make_stage(arch: Arch, part: Part, weights: WeightFormat, kind: Kind, group: Comm) -> Stage:
    """The stage of the model's kind."""
    # imported here because both derive from Stage
    from ftjob.model.decoder import DecoderStage
    from ftjob.model.seq2seq import Seq2SeqStage

    chosen = Seq2SeqStage if arch.seq2seq else DecoderStage
    return chosen(arch, part, weights, kind, group)
