"""`doctor`: look at this machine as a job would find it, and end with warnings that say what to
change.

One process: versions, cores, GPUs and their links, what they can do alone and together, MPI, Slurm
and room on disk. With doctor.out all of it goes to JSON, and with it the rates to predict from.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftjob.commands.bench import out_file
from ftjob.commands.layout import columns, size
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.environment import describe
from ftjob.errors import BUG, DONE, ConfigError
from ftjob.launch.advice import Advice, CopyRate, advise
from ftjob.launch.site import Site, advise_on, look_around
from ftjob.launch.topology import Gpu, Topology, core_ranges, look
from ftjob.launch.world import (
    detect_world,
    make_machine,
    set_gpu_environment,
    set_thread_environment,
)
from ftjob.plan import Machine
from ftjob.results.folder import write_json

if TYPE_CHECKING:
    from ftjob.bench.examine import Examined


def main(overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    """Print what this machine is and what is wrong with it. Returns the exit code, 1 where
    something is broken.

    Raises:
        ConfigError: for devices that are not there, or under a launcher.
    """
    world = detect_world(os.environ)
    if world.size > 1:
        raise ConfigError(
            f"doctor under {world.launcher} with {world.size} ranks: it is one process, with a "
            "thread for each of cluster.devices_per_node. Start it without the launcher, on each "
            "node by itself."
        )
    config = compose(overrides, config_dirs)
    out = out_file("doctor.out", config.doctor.out)
    asked = dict(os.environ)  # what the user set, before ours is added
    machine = make_machine(config.cluster, world, os.environ)
    seen = look(os.environ)  # before our own contexts take memory
    site = look_around(config)
    set_thread_environment(machine.devices_of_rank[0], os.environ)
    set_gpu_environment(machine, config.cluster.nccl_launch_mode, os.environ)
    print("ftjob: measuring, some seconds a group size", file=sys.stderr, flush=True)
    from ftjob.bench.examine import examine, library_versions
    from ftjob.device import DTYPES

    found = examine(config, machine, DTYPES[config.model.dtype])
    seen = seen.with_peers(found.peers)
    copies = copy_rates(found) if machine.device == "cuda" else []
    advice = [
        *advise(seen, asked, groups_of(config, machine), copies, socket.gethostname()),
        *advise_on(site, config),
    ]
    environment = describe(os.environ)
    versions = {
        "ftjob": environment["packages"].get("ftjob"),
        "python": environment["python"],
        **library_versions(),
        "driver": seen.driver,
    }
    sections = (
        _host(environment, versions, seen),
        _gpus(seen),
        _measured(found, config.model.dtype),
        _around(site, config),
        _verdict(found, advice),
    )
    print("\n\n".join("\n".join(lines) for lines in sections if lines), flush=True)
    if out is not None:
        write_json(
            out,
            {
                **found.rates(),
                "dtype": config.model.dtype,  # of the product
                "environment": environment,
                "versions": versions,
                "topology": seen.as_dict(),
                "devices": [{"device": i, **c.as_dict()} for i, c in found.ceilings.items()],
                "copies": [sent.as_dict() for sent in found.sent],
                "groups": [{"devices": g, **r.as_dict()} for g, r in found.reduced],
                "site": site.as_dict(),
                "warnings": [a.as_dict() for a in advice],
                "broken": found.broken,
            },
        )
    return BUG if found.broken else DONE


def groups_of(config: JobConfig, machine: Machine) -> list[range]:
    """The GPUs that share a layer, by the layout, or all of them where it has no such groups: then
    the question is what they could share."""
    if machine.device != "cuda":
        return []
    devices = machine.devices_of_rank[0]
    ways = config.parallel.tensor if config.parallel.tensor > 1 else devices
    return [range(first, min(first + ways, devices)) for first in range(0, devices, ways)]


def copy_rates(found: Examined) -> list[CopyRate]:
    """The copies of the largest size that was tried."""
    most = max((sent.bytes for sent in found.sent), default=0)
    return [CopyRate(s.source, s.target, s.bytes_s) for s in found.sent if s.bytes == most]


def _host(
    environment: dict[str, Any], versions: dict[str, str | None], seen: Topology
) -> list[str]:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    total, free = (
        1024 * int(match.group(1)) if (match := re.search(rf"{name}:\s+(\d+)", text)) else 0
        for name in ("MemTotal", "MemAvailable")
    )
    return [
        f"host       {environment['host']}, {environment['platform']}",
        f"versions   {', '.join(f'{n} {v}' for n, v in versions.items() if v is not None)}",
        f"cores      {len(seen.cores)} of {os.cpu_count()} ({core_ranges(seen.cores)}), "
        f"{environment['cpu']}",
        f"memory     {size(free)} free of {size(total)}",
        *(
            f"variable   {name}={value}"
            for name, value in environment["variables"].items()
            if name.startswith(("NCCL_", "TORCH_NCCL_", "CUDA_"))
        ),
    ]


def _gpus(seen: Topology) -> list[str]:
    """The table of GPUs, and the matrix of their links."""
    if not seen.gpus:
        return ["GPUs       none are visible"]
    head = ["GPU", "name", "bus", "NUMA", "cores", "PCIe", "free", "of", "mode", "ECC", "MIG"]
    lines = columns([head, *map(_gpu, seen.gpus)])
    if len(seen.gpus) == 1:
        return lines
    matrix = [["", *(f"GPU{g.index}" for g in seen.gpus), "peer access"]]
    for gpu in seen.gpus:
        pairs = [seen.pair(gpu.index, other.index) for other in seen.gpus]
        reach = [str(o.index) for o, p in zip(seen.gpus, pairs, strict=True) if p and p.peer]
        links = ["X" if p is None else p.link for p in pairs]
        matrix.append([f"GPU{gpu.index}", *links, ", ".join(reach) or "-"])
    legend = (
        "NV: NVLinks; over PCIe: PIX one switch, PXB several, PHB a host bridge, NODE host "
        "bridges of a NUMA node, SYS between NUMA nodes"
    )
    return [*lines, "", *columns(matrix), legend]


def _gpu(gpu: Gpu) -> list[str]:
    def told(value: Any) -> str:
        return "?" if value is None else str(value)

    width = f"gen {told(gpu.pcie_generation)} x{told(gpu.pcie_width)}"
    most = f"gen {told(gpu.pcie_max_generation)} x{told(gpu.pcie_max_width)}"
    return [
        str(gpu.index),
        told(gpu.name),
        told(gpu.bus_id),
        told(gpu.numa_node),
        "?" if gpu.cores is None else core_ranges(gpu.cores),
        width if width == most else f"{width} of {most}",
        "?" if gpu.free_bytes is None else size(gpu.free_bytes),
        "?" if gpu.total_bytes is None else size(gpu.total_bytes),
        told(gpu.compute_mode),
        told(gpu.ecc_errors),
        {True: "on", False: "off", None: "?"}[gpu.mig],
    ]


def _measured(found: Examined, dtype: str) -> list[str]:
    """Ceilings, what goes from one device to another, and all-reduces."""
    lines = [
        f"device {local:<3} copy {size(int(c.copy_bytes_s))}/s, {dtype} product of "
        f"{c.product_side} x {c.product_side} {c.product_flop_s / 1e12:.4g} TFLOP/s"
        for local, c in sorted(found.ceilings.items())
    ]
    if found.sent:
        table = [["from", "to", "bytes", "us", "rate"]]
        for s in found.sent:
            ends = [str(s.source), str(s.target)]
            table.append([*ends, size(s.bytes), _us(s.seconds), f"{size(int(s.bytes_s))}/s"])
        lines += ["", *columns(table)]
    if found.reduced:
        table = [["all-reduce over", "bytes", "us", "a link"]]
        for group, r in found.reduced:
            rate = f"{size(int(r.bus_bytes_s))}/s"
            table.append([", ".join(map(str, group)), size(r.bytes), _us(r.seconds), rate])
        lines += ["", *columns(table)]
    return lines


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.4g}"


def _around(site: Site, config: JobConfig) -> list[str]:
    def room(count: int | None) -> str:
        return "?" if count is None else f"{size(count)} free"

    known = f"; srun --mpi: {', '.join(site.mpi_kinds)}" if site.mpi_kinds else ""
    suits = "" if site.suits is None else f" (srun --mpi={site.suits})"
    return [
        f"MPI        {site.mpi_library or 'no library found'}{suits}",
        f"Slurm      {site.slurm or 'no sbatch on PATH'}{known}; cluster.mpi={config.cluster.mpi}",
        f"/dev/shm   {room(site.shm_bytes)}",
        f"runs       below {site.folder}, {room(site.disk_bytes)}"
        f"{'' if site.writable else ', not writable'}",
    ]


def _verdict(found: Examined, advice: Sequence[Advice]) -> list[str]:
    count = len(advice)
    return [
        *(f"broken: {told}" for told in found.broken),
        *(f"warning: {one}" for one in advice),
        f"{count or 'no'} warning{'' if count == 1 else 's'}",
    ]
