"""Free memory of GPUs without a context on them: NVIDIA's management library, by ctypes.

`world` sizes the plan's devices with it before torch is imported.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

LIBRARY = "libnvidia-ml.so.1"


class _Memory(ctypes.Structure):
    """nvmlMemory_t (NVML API reference, device structs): bytes."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def free_bytes(env: Mapping[str, str]) -> list[int] | None:
    """Free bytes of each GPU that this process may use, in CUDA's order, or None where the library
    is absent or does not say (parts of a GPU, names that are no index and no UUID)."""
    try:
        nvml = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        listed = env.get("CUDA_VISIBLE_DEVICES")
        if listed is None:
            count = ctypes.c_uint()
            if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
                return None
            names = [str(i) for i in range(count.value)]
        else:
            names = [name.strip() for name in listed.split(",") if name.strip()]
        found = [_free(nvml, name) for name in names]
        return [free for free in found if free is not None] if None not in found else None
    finally:
        nvml.nvmlShutdown()


def _free(nvml: ctypes.CDLL, name: str) -> int | None:
    """Of the GPU of an index or UUID."""
    handle, memory = ctypes.c_void_p(), _Memory()
    if name.isdigit():
        failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
    else:
        failed = nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
    if failed or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    return int(memory.free)
