"""Who started this process, before MPI is touched: rank and world size from the environment, and
what devices this machine shows. `commands` make a `Machine` for the plan out of it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftjob.config.groups import ClusterConfig
from ftjob.errors import ConfigError, WrongWorld
from ftjob.launch.nvml import free_bytes, visible_names
from ftjob.plan import Machine

# How long a thread waits for the interpreter until it asks for it. A device's thread lets go of it
# in every operation, and must not wait as long each time while the main thread writes answers.
SWITCH_S = 1e-4
# Of a GPU's free memory: what CUDA, its libraries and captured steps take before any tensor of
# ours, and the share of the rest that is planned with, for the allocator's gaps.
GPU_CONTEXT_BYTES, GPU_SHARE = 1_500_000_000, 0.95
ASSUMED_GPU_BYTES = 80_000_000_000


@dataclass(frozen=True)
class World:
    """This process's place among those started together."""

    rank: int
    size: int
    launcher: str


def detect_world(env: Mapping[str, str]) -> World:
    """Rank and size as mpirun or srun announce them; one rank where nothing does.

    Raises:
        ConfigError: where a variable holds no number.
        WrongWorld: where Slurm started more tasks than there are ranks.
    """
    candidates = [
        ("mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("mpirun (PMI)", "PMI_RANK", "PMI_SIZE"),
    ]
    if "SLURM_STEP_ID" in env:  # a batch script has SLURM_NTASKS too, but is no step
        candidates.append(("srun", "SLURM_PROCID", "SLURM_NTASKS"))
    for launcher, rank, size in candidates:
        if rank in env and size in env:
            try:
                return _whole(World(int(env[rank]), int(env[size]), launcher), env)
            except ValueError:
                raise ConfigError(
                    f"{rank}={env[rank]!r}, {size}={env[size]!r}: the launcher's "
                    "variables must hold numbers."
                ) from None
    return World(0, 1, "none")


def _whole(world: World, env: Mapping[str, str]) -> World:
    """The world, if it is not a part of a Slurm step: the rest would hold nodes and do nothing."""
    tasks = env.get("SLURM_NTASKS", "") if "SLURM_STEP_ID" in env else ""
    if tasks.isdigit() and world.size < int(tasks):
        raise WrongWorld(
            f"SLURM_NTASKS={tasks}, but {world.launcher} started {world.size} "
            f"rank{'s' if world.size > 1 else ''}: the other tasks would do nothing. Start a rank "
            "for every task, or ask for fewer."
        )
    return world


def visible_gpus(env: Mapping[str, str]) -> int:
    """GPUs this process may use, without importing torch."""
    named = visible_names(env)
    if named is not None:
        return len(named)
    return len([d for d in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", d.name)])


def make_machine(
    cluster: ClusterConfig,
    world: World,
    env: Mapping[str, str],
    *,
    gpus_of_rank: Sequence[int] | None = None,
    free_of_rank: Sequence[Sequence[int] | None] | None = None,
    for_plan: bool = False,
) -> Machine:
    """The machines of this job. `gpus_of_rank` is what each rank found, `free_of_rank` the bytes
    that are free on each of its GPUs, None where nobody there says; without them this machine
    stands for all. A plan may ask for other machines than this one.

    Raises:
        ConfigError: where cluster.* and the started world or the visible GPUs disagree.
    """
    gpus_of_rank = gpus_of_rank or (visible_gpus(env),) * world.size
    gpus = min(gpus_of_rank)
    device = (
        cluster.device if cluster.device != "auto" else ("cuda" if max(gpus_of_rank) else "cpu")
    )
    per_node = cluster.devices_per_node
    nodes = world.size if cluster.nodes == "auto" else cluster.nodes
    assert isinstance(nodes, int)
    if isinstance(per_node, tuple):
        if cluster.nodes == "auto" and for_plan:
            nodes = len(per_node)
        if len(per_node) != nodes or min(per_node) < 1:
            raise ConfigError(
                f"cluster.devices_per_node={list(per_node)}: must name at least one "
                f"device for each of the {nodes} nodes."
            )
        counts = per_node
    else:
        if isinstance(per_node, int):
            counts = (per_node,) * nodes
        elif device == "cuda" and not for_plan:
            counts = tuple(gpus_of_rank)
        else:
            counts = (max(1, gpus * (device == "cuda")),) * nodes
    if not for_plan:
        if device == "cuda" and not gpus:
            blind = list(gpus_of_rank).index(0)
            raise ConfigError(
                f"cluster.device=cuda: 0 GPUs are visible to rank {blind}; use cluster.device=cpu."
            )
        if nodes != world.size:
            raise ConfigError(
                f"cluster.nodes={nodes}: this job was started with {world.size} "
                f"rank{'s' if world.size > 1 else ''} (launcher: {world.launcher}). "
                f"Start it with mpirun -n {nodes} or srun -N {nodes} -n {nodes}."
            )
        for rank, (wanted, found) in enumerate(zip(counts, gpus_of_rank, strict=False)):
            if device == "cuda" and wanted > found:
                raise ConfigError(
                    f"cluster.devices_per_node={wanted}: {found} GPUs are visible to rank {rank}."
                )
    if not isinstance(cluster.memory_gb, str):
        memory, source = int(cluster.memory_gb * 1e9), "cluster.memory_gb"
    elif device == "cpu":
        memory, source = _host_memory(max(counts))
    else:
        memory, source = _gpu_memory(counts, free_of_rank or [free_bytes(env)])
    return Machine(tuple(counts), device, memory, source)


def _host_memory(devices: int) -> tuple[int, str]:
    """Bytes that each of so many CPU devices may fill, and where the number comes from."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    total = int(found.group(1)) * 1024 if found else 8_000_000_000
    return total // devices, "this machine's free memory shared by its devices"


def _gpu_memory(
    counts: Sequence[int], free_of_rank: Sequence[Sequence[int] | None]
) -> tuple[int, str]:
    """Bytes that a GPU may fill, and where the number comes from: all are planned alike, so it is
    the fullest that counts, of those that are used and of which something is known."""
    used = zip(counts, free_of_rank, strict=False)
    least = [(min(free[:n]), rank) for rank, (n, free) in enumerate(used) if free]
    if not least:
        return ASSUMED_GPU_BYTES, "assumed; set cluster.memory_gb"
    free, rank = min(least)
    whose = f"rank {rank}'s fullest GPU" if len(free_of_rank) > 1 else "this node's fullest GPU"
    usable = max(0, int(GPU_SHARE * (free - GPU_CONTEXT_BYTES)))
    return usable, f"free on {whose}, but for a reserve"


def set_thread_environment(devices: int, env: MutableMapping[str, str]) -> None:
    """Share this process's cores among the `devices` that run on them, and its interpreter among
    their threads. To be called before torch is imported, whose OpenMP reads the variables once; the
    user's own settings stand.

    Waiting threads sleep instead of spinning: on cores shared with other work, spinning made
    scoring over four times slower (882 against 3850 tokens/s), on free cores it gains nothing.
    """
    cores = len(os.sched_getaffinity(0))
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // devices)))
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.setswitchinterval(SWITCH_S)


def set_gpu_environment(machine: Machine, launch_mode: str, env: MutableMapping[str, str]) -> None:
    """What NCCL and CUDA shall know on GPUs; nothing on CPUs. To be called before torch is
    imported; the user's own settings stand.

    Torch's watchdog would end the process over a collective that takes long: ftjob's own deadlines
    end the job with a cause. Streams of several threads need more than 8 hardware queues, and CUDA
    shall count GPUs as NVML and nvidia-smi do.
    """
    if machine.device != "cuda":
        return
    env.setdefault("NCCL_LAUNCH_MODE", launch_mode)
    env.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    env.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    env.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    env.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
