"""Every layout of the given devices, ranked by what `predict` expects of it, and why others are
none. `commands/plan_speed.py` prints them. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ftjob.checkpoint.shard import TensorRule
from ftjob.config.groups import JobConfig, ParallelConfig
from ftjob.errors import ConfigError
from ftjob.model.arch import Arch
from ftjob.plan import Machine, check_model_split, make_plan
from ftjob.predict import Prediction, predict, rows_at_once, sized
from ftjob.rates import Rates
from ftjob.stage_times import unknown_wire


@dataclass(frozen=True)
class Layout:
    """A layout that fits: what is predicted of it, the bytes that its fullest device holds then,
    and the largest batch of a replica."""

    tensor: int
    pipeline: int
    data: int
    prediction: Prediction
    bytes_taken: int
    largest_batch: int


@dataclass(frozen=True)
class Found:
    """Layouts, the fastest first, and the reasons against the others, a line each."""

    layouts: list[Layout]
    refused: list[str]


def search(
    config: JobConfig,
    arch: Arch,
    rules: tuple[TensorRule, ...],
    machine: Machine,
    rates: Rates,
    lengths: tuple[int, int],
) -> Found:
    """Every tensor x pipeline x data of the machine's devices, for rows of (input, output) tokens.
    Of equally fast ones the one with less tensor, then with less pipeline, comes first."""
    total = sum(machine.devices_of_rank)
    layouts: list[Layout] = []
    refused: dict[str, None] = {}  # in order, each reason once
    for tensor in _divisors(total):
        for pipeline in _divisors(total // tensor):
            split = ParallelConfig(tensor=tensor, pipeline=pipeline)
            made = sized(replace(config, parallel=split))
            try:
                check_model_split(arch, tensor, pipeline)
            except ConfigError as error:
                refused[_first_sentence(error)] = None
                continue
            try:
                layouts.append(_layout(made, arch, rules, machine, rates, lengths))
            except ConfigError as error:
                where = f"parallel.tensor={tensor} parallel.pipeline={pipeline}"
                refused[f"{where}: {_first_sentence(error)}"] = None
    layouts.sort(key=lambda x: (-x.prediction.tokens_s, x.tensor, x.pipeline))
    return Found(layouts, list(refused))


def _layout(
    config: JobConfig,
    arch: Arch,
    rules: tuple[TensorRule, ...],
    machine: Machine,
    rates: Rates,
    lengths: tuple[int, int],
) -> Layout:
    """One layout.

    Raises:
        ConfigError: where it is impossible, does not fit, or cannot be predicted.
    """
    plan = make_plan(config, arch, rules, machine)
    if missing := unknown_wire(plan, rates):
        raise ConfigError(f"{missing}.")
    tokens = plan.row_tokens(*lengths)
    rows = rows_at_once(config, plan, *lengths)
    if not rows:
        need, has = plan.bytes_taken(1, tokens) / 1e9, machine.memory_bytes / 1e9
        raise ConfigError(f"does not fit: one row needs {need:.3g} GB of {has:.3g} GB a device.")
    return Layout(
        plan.tensor,
        plan.pipeline,
        plan.data,
        predict(config, arch, plan, rates, *lengths, rows),
        plan.bytes_taken(rows, tokens if plan.generation else 0),
        plan.rows_that_fit(tokens),
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _first_sentence(error: ConfigError) -> str:
    return str(error).split(". ")[0].rstrip(".")
