"""What is wrong with a machine for a job: each warning says what was found, what it costs and what
to change.

Pure functions of what `topology` saw, of the environment and of measured copies. `doctor` ends
with them, and a run writes them to its log before its devices start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from ftjob.launch.topology import Gpu, Pair, Topology, core_ranges

# Of a GPU that nobody else uses, more than this share is free before our own context is made.
LEAST_FREE = 0.9
# One direction of one NVLink moves 20 GB/s or more since the second generation (NVIDIA V100 white
# paper: 25); copies that reach less than half of that over all links do not go over them.
NVLINK_BYTES_S, LEAST_OF_NVLINK = 20e9, 0.5
DISABLED = MappingProxyType(
    {
        "NCCL_P2P_DISABLE": "GPUs of a node swap their data through host memory",
        "NCCL_SHM_DISABLE": "processes of a node without a way between their GPUs use the network",
        "NCCL_IB_DISABLE": "nodes talk over sockets instead of InfiniBand or RoCE",
    }
)


@dataclass(frozen=True)
class Advice:
    """A warning: what was found, what it costs, what to change."""

    found: str
    costs: str
    change: str

    def __str__(self) -> str:
        return f"{self.found}: {self.costs}. {self.change}."

    def as_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CopyRate:
    """A measured copy from one GPU's memory to another's, by CUDA's index."""

    source: int
    target: int
    bytes_s: float


def advise(
    seen: Topology,
    env: Mapping[str, str],
    groups: Sequence[Sequence[int]] = (),
    copies: Sequence[CopyRate] = (),
    host: str = "this node",
) -> list[Advice]:
    """Warnings on the GPUs of `host`; `groups` are the tensor groups' GPUs there."""
    return [
        *_links(seen, groups, host),
        *_slow_copies(seen, copies),
        *_buses(seen),
        *_far_cores(seen),
        *(advice for gpu in seen.gpus for advice in _state(gpu)),
        *_variables(env, len(seen.gpus)),
    ]


def _links(seen: Topology, groups: Sequence[Sequence[int]], host: str) -> Iterator[Advice]:
    """Of the pairs that share a layer, those that talk over PCIe, and those that not even do that;
    pairs of one kind are one warning."""
    slow: dict[str, list[Pair]] = {}
    apart: dict[str, list[Pair]] = {}
    for pair in _pairs_of(seen, groups):
        if pair.peer is False:
            apart.setdefault(pair.no_peer or "not supported", []).append(pair)
        elif pair.nvlinks == 0:
            slow.setdefault(pair.path or "PCIe", []).append(pair)
    for path, pairs in slow.items():
        yield Advice(
            f"{_named(pairs)} of {host} talk over {path}, without NVLink",
            "tensor parallel across them is slow, as every layer waits for two sums",
            "Use parallel.pipeline or parallel.data between them, or choose GPUs with NVLink",
        )
    for why, pairs in apart.items():
        yield Advice(
            f"{_named(pairs)} of {host} cannot reach each other's memory ({why})",
            "what they swap goes through host memory",
            "Use parallel.data between them; else look for an IOMMU or ACS that is switched on, or "
            "a virtual machine or container that hides the links",
        )


def _pairs_of(seen: Topology, groups: Sequence[Sequence[int]]) -> Iterator[Pair]:
    for pair in seen.pairs:
        if any(pair.first in group and pair.second in group for group in groups):
            yield pair


def _named(pairs: Sequence[Pair]) -> str:
    listed = [f"{p.first} and {p.second}" for p in pairs]
    return f"GPUs {'; '.join(listed[:4])}{f' and {len(listed) - 4} pairs more' * (len(listed) > 4)}"


def _slow_copies(seen: Topology, copies: Sequence[CopyRate]) -> Iterator[Advice]:
    for copy in copies:
        pair = seen.pair(copy.source, copy.target)
        links = 0 if pair is None else pair.nvlinks or 0
        if links and copy.bytes_s < LEAST_OF_NVLINK * links * NVLINK_BYTES_S:
            yield Advice(
                f"copies from GPU {copy.source} to {copy.target} reach {copy.bytes_s / 1e9:.3g} "
                f"GB/s over {links} NVLinks",
                f"that is below half of the {links * NVLINK_BYTES_S / 1e9:.0f} GB/s they move at "
                "the least",
                "See nvidia-smi nvlink -s and -e, and whether another job uses the GPUs",
            )


def _buses(seen: Topology) -> Iterator[Advice]:
    for gpu in seen.gpus:
        found = []
        if _below(gpu.pcie_width, gpu.pcie_max_width):
            found.append(f"{gpu.pcie_width} of {gpu.pcie_max_width} lanes")
        # an idle GPU rests its link; at work (P0) it must not
        if gpu.performance_state == 0 and _below(gpu.pcie_generation, gpu.pcie_max_generation):
            found.append(f"generation {gpu.pcie_generation} of {gpu.pcie_max_generation}")
        if found:
            yield Advice(
                f"GPU {gpu.index}'s PCIe link runs at {' and '.join(found)}",
                "loading weights, and GPUs without NVLink, are slower by as much",
                "Have the card reseated or its slot's settings looked at; leave the GPU out by "
                "CUDA_VISIBLE_DEVICES meanwhile",
            )


def _below(now: int | None, most: int | None) -> bool:
    return now is not None and most is not None and 0 < now < most


def _far_cores(seen: Topology) -> Iterator[Advice]:
    """GPUs none of whose own cores this process may use."""
    mine = set(seen.cores)
    far: dict[tuple[int, ...], list[Gpu]] = {}
    for gpu in seen.gpus:
        if gpu.cores and not mine & set(gpu.cores):
            far.setdefault(gpu.cores, []).append(gpu)
    for cores, gpus in far.items():
        node = "" if gpus[0].numa_node is None else f" (NUMA node {gpus[0].numa_node})"
        listed = ", ".join(str(gpu.index) for gpu in gpus)
        where = f"--cpunodebind={gpus[0].numa_node}" if node else f"-C {core_ranges(cores)}"
        yield Advice(
            f"GPU {listed} lies beside cores {core_ranges(cores)}{node}, and this process runs on "
            f"{core_ranges(seen.cores)}",
            "each launch and each copy from the host crosses the processors' link",
            "Under Slurm give the step the whole node (cluster.srun_args=[--cpu-bind=none], "
            f"--cpus-per-task), or ask for --gpu-bind=closest; else start with numactl {where}",
        )


def _state(gpu: Gpu) -> Iterator[Advice]:
    name, out = f"GPU {gpu.index}", "leave the GPU out by CUDA_VISIBLE_DEVICES meanwhile"
    if gpu.slowdowns:
        yield Advice(
            f"{name} is slowed down by {', '.join(gpu.slowdowns)}",
            "its clocks are low, and its group waits for it in every layer",
            f"Have its cooling and power looked at; {out}",
        )
    free, total = gpu.free_bytes, gpu.total_bytes
    if free is not None and total and free < LEAST_FREE * total:
        yield Advice(
            f"{name} has {free / 1e9:.3g} of {total / 1e9:.3g} GB free",
            "another process uses it, so batches are smaller and times say little",
            "End that process (nvidia-smi lists it), or ask Slurm for GPUs of your own",
        )
    if gpu.compute_mode in ("exclusive process", "exclusive thread"):
        yield Advice(
            f"{name} is in compute mode {gpu.compute_mode}",
            "a second process on it fails, such as a second rank or a profiler",
            "Start one rank a node, as ftjob does by itself, or set nvidia-smi -c DEFAULT",
        )
    if gpu.compute_mode == "prohibited":
        yield Advice(
            f"{name} is in compute mode prohibited", "nothing runs on it", "nvidia-smi -c DEFAULT"
        )
    if gpu.ecc_errors:
        yield Advice(
            f"{name} has met {gpu.ecc_errors} uncorrected memory errors since the driver started",
            "answers may be wrong, and the next one ends the job",
            f"Have it reset or replaced; {out}",
        )
    if gpu.mig:
        yield Advice(
            f"{name} is cut into MIG instances",
            "an instance has a part of the GPU, and no way to any other GPU",
            "Use parallel.data with an instance each, or have MIG switched off",
        )


def _variables(env: Mapping[str, str], gpus: int) -> Iterator[Advice]:
    for name, costs in DISABLED.items():
        if env.get(name, "0").strip() not in ("", "0"):
            yield Advice(
                f"{name}={env[name]} is set", costs, f"Unset {name} unless it works around a fault"
            )
    if env.get("NCCL_LAUNCH_MODE", "").upper() == "GROUP" and gpus > 1:
        yield Advice(
            "NCCL_LAUNCH_MODE=GROUP is set",
            "a launch waits for the process's other device threads, which can deadlock while they "
            "capture graphs",
            "Unset it, or set it to PARALLEL",
        )
