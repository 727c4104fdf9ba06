"""Fast paths for one kind of device each, beside what they must equal in plain PyTorch."""

from __future__ import annotations

import torch


def used(device: torch.device) -> bool:
    """Whether the Triton kernels here do the work on that device, with the layout they want."""
    return device.type == "cuda"
