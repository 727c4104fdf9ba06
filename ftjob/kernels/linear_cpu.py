"""Linear layers on a CPU through oneDNN: packed weights, activation or residual fused in.

PyTorch's own float32 product there takes about twice as long (eval/reports/cpu_lambada.md has
both). `model/layers.Linear` packs its weight once after loading and calls these.
"""

from __future__ import annotations

import torch

from ftjob.model.arch import Activation

# (name, algorithm) of oneDNN's fused element-wise operation
_FUSED = {
    "none": ("none", ""),
    "gelu_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
    "relu": ("relu", ""),
}


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch has the packed products for such a tensor."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    """W [out, in] in oneDNN's blocked layout; the same bytes, another order."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def linear(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, activation: Activation | None
) -> torch.Tensor:
    """activation(x W^T + b): [N, in] -> [N, out]."""
    name, algorithm = _FUSED[activation or "none"]
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], algorithm)
    return y


def linear_add(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor
) -> torch.Tensor:
    """x W^T + b + residual: [N, in] -> [N, out]."""
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")
    return y
