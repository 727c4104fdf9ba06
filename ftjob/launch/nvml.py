"""GPUs without a context on them: NVIDIA's management library, by ctypes.

`world` sizes the plan's devices with their free memory before torch is imported; `topology` asks
how they are connected.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
TEXT_BYTES = 96  # the longest of the API's texts, NVML_DEVICE_NAME_V2_BUFFER_SIZE


class Memory(ctypes.Structure):
    """nvmlMemory_t (NVML API reference, device structs): bytes."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class PciInfo(ctypes.Structure):
    """nvmlPciInfo_t (NVML API reference, device structs), of the functions of version 2 and 3."""

    _fields_ = (
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("pci_subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    )


class Nvml:
    """The library, open. What it lacks or does not say is None; nothing here raises."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def struct(self, function: str, made: Any, *arguments: Any) -> Any | None:
        """The structure `made`, which the function fills behind its other arguments."""
        call = getattr(self._library, function, None)
        if call is None or call(*arguments, ctypes.byref(made)) != 0:
            return None
        return made

    def number(self, function: str, *arguments: Any, kind: Any = ctypes.c_uint) -> int | None:
        """The number that the function leaves behind its other arguments."""
        found = self.struct(function, kind(), *arguments)
        return None if found is None else int(found.value)

    def text(self, function: str, *arguments: Any) -> str | None:
        """The text that the function writes into a buffer behind its other arguments."""
        call = getattr(self._library, function, None)
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        if call is None or call(*arguments, buffer, ctypes.c_uint(TEXT_BYTES)) != 0:
            return None
        return buffer.value.decode("utf-8", "replace")

    def gpus(self, env: Mapping[str, str]) -> list[ctypes.c_void_p | None]:
        """The GPUs that this process may use, in CUDA's order; None for a name that is no index
        and no UUID."""
        names = visible_names(env)
        if names is None:
            names = [str(i) for i in range(self.number("nvmlDeviceGetCount_v2") or 0)]
        return [self._gpu(name) for name in names]

    def _gpu(self, name: str) -> ctypes.c_void_p | None:
        handle = ctypes.c_void_p()
        if name.isdigit():
            found = self.struct("nvmlDeviceGetHandleByIndex_v2", handle, ctypes.c_uint(int(name)))
        else:
            found = self.struct("nvmlDeviceGetHandleByUUID", handle, name.encode())
        return None if found is None else handle

    def memory(self, gpu: ctypes.c_void_p) -> Memory | None:
        """What a GPU has, in bytes."""
        return self.struct("nvmlDeviceGetMemoryInfo", Memory(), gpu)


@contextmanager
def opened(library: str = LIBRARY) -> Iterator[Nvml | None]:
    """The library while inside, or None where it is absent or finds no driver."""
    try:
        loaded = ctypes.CDLL(library)
    except OSError:
        yield None
        return
    if loaded.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield Nvml(loaded)
    finally:
        loaded.nvmlShutdown()


def visible_names(env: Mapping[str, str]) -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; None where it is not set.

    The first name that can be none, such as -1, ends the list (CUDA programming guide, environment
    variables)."""
    listed = env.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    names: list[str] = []
    for name in map(str.strip, listed.split(",")):
        if not name or name.startswith("-"):
            break
        names.append(name)
    return names


def free_bytes(env: Mapping[str, str]) -> list[int] | None:
    """Free bytes of each GPU that this process may use, in CUDA's order, or None where the library
    is absent or does not say (parts of a GPU, names that are no index and no UUID)."""
    with opened() as nvml:
        if nvml is None:
            return None
        found = [None if gpu is None else nvml.memory(gpu) for gpu in nvml.gpus(env)]
    return [int(m.free) for m in found if m is not None] if None not in found else None
