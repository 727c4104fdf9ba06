"""How the visible GPUs lie in this machine: links, memory, cores beside them, and their state.

Asked of NVIDIA's management library and of /sys, so no context is made and torch is not imported.
`advice` makes warnings of it; `doctor` prints it, and a run looks before its devices start.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ftjob.launch.nvml import LIBRARY, Nvml, PciInfo, opened

# Of NVML's enumerations (NVML API reference, device enums): links a GPU may have, the remote end of
# one, levels of the common ancestor in nvidia-smi's words, why two GPUs see not each other's
# memory, compute modes, and the reasons for lower clocks that are no choice of a user or of an
# idle GPU. A power cap is none: at full load it is the normal state.
MOST_LINKS = 18
REMOTE_GPU, REMOTE_SWITCH = 0, 2
PATHS = MappingProxyType({0: "PSB", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"})
P2P_READ, P2P_WRITE, P2P_NVLINK = 0, 1, 2
NO_PEER = MappingProxyType(
    {
        1: "the chipset does not support it",
        2: "a GPU does not support it",
        3: "they hang on bridges that do not pass it on",
        4: "the driver's registry key disables it",
        5: "not supported",
    }
)
COMPUTE_MODES = MappingProxyType(
    {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}
)
SLOWDOWNS = MappingProxyType(
    {
        0x08: "hardware slowdown",
        0x20: "heat (driver)",
        0x40: "heat (hardware)",
        0x80: "power brake",
    }
)
UNCORRECTED, VOLATILE = 1, 0
PCI_DEVICES = Path("/sys/bus/pci/devices")


@dataclass(frozen=True)
class Gpu:
    """One visible GPU; `index` is CUDA's. None is what nobody says. `cores` are those of its NUMA
    node; of its PCIe link, the generation rests lower where the GPU idles below state P0."""

    index: int
    name: str | None = None
    uuid: str | None = None
    bus_id: str | None = None
    numa_node: int | None = None
    cores: tuple[int, ...] | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_max_generation: int | None = None
    pcie_max_width: int | None = None
    performance_state: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    compute_mode: str | None = None
    ecc_errors: int | None = None
    slowdowns: tuple[str, ...] | None = None
    mig: bool | None = None


@dataclass(frozen=True)
class Pair:
    """Two GPUs, by CUDA's index. `nvlinks` are the active links between them, straight or through
    switches; `path` is the way over PCIe in nvidia-smi's words; `peer` whether each can read and
    write the other's memory, else `no_peer` says why not."""

    first: int
    second: int
    nvlinks: int | None = None
    switched: bool = False
    path: str | None = None
    peer: bool | None = None
    no_peer: str | None = None

    @property
    def link(self) -> str:
        """The link as nvidia-smi writes it: NV and the number of links, or the way over PCIe."""
        return f"NV{self.nvlinks}" if self.nvlinks else self.path or "?"


@dataclass(frozen=True)
class Topology:
    """The visible GPUs, each pair of them, and the cores that this process may run on."""

    gpus: tuple[Gpu, ...]
    pairs: tuple[Pair, ...]
    cores: tuple[int, ...]
    driver: str | None = None

    def pair(self, one: int, other: int) -> Pair | None:
        """The pair of two GPUs, in either order."""
        wanted = (min(one, other), max(one, other))
        return next((p for p in self.pairs if (p.first, p.second) == wanted), None)

    def first(self, count: int) -> Topology:
        """The same with the first GPUs only: those that a job of so many devices uses."""
        pairs = tuple(pair for pair in self.pairs if pair.second < count)
        return replace(self, gpus=self.gpus[:count], pairs=pairs)

    def with_peers(self, reach: Mapping[tuple[int, int], bool]) -> Topology:
        """The same with what CUDA says of ordered pairs in place of what NVML says."""
        pairs = []
        for pair in self.pairs:
            ways = (pair.first, pair.second), (pair.second, pair.first)
            told = [reach[way] for way in ways if way in reach]
            pairs.append(replace(pair, peer=all(told)) if told else pair)
        return replace(self, pairs=tuple(pairs))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Ends:
    """Where the active NVLinks of a GPU lead: bus ids of GPUs, switches, and unknown ends."""

    gpus: tuple[str, ...]
    switches: int
    unknown: int

    @property
    def count(self) -> int:
        return len(self.gpus) + self.switches + self.unknown


def look(
    env: Mapping[str, str], library: str = LIBRARY, pci_devices: Path = PCI_DEVICES
) -> Topology:
    """What can be found out of the GPUs that `env` leaves visible; without the library there are
    none. Never raises."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    with opened(library) as nvml:
        if nvml is None:
            return Topology((), (), cores)
        handles = nvml.gpus(env)
        gpus = tuple(
            Gpu(index) if handle is None else _gpu(nvml, index, handle, pci_devices)
            for index, handle in enumerate(handles)
        )
        ends = [None if handle is None else _ends(nvml, handle) for handle in handles]
        pairs = tuple(
            _pair(nvml, (gpus[a], gpus[b]), (handles[a], handles[b]), (ends[a], ends[b]))
            for a, b in itertools.combinations(range(len(gpus)), 2)
        )
        return Topology(gpus, pairs, cores, nvml.text("nvmlSystemGetDriverVersion"))


def _gpu(nvml: Nvml, index: int, handle: ctypes.c_void_p, pci_devices: Path) -> Gpu:
    bus_id = _bus_id(nvml.struct("nvmlDeviceGetPciInfo_v3", PciInfo(), handle))
    memory = nvml.memory(handle)
    mode = nvml.number("nvmlDeviceGetComputeMode", handle)
    folder = None if bus_id is None else pci_devices / bus_id
    return Gpu(
        index,
        nvml.text("nvmlDeviceGetName", handle),
        nvml.text("nvmlDeviceGetUUID", handle),
        bus_id,
        _numa_node(folder),
        _cores(folder),
        nvml.number("nvmlDeviceGetCurrPcieLinkGeneration", handle),
        nvml.number("nvmlDeviceGetCurrPcieLinkWidth", handle),
        nvml.number("nvmlDeviceGetMaxPcieLinkGeneration", handle),
        nvml.number("nvmlDeviceGetMaxPcieLinkWidth", handle),
        nvml.number("nvmlDeviceGetPerformanceState", handle),
        None if memory is None else int(memory.total),
        None if memory is None else int(memory.free),
        None if mode is None else COMPUTE_MODES.get(mode),
        nvml.number(
            "nvmlDeviceGetTotalEccErrors", handle, UNCORRECTED, VOLATILE, kind=ctypes.c_ulonglong
        ),
        _slowdowns(nvml, handle),
        _mig(nvml, handle),
    )


def _slowdowns(nvml: Nvml, handle: ctypes.c_void_p) -> tuple[str, ...] | None:
    for function in (  # drivers since 535 have the first
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    ):
        bits = nvml.number(function, handle, kind=ctypes.c_ulonglong)
        if bits is not None:
            return tuple(word for bit, word in SLOWDOWNS.items() if bits & bit)
    return None


def _mig(nvml: Nvml, handle: ctypes.c_void_p) -> bool | None:
    current = ctypes.c_uint()
    pending = nvml.number("nvmlDeviceGetMigMode", handle, ctypes.byref(current))
    return None if pending is None else current.value == 1


def _ends(nvml: Nvml, handle: ctypes.c_void_p) -> _Ends | None:
    """None where the GPU has no NVLink, or the library does not say."""
    states = [nvml.number("nvmlDeviceGetNvLinkState", handle, i) for i in range(MOST_LINKS)]
    if all(state is None for state in states):
        return None
    gpus: list[str] = []
    switches = unknown = 0
    for link in (i for i, state in enumerate(states) if state):
        kind = nvml.number("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
        remote = nvml.struct("nvmlDeviceGetNvLinkRemotePciInfo_v2", PciInfo(), handle, link)
        bus_id = _bus_id(remote)
        if kind == REMOTE_SWITCH:
            switches += 1
        elif bus_id is not None and kind in (REMOTE_GPU, None):
            gpus.append(bus_id)
        else:
            unknown += 1
    return _Ends(tuple(gpus), switches, unknown)


def _pair(
    nvml: Nvml,
    gpus: tuple[Gpu, Gpu],
    handles: tuple[ctypes.c_void_p | None, ctypes.c_void_p | None],
    ends: tuple[_Ends | None, _Ends | None],
) -> Pair:
    first, second = gpus[0].index, gpus[1].index
    if None in handles:
        return Pair(first, second)
    level = nvml.number("nvmlDeviceGetTopologyCommonAncestor", *handles)
    read, write, nvlink = (
        nvml.number("nvmlDeviceGetP2PStatus", *handles, index)
        for index in (P2P_READ, P2P_WRITE, P2P_NVLINK)
    )
    reason = read or write
    links, switched = _links(gpus, ends, nvlink)
    return Pair(
        first,
        second,
        links,
        switched,
        None if level is None else PATHS.get(level),
        None if read is None or write is None else not reason,
        NO_PEER.get(reason, f"status {reason}") if reason else None,
    )


def _links(
    gpus: tuple[Gpu, Gpu], ends: tuple[_Ends | None, _Ends | None], status: int | None
) -> tuple[int | None, bool]:
    """The active NVLinks between two GPUs, and whether they go through switches, which lead from
    each GPU to all others. Where the ends are hidden, as in virtual machines, the peer status over
    NVLink, 0 for yes, decides."""
    one, other = ends
    if one is None or other is None:
        return (None if status is None or status == 0 else 0), False
    straight = sum(end == gpus[1].bus_id for end in one.gpus)
    if straight:
        return straight, False
    if one.switches and other.switches:
        return min(one.switches, other.switches), True
    if status == 0:
        return min(one.count, other.count), True
    return 0, False


def _bus_id(info: PciInfo | None) -> str | None:
    """The name of a device in /sys/bus/pci/devices; NVML writes the domain with eight digits."""
    if info is None or not info.bus_id:
        return None
    domain, _, rest = info.bus_id.decode("ascii", "replace").lower().partition(":")
    return f"{domain.lstrip('0'):0>4}:{rest}"


def _numa_node(folder: Path | None) -> int | None:
    text = _read(folder, "numa_node")
    if text is None or not text.isdigit():  # -1: the firmware does not say
        return None
    return int(text)


def _cores(folder: Path | None) -> tuple[int, ...] | None:
    text = _read(folder, "local_cpulist")
    return parse_cores(text) or None if text is not None else None


def _read(folder: Path | None, name: str) -> str | None:
    try:
        return None if folder is None else (folder / name).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def parse_cores(text: str) -> tuple[int, ...]:
    """The numbers of a list as the kernel writes it: `0-3,8,10-11`; what is none is left out."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() or not dash):
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def core_ranges(cores: Sequence[int]) -> str:
    """Core numbers as the kernel writes them."""
    parts: list[str] = []
    for _, run in itertools.groupby(enumerate(cores), lambda p: p[1] - p[0]):
        numbers = [number for _, number in run]
        parts.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    return ",".join(parts)
