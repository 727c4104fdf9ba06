"""Whether a device starts a kernel of a decode step before the one ahead of it has ended.

Such kernels last a few us, about as long as it takes to start one, so from Hopper on they overlap
(CUDA C++ Programming Guide, programmatic dependent launch). The rules of a kernel so launched:

- Each of its programs waits, with `tl.extra.cuda.gdc_wait`, before it reads what another launch may
  write and before it writes anything at all. Every launch ahead has ended then and its writes are
  seen, because the one just ahead waited likewise. Only what is constant while a model runs, its
  weights, may be read before.
- It lets the next one start, with `gdc_launch_dependents`, as soon as its own reading of weights is
  under way, even before it waits. The hardware starts the next one when all programs of this one
  run, so those that wait never take the place of one that is waited for.
"""

from __future__ import annotations

import torch
import triton

# Hopper's major compute capability, the first to have it.
HOPPER = 9
# Decided by Triton when a kernel is defined, so once here too.
INTERPRETED = triton.knobs.runtime.interpret


def starts_early(device: torch.device) -> bool:
    """Whether kernels are launched there before the one ahead has ended. Cheap, for it is asked for
    in every launch."""
    return (
        device.type == "cuda"
        and not INTERPRETED
        and torch.cuda.get_device_properties(device.index).major >= HOPPER
    )
