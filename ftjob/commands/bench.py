"""`bench`: how fast chosen sizes of batch, input and output run, on the job's own device threads.

Prints a table and, with bench.out, writes all figures as JSON; no data set, no run folder, one
process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftjob.bench.cells import BASE, Cell, cell_job, check_overrides, facts, sizes_of
from ftjob.checkpoint.manifest import check_manifest
from ftjob.commands.layout import columns, parameters, size
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.environment import describe
from ftjob.errors import DONE, INTERRUPTED, ConfigError
from ftjob.job import Job, open_model
from ftjob.launch.world import (
    detect_world,
    make_machine,
    set_gpu_environment,
    set_thread_environment,
)
from ftjob.rates import rates_of
from ftjob.results.folder import write_json


def main(overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    """Time every size that the overrides ask for. Returns the exit code.

    Raises:
        ConfigError: for what cannot be timed, before anything loads.
        CheckpointError: for a checkpoint that is absent or does not fit.
        Stopped, DeadlinePassed: where a device fails or falls silent.
    """
    world = detect_world(os.environ)
    if world.size > 1:
        raise ConfigError(
            f"bench under {world.launcher} with {world.size} ranks: it is one process, with a "
            "thread for each of cluster.devices_per_node. Start it without the launcher."
        )
    check_overrides(overrides)
    config = compose([*BASE, *overrides], config_dirs)
    out = out_file("bench.out", config.bench.out)
    jobs = planned(config)
    machine = jobs[0][0].plan.machine
    rates = rates_of(config, machine.device)
    set_thread_environment(machine.devices_of_rank[0], os.environ)
    set_gpu_environment(machine, config.cluster.nccl_launch_mode, os.environ)
    from ftjob.bench.ceilings import measure_ceilings
    from ftjob.bench.measure import measure, torch_devices
    from ftjob.device import DTYPES

    dtype, device = DTYPES[config.model.dtype], torch_devices(jobs[0][0])[0]
    ceilings = measure_ceilings(device, dtype)
    if rates is not None:  # what the device does here and now
        copy, product = ceilings.copy_bytes_s, ceilings.product_flop_s
        rates = replace(rates, copy_bytes_s=copy, product_flop_s=product)
    made: dict[str, Any] = {
        "overrides": list(overrides),
        **facts(jobs[0][0]),
        "environment": describe(os.environ),
        "ceilings": ceilings.as_dict(),
        "runs": config.bench.runs,
        "cells": [],
    }
    code = DONE
    for job, cell in jobs:
        told = f"batch {cell.batch}, {cell.input_len} in, {cell.output_len} out"
        try:
            print(f"ftjob: {told}: {config.bench.runs} runs", file=sys.stderr, flush=True)
            made["cells"].append(measure(job, cell, ceilings, rates))
        except KeyboardInterrupt:
            print(f"ftjob: interrupted at {told}", file=sys.stderr, flush=True)
            code = INTERRUPTED
            break
        if out is not None:
            write_json(out, made)
    if made["cells"]:
        print(render(made), end="", flush=True)
    return code


def planned(config: JobConfig) -> list[tuple[Job, Cell]]:
    """The job of every size; all are made before the first runs, so that none is refused late.

    Raises:
        ConfigError, CheckpointError: as `cell_job`.
    """
    machine = make_machine(config.cluster, detect_world(os.environ), os.environ)
    source = open_model(config)
    if source.index is not None and config.model.verify:
        check_manifest(source.index.folder)
    jobs = [cell_job(config, c, machine) for c in sizes_of(config, source.arch.positions)]
    return jobs


def out_file(key: str, wanted: str | None) -> Path | None:
    """The file that a key asks the figures to be written to.

    Raises:
        ConfigError: where no file can be written there, said before the runs and not after.
    """
    if wanted is None:
        return None
    out = Path(wanted).expanduser()
    if out.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        why = "is a folder" if out.is_dir() else f"{out.parent} is no folder to write in"
        raise ConfigError(f"{key}={wanted}: {why}. Name a file in one that exists.")
    return out


def render(made: dict[str, Any]) -> str:
    """The page, as text."""
    model, ceilings, cells = made["model"], made["ceilings"], made["cells"]
    layout, predicted = made["layout"], any(c.get("predicted") for c in cells)
    card = ceilings["card"]
    lines = [
        f"model      {model['name']} ({model['family']}): {parameters(model['parameters'])} "
        f"parameters, {model['dtype']}, weights {model['weights']}"
        f"{', random' if model['random'] else ''}",
        f"devices    tensor {layout['tensor']} x pipeline {layout['pipeline']} x data "
        f"{layout['data']}: {', '.join(cells[0]['devices'])}",
        *([f"card       {_card(card)}"] if card else []),
        f"ceilings   copy {size(int(ceilings['copy_bytes_s']))}/s, product of "
        f"{ceilings['product_side']} x {ceilings['product_side']} "
        f"{ceilings['product_flop_s'] / 1e12:.4g} TFLOP/s",
        f"ready      {_seconds(cells[0]['phases'])}",
        "",
        *_table(cells, made["task"] == "score"),
        "",
        *map(_late, (c for c in cells if c["late_phases"])),
        f"{made['runs']} runs each; times in ms, from token ids on the host to answers there.",
        "limit: the least time at the ceilings, whose shares are given.",
        *(["predicted: what `plan` expects at these ceilings."] if predicted else []),
    ]
    return "\n".join(lines) + "\n"


def _table(cells: Sequence[dict[str, Any]], scored: bool) -> list[str]:
    """A line per size. The shares of copy and product are of the whole run where rows are scored,
    else of prefill and of decode."""
    head = ["batch", *(("context", "target") if scored else ("in", "out"))]
    told = any(c.get("predicted") for c in cells)
    head += ["mean ms", "p50", "p99", "limit", *(["predicted"] if told else [])]
    head += [] if scored else ["prefill", "of product", "step"]
    table = [[*head, "of copy", "of product", "tokens/s", "memory", "planned"]]
    for c in cells:
        latency, memory = c["latency"], c["memory"]
        row = [str(c[k]) for k in ("batch", "input_len", "output_len")]
        row += [_ms(t) for t in (latency["mean"], latency["p50"], latency["p99"], c["limit_s"])]
        row += [_ms((c.get("predicted") or {}).get("seconds"))] if told else []
        if not scored:
            row += [_ms(c["prefill_s"]), _share(c["prefill"], "of_product"), _ms(c["step_s"])]
        rates = c["score" if scored else "decode"]
        row += [_share(rates, "of_copy"), _share(rates, "of_product"), f"{c['tokens_s']:,.0f}"]
        table.append([*row, size(memory["peak_bytes"]), size(memory["planned_bytes"])])
    return columns(table)


def _card(card: dict[str, str]) -> str:
    return (
        f"{card['name']}, driver {card['driver_version']}, {card['clocks.sm']} MHz and memory "
        f"{card['clocks.mem']} MHz under a product, {card['power.draw']} W, "
        f"{card['temperature.gpu']} C"
    )


def _late(cell: dict[str, Any]) -> str:
    """A warning where a device made something ready only when its runs were timed."""
    return (
        f"batch {cell['batch']}, {cell['input_len']} in, {cell['output_len']} out: within the "
        f"timed runs {_seconds(cell['late_phases'])}; raise bench.warmup"
    )


def _seconds(phases: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.items())


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.4g}"


def _share(rates: dict[str, float] | None, name: str) -> str:
    return "-" if rates is None else f"{100 * rates[name]:.1f} %"
