"""Fast paths for one kind of device each, beside what they must equal in plain PyTorch."""

from __future__ import annotations

import torch


def used(device: torch.device) -> bool:
    """Whether the Triton kernels here do the work on that device, with the layout they want."""
    return device.type == "cuda"


def prepare(device: torch.device) -> None:
    """What is to be done before threads of this process run kernels on devices of that kind."""
    if device.type == "cuda":
        # imported here because a machine without a GPU may be without triton
        from ftjob.kernels.launchers import one_at_a_time

        one_at_a_time()
