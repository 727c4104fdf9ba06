"""The group `cluster`: where the job runs, and what Slurm is asked for where it is submitted.

`launch/world.py` makes the machine of a run out of it, `launch/slurm.py` the batch script.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ftjob.config.keys import Rule, at_least, between, key, positive

MOST_DEVICES = 1024
# sbatch's own forms: minutes, M:S, H:M:S, days-hours and so on.
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")


def _one_line(value: Any) -> bool:
    words = value if isinstance(value, tuple) else (value,)
    return all(word.isprintable() and word != "" for word in words)


# A line break would end a line of the batch script, and begin a command there.
ONE_LINE = Rule("one line, not empty", _one_line)
TIME = Rule("minutes, H:MM:SS or D-HH:MM:SS", lambda v: _TIME.fullmatch(v) is not None)


@dataclass(frozen=True)
class ClusterConfig:
    """Where the job runs."""

    name: Literal["local", "slurm"] = key(
        "local",
        "local: here, or as the ranks that mpirun or srun started; slurm: submitted as a job",
    )
    nodes: Literal["auto"] | int = key(
        "auto",
        "nodes, one rank each; auto is the number of ranks started, or 1 for a job to submit",
        rule=between(1, 65536),
    )
    device: Literal["auto", "cpu", "cuda"] = key("auto", "auto is cuda where a GPU is visible")
    devices_per_node: Literal["auto"] | int | tuple[int, ...] = key(
        "auto",
        f"devices of a node, from 1 to {MOST_DEVICES}, or a list with a number per node; auto is "
        "the visible GPUs, else 1",
    )
    memory_gb: Literal["auto"] | float = key(
        "auto",
        "memory of one device, in 1e9 bytes, that plan may fill; auto asks this machine",
        rule=positive(1_000_000),
    )
    time: str | None = key(None, "slurm: time limit; null is the partition's own", rule=TIME)
    partition: str | None = key(None, "slurm: partition", rule=ONE_LINE)
    account: str | None = key(None, "slurm: account", rule=ONE_LINE)
    qos: str | None = key(None, "slurm: quality of service", rule=ONE_LINE)
    constraint: str | None = key(None, "slurm: features the nodes must have", rule=ONE_LINE)
    exclude: str | None = key(None, "slurm: nodes not to use", rule=ONE_LINE)
    gpus_per_node: int | None = key(
        None,
        "slurm: GPUs of a node to ask for; null is devices_per_node with cluster.device=cuda, "
        "else none",
        rule=at_least(1),
    )
    cpus_per_node: int | None = key(None, "slurm: cores of a node to ask for", rule=at_least(1))
    mem_per_node_gb: int | None = key(
        None, "slurm: host memory of a node to ask for", rule=at_least(1)
    )
    exclusive: bool = key(False, "slurm: whole nodes")
    mail_user: str | None = key(None, "slurm: whom to mail", rule=ONE_LINE)
    mail_type: str | None = key(None, "slurm: when to mail, such as END,FAIL", rule=ONE_LINE)
    comment: str | None = key(None, "slurm: a comment on the job", rule=ONE_LINE)
    nccl_launch_mode: Literal["PARALLEL", "GROUP"] = key(
        "PARALLEL",
        "NCCL_LAUNCH_MODE, where your environment does not set it; GROUP is refused where device "
        "threads of one rank capture graphs with NCCL in them",
    )
    mpi: str = key(
        "pmi2",
        "slurm: srun's --mpi; pmi2 for mpich and Intel MPI, pmix for Open MPI",
        rule=ONE_LINE,
    )
    srun_args: tuple[str, ...] | None = key(
        None, "slurm: further words for srun, such as [--cpu-bind=none]", rule=ONE_LINE
    )
    follow: bool = key(
        True, "slurm: follow the job to its end; Ctrl-C leaves it running. false: only submit"
    )

    @property
    def nodes_to_submit(self) -> int:
        """Nodes of a job to be submitted."""
        if isinstance(self.nodes, int):
            return self.nodes
        return len(self.devices_per_node) if isinstance(self.devices_per_node, tuple) else 1

    @property
    def gpus_to_submit(self) -> int | None:
        """GPUs of each node that a job to be submitted asks for."""
        if self.gpus_per_node is None and self.device == "cuda":
            if isinstance(self.devices_per_node, int):
                return self.devices_per_node
            if isinstance(self.devices_per_node, tuple):
                return max(self.devices_per_node)
        return self.gpus_per_node
