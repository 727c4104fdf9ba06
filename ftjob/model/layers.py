"""The layers every family is made of: linear with a weight format, norm, embedding, MLP.

Built empty on their device at their local shape; `decoder` puts them together, `device` fills
them from the stream of cut tensors. x is packed throughout: [N, H], N tokens of many rows.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ftjob.comm import Comm
from ftjob.kernels import linear_cpu
from ftjob.model.arch import Activation, Arch

WeightFormat = Literal["float", "int8"]
Kind = tuple[torch.dtype, torch.device]
# Elements quantised at a time: the temporaries stay small beside the weights.
_PIECE = 1 << 16


def parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """An uninitialised parameter without gradient."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


class Linear(nn.Module):
    """y = activation(x W^T + b) with W [out, in] in its weight format.

    int8 keeps one f32 scale per output column: W = scale * int8. Row-parallel layers take the
    scale over the full input axis, so that any tensor split rounds alike. On a CPU a float weight
    is kept packed, in `blocks`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        weights: WeightFormat,
        kind: Kind,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        dtype, device = kind
        self.weights, self.activation = weights, activation
        self.packed = weights == "float" and linear_cpu.available(device, dtype)
        stored = torch.int8 if weights == "int8" else dtype
        # a packed weight takes its memory when it is packed
        place = torch.device("meta") if self.packed else device
        self.weight = parameter(outputs, inputs, dtype=stored, device=place)
        self.bias = parameter(outputs, dtype=dtype, device=device)
        if weights == "int8":
            self.scale = parameter(outputs, dtype=torch.float32, device=device)

    def wanted_weight(self) -> torch.Tensor:
        """What `set_weight` takes best: a tensor on "meta" [out, in], exact enough for int8."""
        dtype = torch.float32 if self.weights == "int8" else self.bias.dtype
        return torch.empty(self.weight.shape, dtype=dtype, device="meta")

    def set_weight(self, part: torch.Tensor, group: Comm | None) -> None:
        """Store this device's part of W [out, in]; `group` shares its input axis, if cut."""
        if self.packed:
            del self.weight
            self.blocks = nn.ParameterList(
                nn.Parameter(p, requires_grad=False)
                for p in linear_cpu.pack(part.to(self.bias.dtype), self.activation is not None)
            )
            return
        if self.weights == "float":
            self.weight.copy_(part)
            return
        part = part.to(self.weight.device, torch.float32)
        rows = max(1, _PIECE // part.shape[1])
        largest = torch.cat([piece.abs().amax(dim=1) for piece in torch.split(part, rows)])
        if group is not None:
            largest = group.all_reduce(largest, "max")
        self.scale.copy_(torch.where(largest > 0, largest / 127, torch.ones_like(largest)))
        whole = (part, self.scale.unsqueeze(1), self.weight)
        pieces = zip(*(torch.split(x, rows) for x in whole), strict=True)
        for piece, scale, weight in pieces:
            weight.copy_(torch.round(piece / scale))

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x W^T (+ bias), without the activation: [N, in] -> [N, out]."""
        if self.packed:
            return linear_cpu.linear(x, self._blocks(), bias)
        if self.weights == "float":
            return F.linear(x, self.weight, bias)
        # scaled before the product: a sum of unscaled int8 steps overflows in half precision
        weight = self.weight.to(torch.float32) * self.scale.unsqueeze(1)
        return F.linear(x, weight.to(x.dtype), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in] -> [N, out]."""
        if self.packed:
            return linear_cpu.linear(x, self._blocks(), self.bias, activation=self.activation)
        return activate(self.product(x, self.bias), self.activation)

    def _blocks(self) -> list[torch.Tensor]:
        return list(self.blocks)


class RowLinear(Linear):
    """A linear layer added to the residual; its input axis is cut over the tensor group, which
    sums the products and adds b once."""

    def __init__(
        self, inputs: int, outputs: int, weights: WeightFormat, kind: Kind, group: Comm
    ) -> None:
        super().__init__(inputs, outputs, weights, kind)
        self.group = group

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + sum over the group of x W^T, + b: [N, out] on every rank."""
        if self.group.size > 1:
            return residual + (self.group.all_reduce(self.product(x, None)) + self.bias)
        if self.packed:
            return linear_cpu.linear(x, self._blocks(), self.bias, residual=residual)
        return residual + self.product(x, self.bias)


class LayerNorm(nn.Module):
    """Normalise over the last axis, then scale and shift."""

    def __init__(self, width: int, eps: float, kind: Kind) -> None:
        super().__init__()
        dtype, device = kind
        self.eps = eps
        self.weight = parameter(width, dtype=dtype, device=device)
        self.bias = parameter(width, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Embedding(nn.Module):
    """Token plus position vectors; the vocabulary is cut over the tensor group."""

    def __init__(self, arch: Arch, kind: Kind, group: Comm) -> None:
        super().__init__()
        dtype, device = kind
        self.group = group
        rows = -(-arch.vocab // group.size)
        self.first_id = group.rank * rows
        self.tokens = parameter(rows, arch.hidden, dtype=dtype, device=device)
        assert arch.positions is not None
        self.positions = parameter(arch.positions, arch.hidden, dtype=dtype, device=device)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """ids and positions [N] int64 -> [N, H]."""
        if self.group.size == 1:
            return F.embedding(ids, self.tokens) + F.embedding(positions, self.positions)
        local = ids - self.first_id
        held = (local >= 0) & (local < self.tokens.shape[0])
        x = F.embedding(local.where(held, 0), self.tokens) * held.unsqueeze(1)
        return self.group.all_reduce(x) + F.embedding(positions, self.positions)


class Mlp(nn.Module):
    """up, activation, down; the inner columns are cut over the tensor group."""

    def __init__(self, arch: Arch, weights: WeightFormat, kind: Kind, group: Comm) -> None:
        super().__init__()
        inner = arch.ffn // group.size
        self.up = Linear(arch.hidden, inner, weights, kind, arch.activation)
        self.down = RowLinear(inner, arch.hidden, weights, kind, group)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + MLP of the normed x: [N, H]."""
        return self.down.add_to(residual, self.up(x))


def activate(x: torch.Tensor, activation: Activation | None) -> torch.Tensor:
    """The activation, element by element."""
    if activation is None:
        return x
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
