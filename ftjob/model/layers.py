"""The layers every family is made of: linear with a weight format, embedding, MLP; norms are with
the stream that they norm, in `residual`.

Built empty on their device at their local shape; `decoder` puts them together, `device` fills
them from the stream of cut tensors. x is packed throughout: [N, H], N tokens of many rows.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ftjob import kernels
from ftjob.comm import Comm
from ftjob.kernels import linear_cpu
from ftjob.kernels.few_rows_configs import MOST_ROWS, arrivals
from ftjob.model.arch import Activation, Arch
from ftjob.model.fill import IN_PLACE
from ftjob.model.residual import Kind, Residual, parameter, residual_dtype

WeightFormat = Literal["float", "int8"]
# Elements quantised at a time: the temporaries stay small beside the weights.
_PIECE = 1 << 16


class Linear(nn.Module):
    """y = activation(x W^T + b) with W [out, in] in its weight format.

    int8 keeps one f32 scale per output column: W = scale * int8. Row-parallel layers take the
    scale over the full input axis, so that any tensor split rounds alike. On a CPU a float weight
    is kept packed, in `blocks`; a GPU has a kernel for few rows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        weights: WeightFormat,
        kind: Kind,
        activation: Activation | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        dtype, device = kind
        self.weights, self.activation = weights, activation
        self.packed = weights == "float" and linear_cpu.available(device, dtype)
        self._blocks: tuple[torch.Tensor, ...] = ()
        self._arrived = arrivals(device) if kernels.used(device) else None
        stored = torch.int8 if weights == "int8" else dtype
        # a packed weight takes its memory when it is packed
        place = torch.device("meta") if self.packed else device
        self.weight = parameter(outputs, inputs, dtype=stored, device=place)
        self.dtype = dtype
        self.bias = parameter(outputs, dtype=dtype, device=device) if bias else None
        # a product that applies the activation wants a bias to add before
        zeros = activation is not None and not bias
        self._zeros = torch.zeros(outputs, dtype=dtype, device=device) if zeros else None
        if weights == "int8":
            self.scale = parameter(outputs, dtype=torch.float32, device=device)

    def wanted_weight(self) -> torch.Tensor:
        """What `set_weight` takes best: a tensor on "meta" [out, in], exact enough for int8."""
        dtype = torch.float32 if self.weights == "int8" else self.dtype
        return torch.empty(self.weight.shape, dtype=dtype, device="meta")

    def set_weight(self, part: torch.Tensor, group: Comm | None) -> None:
        """Store this device's part of W [out, in]; `group` shares its input axis, if cut."""
        if self.packed:
            del self.weight
            blocks = linear_cpu.pack(part.to(self.dtype), self.activation is not None)
            for i, block in enumerate(blocks):
                self.register_parameter(f"block{i}", nn.Parameter(block, requires_grad=False))
            self._blocks = tuple(blocks)
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
        """x W^T (+ bias) in the dtype of x, without the activation: [N, in] -> [N, out]."""
        return self._made(x, bias, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in] -> [N, out]."""
        return self._made(x, self.bias, self.activation)

    def _made(
        self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation | None
    ) -> torch.Tensor:
        """activation(x W^T + bias), the fastest way there is on the device."""
        if self.packed:
            return linear_cpu.linear(x, self._blocks, bias, activation=activation)
        if self._arrived is not None and 0 < len(x) <= MOST_ROWS:
            # imported here because a machine without a GPU may be without triton
            from ftjob.kernels.few_rows import few_rows

            scale = self.scale if self.weights == "int8" else None
            return few_rows(
                x, self.weight, self._arrived, scale=scale, bias=bias, activation=activation
            )
        if self._fuses(x, activation):
            gelu, added = activation == "gelu_tanh", self._zeros if bias is None else bias
            assert added is not None
            return torch._addmm_activation(added, x, self.weight.t(), use_gelu=gelu)
        return activate(F.linear(x, self._weight_in(x.dtype), bias), activation)

    def _weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        """W [out, in] in the dtype of a product."""
        if self.weights == "float":
            return self.weight.to(dtype)
        # scaled before the product: a sum of unscaled int8 steps overflows in half precision; in
        # f32, and rounded on the way out, so a GPU makes no copy of W in f32
        scaled = torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)
        return torch.mul(self.weight, self.scale.unsqueeze(1), out=scaled)

    def _fuses(self, x: torch.Tensor, activation: Activation | None) -> bool:
        """Whether cuBLAS applies the activation to the sums of the product, before they are
        rounded. Its GELU is the tanh approximation, in f32 off by more than rounding."""
        return (
            activation in ("gelu_tanh", "relu")
            and x.device.type == "cuda"
            and x.dtype in (torch.float16, torch.bfloat16)
            and self.weight.dtype == x.dtype
        )


class RowLinear(Linear):
    """A linear layer added to the residual; its input axis is cut over the tensor group, which
    sums the products. b is added once, or owed (`Residual.bias`). The product is made in the
    residual's dtype."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        weights: WeightFormat,
        kind: Kind,
        group: Comm,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, weights, kind, bias=bias)
        self.group = group
        self._owed: tuple[torch.Tensor | None, torch.Tensor] | None = None

    def add_to(self, residual: Residual, x: torch.Tensor) -> Residual:
        """residual + sum over the group of x W^T, + b: [N, out] on every rank. On a GPU what the
        residual holds may be written over, by the sum."""
        x = x.to(residual.held.dtype)
        if self.group.size == 1 and kernels.used(x.device) and len(x) >= IN_PLACE:
            return self._in_place(residual, x)
        held = residual.total()
        if self.packed and self.group.size == 1:
            return Residual(linear_cpu.linear(x, self._blocks, self.bias, residual=held))
        if self.group.size == 1 and not kernels.used(x.device):
            return Residual(held + self.product(x, self.bias))
        y = self.product(x, None)
        if self.group.near is not None and self.group.near.takes(y):
            return Residual(held, y, self.bias, self.group)
        added = Residual(held, self.group.all_reduce(y) if self.group.size > 1 else y, self.bias)
        return added if kernels.used(x.device) else Residual(added.total())

    def _in_place(self, residual: Residual, x: torch.Tensor) -> Residual:
        """The product added to what is held, by the product itself; b is owed, with what was."""
        held, owed = residual.held, self._owed_after(residual.bias)
        # the last launch before the next norm, which may read what is owed before this has ended
        torch.addmm(held, x, self._weight_in(x.dtype).t(), out=held)
        return Residual(held, bias=owed)

    def _owed_after(self, owed: torch.Tensor | None) -> torch.Tensor | None:
        """What is owed with this layer's b, f32 [out]; made once, as it is the same in every
        pass."""
        if self.bias is None:
            return owed
        if self._owed is None or self._owed[0] is not owed:
            bias = self.bias.float()
            self._owed = owed, bias if owed is None else owed + bias
        return self._owed[1]


class Embedding(nn.Module):
    """Token vectors, plus position vectors where the model has them; the vocabulary is cut over
    the tensor group."""

    def __init__(self, arch: Arch, kind: Kind, group: Comm) -> None:
        super().__init__()
        dtype, device = kind
        self.group, self.dtype = group, residual_dtype(arch, dtype)
        rows = -(-arch.vocab // group.size)
        self.first_id = group.rank * rows
        self.tokens = parameter(rows, arch.hidden, dtype=dtype, device=device)
        self.positions = None
        if arch.positions is not None:
            self.positions = parameter(arch.positions, arch.hidden, dtype=dtype, device=device)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """ids and positions [N] int64 -> [N, H] in the residual's dtype; positions where the model
        has vectors for them."""
        if kernels.used(ids.device):
            return self._in_one_launch(ids, positions)
        if self.group.size == 1:
            x = F.embedding(ids, self.tokens)
        else:
            local = ids - self.first_id
            held = (local >= 0) & (local < self.tokens.shape[0])
            x = F.embedding(local.where(held, 0), self.tokens) * held.unsqueeze(1)
            x = self.group.all_reduce(x)
        if self.positions is not None:
            assert positions is not None
            x = x + F.embedding(positions, self.positions)
        return x.to(self.dtype)

    def _in_one_launch(self, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """The GPU's kernel; the first of a group has the positions in its part of the sum."""
        # imported here because a machine without a GPU may be without triton
        from ftjob.kernels.embed import embed

        table = self.positions if self.group.rank == 0 else None
        x = embed(ids, self.tokens, self.first_id, positions, table, self.dtype)
        return x if self.group.size == 1 else self.group.all_reduce(x)


class Mlp(nn.Module):
    """up, activation, down; the inner columns are cut over the tensor group.

    A gated one has the activated columns and behind them the linear ones in `up`.
    """

    def __init__(self, arch: Arch, weights: WeightFormat, kind: Kind, group: Comm) -> None:
        super().__init__()
        inner = arch.ffn // group.size
        self.gate = arch.activation if arch.gated else None
        columns, fused = (2 * inner, None) if arch.gated else (inner, arch.activation)
        self.up = Linear(arch.hidden, columns, weights, kind, fused, bias=arch.biases)
        self.down = RowLinear(inner, arch.hidden, weights, kind, group, bias=arch.biases)

    def add_to(self, residual: Residual, x: torch.Tensor) -> Residual:
        """residual + MLP of the normed x: [N, H]."""
        x = self.up(x).to(residual.held.dtype)  # gated: [N, 2F], else [N, F]
        if self.gate is not None:
            activated, linear = x.chunk(2, dim=1)
            x = activate(activated, self.gate) * linear
        return self.down.add_to(residual, x)


def activate(x: torch.Tensor, activation: Activation | None) -> torch.Tensor:
    """The activation, element by element."""
    if activation is None:
        return x
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
