"""The plan: which device holds which part of the model, what it costs, and why a layout is refused.

The only place that computes coordinates. It is made from the configuration and the `Arch` alone,
loads nothing, and goes to every rank; `commands/plan.py` prints it, `device` builds by it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ftjob.checkpoint.shard import Placed, TensorRule, place
from ftjob.config.groups import JobConfig
from ftjob.errors import ConfigError
from ftjob.model.arch import Arch
from ftjob.model.fill import step_of
from ftjob.plan_generation import Generation, plan_generation, slots_of
from ftjob.plan_memory import score_bytes, workspace_bytes

DTYPE_BYTES = MappingProxyType({"f32": 4, "bf16": 2, "f16": 2})
# Tokens of a batch: for a replica of one stage, and the least that pipelining makes of it. A CPU
# is as fast with 512 as with 2048, and 8 % slower with 256 (demo model over LAMBADA).
AUTO_TOKENS = MappingProxyType({"cpu": (2048, 512), "cuda": (16384, 2048)})
# The same where one replica on GPUs scores rows: of 16384 to 67584 the fastest for GPT-345M over
# LAMBADA on an H200, 2 % less time than 16384 (eval/reports/h200-notes). Several replicas share a
# set out more evenly by the smaller ones.
SCORED_TOKENS = 33792


@dataclass(frozen=True)
class Machine:
    """What the plan must know of the machines: ranks, devices of each, memory of one device."""

    devices_of_rank: tuple[int, ...]
    device: str
    memory_bytes: int
    memory_source: str

    @property
    def ranks(self) -> int:
        """Number of ranks, one a node."""
        return len(self.devices_of_rank)


@dataclass(frozen=True)
class DeviceSpec:
    """One device: where it is, its coordinates in the mesh, and what it holds.

    Layers are first_layer <= i < last_layer, those of an encoder likewise.
    """

    index: int
    rank: int
    local: int
    data: int
    pipeline: int
    tensor: int
    first_layer: int
    last_layer: int
    first_encoder: int
    last_encoder: int
    first: bool
    last: bool
    weight_bytes: int
    cache_bytes_per_token: int

    @property
    def answers(self) -> bool:
        """Whether this device gives its replica's answers; its tensor group has the same ones."""
        return self.last and self.tensor == 0


@dataclass(frozen=True)
class Plan:
    """The whole layout. `devices` are in mesh order: tensor fastest, then pipeline, then data. A
    batch has `max_tokens` at most; on a GPU it is filled up by `pass_step` (`model.fill`)."""

    tensor: int
    pipeline: int
    data: int
    machine: Machine
    devices: tuple[DeviceSpec, ...]
    max_tokens: int
    pass_step: int
    workspace_bytes: int
    generation: Generation | None = None

    def of_rank(self, rank: int) -> list[DeviceSpec]:
        """The devices of one rank, in local order."""
        return sorted((d for d in self.devices if d.rank == rank), key=lambda d: d.local)

    def ranks_of_replica(self, replica: int) -> list[int]:
        """The ranks that have devices of a replica, in order."""
        return sorted({d.rank for d in self.devices if d.data == replica})

    def rows_that_fit(self, tokens_per_row: int) -> int:
        """Rows of that length whose cache fits beside weights and workspace, on every device. Where
        rows are continued, one micro-batch at a time has attention scores besides."""
        if tokens_per_row < 1:
            raise ValueError("tokens_per_row must be at least 1")
        scores = 0 if self.generation is None else self.generation.score_bytes
        free = [
            self.machine.memory_bytes - d.weight_bytes - self.workspace_bytes for d in self.devices
        ]
        return min(
            max(0, f)
            * self.pipeline
            // ((d.cache_bytes_per_token * self.pipeline + scores) * tokens_per_row)
            for f, d in zip(free, self.devices, strict=True)
        )

    def row_tokens(self, input_len: int, output_len: int) -> int:
        """Tokens of a row that the cache holds: each beam has new ones of its own, and goes on
        making them until the row is seen to be finished."""
        room = self.generation
        return input_len + (output_len if room is None else room.beams * output_len + room.overrun)

    def bytes_taken(self, rows: int, tokens_per_row: int) -> int:
        """What the fullest device holds with so many rows of a replica at work: weights, workspace,
        and the rows' cache and attention scores, as `rows_that_fit` counts them."""
        scores = 0 if self.generation is None else self.generation.score_bytes // self.pipeline
        return max(
            d.weight_bytes
            + self.workspace_bytes
            + rows * tokens_per_row * (d.cache_bytes_per_token + scores)
            for d in self.devices
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for plan.json."""
        return dataclasses.asdict(self)


def make_plan(
    config: JobConfig, arch: Arch, rules: tuple[TensorRule, ...], machine: Machine
) -> Plan:
    """The layout of `arch` over `machine`.

    Raises:
        ConfigError: by name, with the numbers and the legal choices, where it is impossible.
    """
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    check_model_split(arch, tensor, pipeline)
    data = _replicas(config, machine, tensor * pipeline)
    _check_launch_mode(config, machine)
    _check_replicas_fit_nodes(machine, tensor * pipeline)
    dtype_bytes = DTYPE_BYTES[config.model.dtype]
    int8 = config.model.weights == "int8"
    stages = []
    for stage, (layers, encoder) in enumerate(
        zip(
            layer_spans(arch.layers, pipeline),
            layer_spans(arch.encoder_layers, pipeline),
            strict=True,
        )
    ):
        first, last = stage == 0, stage == pipeline - 1
        held = place(rules, layers, encoder, first=first, last=last)
        stages.append((layers, encoder, weight_bytes(held, tensor, dtype_bytes, int8)))
    seats = [(rank, local) for rank, n in enumerate(machine.devices_of_rank) for local in range(n)]
    devices = []
    for index in range(tensor * pipeline * data):
        rank, local = seats[index]
        stage = (index // tensor) % pipeline
        layers, encoder, weights = stages[stage]
        devices.append(
            DeviceSpec(
                index=index,
                rank=rank,
                local=local,
                data=index // (tensor * pipeline),
                pipeline=stage,
                tensor=index % tensor,
                first_layer=layers[0],
                last_layer=layers[1],
                first_encoder=encoder[0],
                last_encoder=encoder[1],
                first=stage == 0,
                last=stage == pipeline - 1,
                weight_bytes=weights,
                # keys and values of each layer: of a token behind it, or of one of the source
                cache_bytes_per_token=2
                * (layers[1] - layers[0])
                * (arch.width // tensor)
                * dtype_bytes,
            )
        )
    generates = config.dataset.generates
    slots, beams = slots_of(config, machine.device) if generates else 0, config.decode.lanes
    about = (config, arch, dtype_bytes, machine.device)

    def room(tokens: int) -> int:
        return workspace_bytes(*about, tokens, slots * beams)

    free = machine.memory_bytes - max(d.weight_bytes for d in devices)
    max_tokens = _batch_tokens(config, machine, data, lambda tokens: room(tokens) <= free)
    workspace, generation = room(max_tokens), None
    if generates:
        scores = score_bytes(arch, tensor, beams, dtype_bytes, machine.device)
        generation = plan_generation(config, machine, devices, workspace, slots, scores)
    step = step_of(arch, tensor * pipeline, max_tokens) if machine.device == "cuda" else 0
    return Plan(
        tensor, pipeline, data, machine, tuple(devices), max_tokens, step, workspace, generation
    )


def stage_tensors(rules: tuple[TensorRule, ...], device: DeviceSpec) -> list[Placed]:
    """The tensors `device` holds a part of, in reading order."""
    layers = (device.first_layer, device.last_layer)
    encoder = (device.first_encoder, device.last_encoder)
    return place(rules, layers, encoder, first=device.first, last=device.last)


def weight_bytes(held: list[Placed], ways: int, dtype_bytes: int, int8: bool) -> int:
    """Bytes of weights one tensor rank holds of `held`."""
    return sum(p.rule.parameter_bytes(ways, dtype_bytes, int8) for p in held)


def layer_spans(layers: int, stages: int) -> list[tuple[int, int]]:
    """Consecutive layers per stage; where they do not divide, the first stages take one more
    (the last one computes the head besides)."""
    size, extra = divmod(layers, stages)
    bounds = [s * size + min(s, extra) for s in range(stages + 1)]
    return list(itertools.pairwise(bounds))


def check_model_split(arch: Arch, tensor: int, pipeline: int) -> None:
    """Refuse splits the model's shape does not allow.

    Raises:
        ConfigError: with the number that does not divide and the legal choices.
    """
    for what, number in (("attention heads", arch.heads), ("MLP columns", arch.ffn)):
        if number % tensor:
            legal = [
                t for t in range(1, arch.heads + 1) if arch.heads % t == 0 and arch.ffn % t == 0
            ]
            raise ConfigError(
                f"parallel.tensor={tensor}: the model's {number} {what} do not "
                f"divide by {tensor}. Legal: {_listed(legal)}."
            )
    stacks = {"decoder layers": arch.layers, "encoder layers": arch.encoder_layers}
    for what, number in (stacks if arch.seq2seq else {"layers": arch.layers}).items():
        if pipeline > number:
            most = min(stacks.values()) if arch.seq2seq else number
            raise ConfigError(
                f"parallel.pipeline={pipeline}: the model has {number} {what}, and "
                f"a stage takes at least one. Legal: 1 to {most}."
            )


def check_length(arch: Arch, tokens: int, what: str) -> None:
    """Refuse sequences longer than the position table, where there is one.

    Raises:
        ConfigError: with both numbers.
    """
    if arch.positions is not None and tokens > arch.positions:
        raise ConfigError(f"{what} = {tokens} tokens: the model has {arch.positions} positions.")


def _batch_tokens(
    config: JobConfig, machine: Machine, data: int, fits: Callable[[int], bool]
) -> int:
    """Tokens of a batch: as configured, or by device and, where one replica scores, by what `fits`
    beside the weights. Stages share a batch out among each other only where there are several, so
    auto makes smaller ones for more stages."""
    wanted = config.batch.max_tokens
    if isinstance(wanted, int):
        return wanted
    whole, least = AUTO_TOKENS[machine.device]
    stages = config.parallel.pipeline
    if machine.device == "cuda" and data == 1 and not config.dataset.generates:
        larger = max(least, SCORED_TOKENS // stages)
        if fits(larger):
            return larger
    return max(least, whole // stages)


def _replicas(config: JobConfig, machine: Machine, per_replica: int) -> int:
    """The number of replicas, or the refusal of a world that is not T x P x D."""
    total, data = sum(machine.devices_of_rank), config.parallel.data
    sizes = (
        f"parallel.tensor={config.parallel.tensor} x parallel.pipeline={config.parallel.pipeline}"
    )
    each = _listed(sorted(set(machine.devices_of_rank)))
    world = f"{_count(total, 'device')} ({_count(machine.ranks, 'rank')} of {each})"
    if data == "auto":
        if total % per_replica or total < per_replica:
            legal = [n for n in range(1, total + 1) if total % n == 0]
            least = per_replica // math.gcd(per_replica, machine.ranks)
            raise ConfigError(
                f"{sizes} = {per_replica}: does not divide the {world}. Legal "
                f"products: {_listed(legal)}; or set cluster.devices_per_node={least} or a "
                "multiple of that."
            )
        return total // per_replica
    assert isinstance(data, int)
    if per_replica * data != total:
        raise ConfigError(
            f"{sizes} x parallel.data={data} = {per_replica * data}: the job has "
            f"{world}. Use parallel.data=auto, or set cluster.devices_per_node "
            f"(and cluster.nodes) to match."
        )
    return data


def _check_replicas_fit_nodes(machine: Machine, per_replica: int) -> None:
    """Nodes of unequal size serve data parallel only: every replica within one node."""
    if len(set(machine.devices_of_rank)) == 1:
        return
    for rank, count in enumerate(machine.devices_of_rank):
        if count % per_replica:
            raise ConfigError(
                f"cluster.devices_per_node={list(machine.devices_of_rank)}: node {rank} has "
                f"{count} devices, and a replica takes {per_replica}. With nodes of unequal size "
                "every replica must fit within a node."
            )


def _check_launch_mode(config: JobConfig, machine: Machine) -> None:
    """Refuse what can deadlock: with GROUP a launch waits on the host for the process's other
    device threads, and one that captures a graph does not come there. Scoring captures nothing."""
    split = config.parallel.tensor * config.parallel.pipeline > 1
    several = machine.device == "cuda" and max(machine.devices_of_rank) > 1
    captures = config.dataset.generates and split and several
    if captures and config.cluster.nccl_launch_mode == "GROUP":
        raise ConfigError(
            "cluster.nccl_launch_mode=GROUP: a launch then waits for the rank's other device "
            "threads, and decode steps are captured as graphs, each thread by itself, so they can "
            "wait for each other for ever. Use PARALLEL, or one GPU a rank."
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:16])) + (", ..." if len(numbers) > 16 else "")
