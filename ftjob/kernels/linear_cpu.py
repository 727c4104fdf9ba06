"""Linear layers on a CPU through oneDNN: packed weights, activation or residual fused in.

Faster than PyTorch's own float32 product at the demo models' shapes: by an eighth on one processor,
twice on another (`eval/bench/cpu_parts`).
`model/layers.Linear` packs its weight once after loading and calls these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from ftjob.model.arch import Activation

# oneDNN sums a float32 product front to back, so its rounding error grows with the number of
# inputs, PyTorch's own less so. Sums of more inputs than this are made in blocks, added one after
# the other. A fused activation takes one block.
BLOCK = 1024

# activation -> (name, algorithm) of oneDNN's fused element-wise operation
_FUSED: Mapping[Activation | None, tuple[str, str]] = MappingProxyType(
    {
        None: ("none", ""),
        "gelu_tanh": ("gelu", "tanh"),
        "gelu": ("gelu", "none"),
        "relu": ("relu", ""),
    }
)


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch has the packed products for such a tensor."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def pack(weight: torch.Tensor, whole: bool) -> list[torch.Tensor]:
    """W [out, in] in oneDNN's layout, in blocks of inputs or whole: the same bytes.

    Beside them it takes one block's memory, for a moment, where W is not dense or is cut.
    """
    parts = torch.split(weight, weight.shape[1] if whole else BLOCK, dim=1)
    dense = all(part.is_contiguous() for part in parts)
    room = torch.empty(0 if dense else parts[0].numel(), dtype=weight.dtype, device=weight.device)
    blocks = []
    for part in parts:
        block = part if dense else room[: part.numel()].view(part.shape).copy_(part)
        blocks.append(torch.ops.mkldnn._reorder_linear_weight(block, None))
    return blocks


def linear(
    x: torch.Tensor,
    blocks: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    *,
    activation: Activation | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """activation(x W^T + b), or residual + x W^T + b, a block of inputs after the other:
    [N, in] -> [N, out]. An activation takes a weight of one block."""
    pointwise = torch.ops.mkldnn._linear_pointwise
    parts = (x,) if len(blocks) == 1 else x.split([block.shape[1] for block in blocks], dim=1)
    if residual is None:
        name, algorithm = _FUSED[activation]
        y = pointwise(parts[0], blocks[0], bias, name, [], algorithm)
    else:
        y = pointwise.binary(parts[0], residual, blocks[0], bias, "add")
    for part, block in zip(parts[1:], blocks[1:], strict=True):
        y = pointwise.binary(part, y, block, None, "add")
    return y  # type: ignore[no-any-return]
