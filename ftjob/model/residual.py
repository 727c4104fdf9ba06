"""The residual stream and its norms: what is held of it, what is yet to be added, and who adds it.

Layers hand the stream from product to norm to product. `layers` and `attention` add to it,
`decoder` and `seq2seq` put them together, and the last stage's norm gives what `stage` makes
logits of.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ftjob import kernels
from ftjob.comm import Comm
from ftjob.model.arch import Arch

Kind = tuple[torch.dtype, torch.device]


def parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """An uninitialised parameter without gradient."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


@dataclass(frozen=True)
class Residual:
    """The residual stream [N, H]: `held`, and on a GPU what is yet to be added to it. That is a
    product [N, H] with its bias [H], which the norm that comes next adds in its own pass; with a
    `group` the product is this device's part of a sum over it, which that pass makes too. Or it is
    the bias [H] alone, of products that were added where `held` lies: norms add it for themselves
    and it stays owed. Elsewhere there is none of it, all was added when it was made."""

    held: torch.Tensor
    product: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    group: Comm | None = None

    def total(self) -> torch.Tensor:
        """All of it as one tensor [N, H], in the dtype of `held`."""
        added = self.product if self.group is None else self._summed()
        if self.bias is not None:
            added = self.bias if added is None else added + self.bias
        return self.held if added is None else (self.held + added).to(self.held.dtype)

    def _summed(self) -> torch.Tensor:
        assert self.group is not None
        assert self.product is not None
        return self.group.all_reduce(self.product)

    def at(self, places: torch.Tensor) -> Residual:
        """The stream at some of its places [M] alone: [M, H]. No product is yet to be added."""
        assert self.product is None
        return Residual(self.held[places], bias=self.bias)


class Norm(nn.Module):
    """Normalises the residual stream over its last axis. The result has the weight's dtype."""

    def __init__(self, width: int, eps: float, kind: Kind) -> None:
        super().__init__()
        dtype, device = kind
        self.eps = eps
        self.weight = parameter(width, dtype=dtype, device=device)

    def add(self, residual: Residual) -> tuple[Residual, torch.Tensor]:
        """The stream with every product added to it, and its norm [N, H]."""
        if not kernels.used(residual.held.device):
            total = residual.total()
            return Residual(total), self.normed(total)
        total, normed = self._in_one_pass(residual)
        return (residual if residual.product is None else Residual(total)), normed

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
