"""`plan`: the page that says where everything would lie, before anything runs or loads.

Prints the mesh, bytes of weights and cache per device, the largest batch that fits, and predicted
times; also for machines far larger than this one. With cluster=slurm the batch script too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime

from ftjob.commands.layout import columns, parameters, size
from ftjob.commands.plan_speed import search_page, speed_lines
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.config.shape import missing_sizes
from ftjob.job import ModelSource, open_model, shape_source
from ftjob.launch.slurm import batch_script, machine_to_submit
from ftjob.launch.world import detect_world, make_machine
from ftjob.model.arch import Arch
from ftjob.pipeline import equal_bubble, stage_costs, steady_bubble, wanted_share
from ftjob.plan import Machine, Plan, check_length, layer_spans, make_plan
from ftjob.predict import sized


def main(overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    """Print the plan of a configuration. Returns the exit code."""
    config = compose(overrides, config_dirs)
    submitted = config.cluster.name == "slurm"
    if submitted:
        machine = machine_to_submit(config)
    else:
        machine = make_machine(config.cluster, detect_world(os.environ), os.environ, for_plan=True)
    source = planned_model(config)
    output_len = config.plan.output_len
    wanted, positions = config.plan.input_len, source.arch.positions
    room = 512 if positions is None else positions - output_len
    input_len = wanted if isinstance(wanted, int) else max(1, min(512, room))
    check_length(
        source.arch,
        input_len + output_len,
        f"plan.input_len={input_len} + plan.output_len={output_len}",
    )
    if config.plan.search:
        lines = [*_about(config, source), *_memory(machine)]
        lines += search_page(config, source, machine, (input_len, output_len))
        print("\n".join(lines))
        return 0
    plan = make_plan(sized(config), source.arch, source.rules, machine)
    print(render(config, source, plan, input_len, output_len), end="")
    if submitted:
        print(f"\nbatch script (not submitted):\n\n{batch_script(config, datetime.now())}")
    return 0


def planned_model(config: JobConfig) -> ModelSource:
    """The model to plan: its shape from conf/ where that is whole, else from the checkpoint.

    A plan needs no weights, so a hub id is not looked up as long as conf/ knows the shape.
    """
    if missing_sizes(config.model):
        return open_model(config)
    return shape_source(config, config.model.checkpoint)


def render(
    config: JobConfig, source: ModelSource, plan: Plan, input_len: int, output_len: int
) -> str:
    """The page, as text."""
    machine = plan.machine
    tokens = plan.row_tokens(input_len, output_len)
    ranks = f"{machine.ranks} rank{'s' if machine.ranks > 1 else ''}"
    lines = [
        *_about(config, source),
        f"mesh       tensor {plan.tensor} x pipeline {plan.pipeline} x data {plan.data} = "
        f"{len(plan.devices)} {machine.device} device{'s' if len(plan.devices) > 1 else ''} on "
        f"{ranks}",
        *_memory(machine),
        "",
        *_stage_table(plan, tokens),
        "",
        f"workspace  {size(plan.workspace_bytes)} a device for batches of {plan.max_tokens} "
        "tokens (estimate)",
        _batch_line(plan, input_len, output_len),
        *_decode_line(plan, tokens),
        *_pipeline_line(config, source, plan),
        *speed_lines(config, source, plan, input_len, output_len),
    ]
    return "\n".join(lines) + "\n"


def _about(config: JobConfig, source: ModelSource) -> list[str]:
    return [
        f"model      {config.model.name} ({source.arch.family}): {parameters(source.parameters)} "
        f"parameters, {config.model.dtype}, weights {config.model.weights}",
        f"shape      {_shape(source.arch)}",
    ]


def _memory(machine: Machine) -> list[str]:
    return [f"memory     {size(machine.memory_bytes)} a device ({machine.memory_source})"]


def _shape(arch: Arch) -> str:
    layers = (
        f"{arch.encoder_layers} encoder and {arch.layers} decoder" if arch.seq2seq else arch.layers
    )
    mlp = f"MLP {arch.ffn}{' gated' if arch.gated else ''}"
    positions = "relative" if arch.positions is None else arch.positions
    return (
        f"{layers} layers, {arch.heads} heads of {arch.head_size}, hidden {arch.hidden}, {mlp}, "
        f"vocabulary {arch.vocab}, {positions} positions"
    )


def _stage_table(plan: Plan, tokens: int) -> list[str]:
    """A line per stage: layers, devices, ranks, bytes on one device."""
    seq2seq = any(d.last_encoder for d in plan.devices)
    spans = ["encoder", "decoder"] if seq2seq else ["layers"]
    table = [["stage", *spans, "holds", "devices", "ranks", "weights", "cache/row"]]
    for stage in range(plan.pipeline):
        members = [d for d in plan.devices if d.pipeline == stage]
        one = members[0]
        ends = [word for word, there in (("embedding", one.first), ("head", one.last)) if there]
        table.append(
            [
                str(stage),
                *([f"{one.first_encoder}-{one.last_encoder - 1}"] if seq2seq else []),
                f"{one.first_layer}-{one.last_layer - 1}",
                "+".join(ends) or "-",
                _ranges([d.index for d in members]),
                _ranges(sorted({d.rank for d in members})),
                size(one.weight_bytes),
                size(one.cache_bytes_per_token * tokens),
            ]
        )
    return columns(table)


def _decode_line(plan: Plan, tokens: int) -> list[str]:
    """How rows are continued, where they are: rows of that many tokens of cache."""
    room = plan.generation
    if room is None:
        return []
    batches = f" in each of {plan.pipeline} micro-batches" if plan.pipeline > 1 else ""
    taken = room.score_bytes * tokens
    scores = f"; a step's attention takes {size(taken)} a row" if taken else ""
    return [
        f"decode     {room.slots:,} rows at once of {room.beams} beam{'s' * (room.beams > 1)}"
        f"{batches}; up to {room.refill:,} enter together{scores}"
    ]


def _batch_line(plan: Plan, input_len: int, output_len: int) -> str:
    """The largest batch, or what is missing for one row."""
    beams = 1 if plan.generation is None else plan.generation.beams
    shape = f"{input_len} + {f'{beams} x ' if beams > 1 else ''}{output_len} tokens"
    tokens = plan.row_tokens(input_len, output_len)
    rows = plan.rows_that_fit(tokens)
    if rows:
        whole = f"; {rows * plan.data:,} over all replicas" if plan.data > 1 else ""
        return f"batch      {rows:,} rows of {shape} fit a replica{whole}"
    worst = max(plan.devices, key=lambda d: d.weight_bytes)
    scores = 0 if plan.generation is None else plan.generation.score_bytes
    row = (worst.cache_bytes_per_token + scores) * tokens
    need = worst.weight_bytes + plan.workspace_bytes + row
    return (
        f"batch      does not fit: one row of {shape} needs {size(need)} on the fullest device, "
        f"which has {size(plan.machine.memory_bytes)}. Raise parallel.tensor or "
        "parallel.pipeline, or lower batch.max_tokens."
    )


def _pipeline_line(config: JobConfig, source: ModelSource, plan: Plan) -> list[str]:
    """The share of time in which stages wait, for few micro-batches, more, and no end of them;
    told for scoring alone, whose batches pass every stage once."""
    arch, stages = source.arch, plan.pipeline
    if stages == 1 or arch.seq2seq or plan.generation is not None:
        return []
    spans = layer_spans(arch.layers, stages)
    share = wanted_share(config.dataset)
    costs = stage_costs(spans, arch.hidden, arch.ffn, arch.vocab, share)
    few, more = 4 * stages, 16 * stages
    bubbles = [equal_bubble(costs, few), equal_bubble(costs, more), steady_bubble(costs)]
    low, middle, end = (f"{100 * bubble:.0f} %" for bubble in bubbles)
    return [
        f"pipeline   bubble {low} with {few} micro-batches of {plan.max_tokens} tokens a replica, "
        f"{middle} with {more}, {end} in the long run (stages of unequal work)"
    ]


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
