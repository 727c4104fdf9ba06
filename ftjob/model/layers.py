"""The layers every family is made of: linear with a weight format, norm, embedding, MLP.

Built empty on their device at their local shape; `decoder` puts them together, `device` fills
them from the stream of cut tensors. x is packed throughout: [N, H], N tokens of many rows.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ftjob import kernels
from ftjob.comm import Comm
from ftjob.kernels import linear_cpu
from ftjob.kernels.few_rows_configs import MOST_ROWS, arrivals
from ftjob.model.arch import Activation, Arch

WeightFormat = Literal["float", "int8"]
Kind = tuple[torch.dtype, torch.device]
# Elements quantised at a time: the temporaries stay small beside the weights.
_PIECE = 1 << 16


def parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """An uninitialised parameter without gradient."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


@dataclass(frozen=True)
class Residual:
    """The residual stream [N, H]: `held`, and a product [N, H] yet to be added to it with its bias
    [H]. The norm that comes next adds it in its own pass on a GPU; elsewhere there is none, it was
    added when it was made. With a `group` the product is this device's part of a sum over it, which
    that pass makes too."""

    held: torch.Tensor
    product: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    group: Comm | None = None

    def total(self) -> torch.Tensor:
        """All of it as one tensor [N, H]."""
        if self.product is None:
            return self.held
        whole = self.product if self.group is None else self.group.all_reduce(self.product)
        return self.held + (whole if self.bias is None else whole + self.bias)


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
    sums the products and adds b once. The product is made in the residual's dtype."""

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

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> Residual:
        """residual + sum over the group of x W^T, + b: [N, out] on every rank."""
        x = x.to(residual.dtype)
        if self.packed and self.group.size == 1:
            return Residual(linear_cpu.linear(x, self._blocks, self.bias, residual=residual))
        if self.group.size == 1 and not kernels.used(x.device):
            return Residual(residual + self.product(x, self.bias))
        y = self.product(x, None)
        if self.group.near is not None and self.group.near.takes(y):
            return Residual(residual, y, self.bias, self.group)
        added = Residual(
            residual, self.group.all_reduce(y) if self.group.size > 1 else y, self.bias
        )
        return added if kernels.used(x.device) else Residual(added.total())


class Norm(nn.Module):
    """Normalises the residual stream over its last axis. The result has the weight's dtype."""

    def __init__(self, width: int, eps: float, kind: Kind) -> None:
        super().__init__()
        dtype, device = kind
        self.eps = eps
        self.weight = parameter(width, dtype=dtype, device=device)

    def add(self, residual: Residual) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream [N, H] with all added to it, and its norm [N, H]."""
        if kernels.used(residual.held.device):
            return self._in_one_pass(residual)
        total = residual.total()
        return total, self.normed(total)

    @abstractmethod
    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of x [N, H] in plain PyTorch."""

    def _in_one_pass(self, residual: Residual) -> tuple[torch.Tensor, torch.Tensor]:
        """The GPU's kernel."""
        # imported here because a machine without a GPU may be without triton
        from ftjob.kernels.add_norm import add_norm

        bias = self.bias if isinstance(self, LayerNorm) else None
        about = (residual.bias, self.weight, bias, self.eps)
        group, centred = residual.group, bias is not None
        if group is not None and group.near is not None and residual.product is not None:
            return group.near.add_norm(residual.held, residual.product, *about, centred=centred)
        return add_norm(residual.held, residual.product, *about, centred=centred)


class LayerNorm(Norm):
    """Normalise over the last axis, then scale and shift."""

    def __init__(self, width: int, eps: float, kind: Kind) -> None:
        super().__init__(width, eps, kind)
        self.bias = parameter(width, dtype=kind[0], device=kind[1])

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RmsNorm(Norm):
    """Divide by the root mean square over the last axis, then scale: no mean, no shift (Zhang and
    Sennrich 2019). Computed in f32."""

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H]."""
        if x.dtype == self.weight.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        normed = F.rms_norm(x.float(), self.weight.shape, None, self.eps)
        return normed.to(self.weight.dtype) * self.weight


def make_norm(arch: Arch, kind: Kind) -> Norm:
    """The norm of the model, over the hidden size."""
    chosen = RmsNorm if arch.norm == "rms" else LayerNorm
    return chosen(arch.hidden, arch.norm_eps, kind)


def residual_dtype(arch: Arch, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the residual stream and of the products added to it.

    T5's grow beyond 65504, where f16 ends, from T5-base on: there both are f32, and the last
    product of the MLP takes an f32 input too. Elsewhere it is the model's own.
    """
    return torch.float32 if dtype == torch.float16 and arch.relative is not None else dtype


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

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> Residual:
        """residual + MLP of the normed x: [N, H]."""
        x = self.up(x).to(residual.dtype)  # gated: [N, 2F], else [N, F]
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
