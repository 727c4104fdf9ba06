"""`plan`: the page that says where everything would lie, before anything runs or loads.

Prints the mesh, bytes of weights and cache per device, and the largest batch that fits; also for
machines far larger than this one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.job import ModelSource, open_model, shape_arch
from ftjob.launch.world import detect_world, make_machine
from ftjob.model.arch import Arch
from ftjob.model.families import family
from ftjob.plan import Plan, check_length, make_plan


def main(overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    """Print the plan of a configuration. Returns the exit code."""
    config = compose(overrides, config_dirs)
    machine = make_machine(config.cluster, detect_world(os.environ), os.environ, for_plan=True)
    source = planned_model(config)
    check_length(
        source.arch,
        config.plan.input_len + config.plan.output_len,
        f"plan.input_len={config.plan.input_len} + plan.output_len={config.plan.output_len}",
    )
    plan = make_plan(config, source.arch, source.rules, machine)
    print(render(config, source, plan), end="")
    return 0


def planned_model(config: JobConfig) -> ModelSource:
    """The model to plan: its shape from conf/ where that is whole, else from the checkpoint.

    A plan needs no weights, so a hub id is not looked up as long as conf/ knows the shape.
    """
    model = config.model
    arch = model.arch
    if None in (arch.layers, arch.heads, arch.hidden, arch.vocab, arch.positions):
        return open_model(config)
    shape = shape_arch(model.family, arch)
    return ModelSource(shape, family(model.family).tensors(shape), None, model.checkpoint, ())


def render(config: JobConfig, source: ModelSource, plan: Plan) -> str:
    """The page, as text."""
    arch, machine = source.arch, plan.machine
    lengths = config.plan.input_len + config.plan.output_len
    rows = plan.rows_that_fit(lengths)
    lines = [
        f"model      {config.model.name} ({arch.family}): {source.parameters / 1e6:,.1f} M "
        f"parameters, {config.model.dtype}, weights {config.model.weights}",
        f"shape      {arch.layers} layers, {arch.heads} heads of {arch.head_size}, hidden "
        f"{arch.hidden}, MLP {arch.ffn}, vocabulary {arch.vocab}, {arch.positions} positions",
        f"mesh       tensor {plan.tensor} x pipeline {plan.pipeline} x data {plan.data} = "
        f"{len(plan.devices)} {machine.device} devices on {machine.ranks} "
        f"rank{'s' if machine.ranks > 1 else ''}",
        f"memory     {_size(machine.memory_bytes)} a device ({machine.memory_source})",
        "",
        *_stage_table(plan, lengths),
        "",
        f"workspace  {_size(plan.workspace_bytes)} a device for batches of {plan.max_tokens} "
        "tokens (estimate)",
        _batch_line(config, plan, rows, lengths, arch),
    ]
    return "\n".join(lines) + "\n"


def _stage_table(plan: Plan, lengths: int) -> list[str]:
    """A line per stage: layers, devices, ranks, bytes."""
    head = ["stage", "layers", "holds", "devices", "ranks", "weights", "cache/row"]
    table = [head]
    for stage in range(plan.pipeline):
        members = [d for d in plan.devices if d.pipeline == stage]
        one = members[0]
        ends = [word for word, there in (("embedding", one.first), ("head", one.last)) if there]
        table.append(
            [
                str(stage),
                f"{one.first_layer}-{one.last_layer - 1}",
                "+".join(ends) or "-",
                _ranges([d.index for d in members]),
                _ranges(sorted({d.rank for d in members})),
                _size(one.weight_bytes),
                _size(one.cache_bytes_per_token * lengths),
            ]
        )
    widths = [max(len(row[c]) for row in table) for c in range(len(head))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _batch_line(config: JobConfig, plan: Plan, rows: int, lengths: int, arch: Arch) -> str:
    shape = f"{config.plan.input_len} + {config.plan.output_len} tokens"
    if rows:
        return (
            f"batch      {rows:,} rows of {shape} fit a replica; {rows * plan.data:,} rows in "
            "flight"
        )
    worst = max(plan.devices, key=lambda d: d.weight_bytes)
    need = worst.weight_bytes + plan.workspace_bytes + worst.cache_bytes_per_token * lengths
    return (
        f"batch      does not fit: one row of {shape} needs {_size(need)} on the fullest "
        f"device, which has {_size(plan.machine.memory_bytes)}. Raise parallel.tensor or "
        "parallel.pipeline, or lower batch.max_tokens."
    )


def _ranges(numbers: list[int]) -> str:
    """0,1,2,8,9 as 0-2,8-9, shortened when long."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    return ",".join(texts) if len(texts) <= 4 else f"{','.join(texts[:3])},..,{texts[-1]}"


def _size(count: int) -> str:
    """Bytes with a decimal unit."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if unit != "B" else f"{count} B"
