"""How long a layout takes: seconds of a decode step, of prefill, of a scored batch, and tokens/s.
Made from the plan and `Rates` alone, before anything runs.

`stage_times` has the stages' own; here they go round, and wait for each other.
`commands/plan_speed` prints it, `plan_search` ranks layouts by it, `bench.measure` sets it beside
the measured times. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ftjob.config.groups import JobConfig
from ftjob.errors import ConfigError
from ftjob.model.arch import Arch
from ftjob.pipeline import equal_makespan
from ftjob.plan import Plan
from ftjob.rates import Rates
from ftjob.stage_times import Parts, Stages


@dataclass(frozen=True)
class Prediction:
    """What a replica of the plan does at so many `rows` at once: `turn` is a decode step of all of
    them, or a scored batch. `prefill` leads from the prompts of all rows to the first new token of
    each; None where rows are scored. `tokens_s` counts new tokens (or all of scored rows) over all
    replicas, `token_s` is a replica's seconds of one."""

    rows: int
    turn: Parts
    prefill: Parts | None
    token_s: float
    tokens_s: float


def predict(
    config: JobConfig,
    arch: Arch,
    plan: Plan,
    rates: Rates,
    input_len: int,
    output_len: int,
    rows: int,
) -> Prediction:
    """A replica that goes on with `rows` rows at once of so many tokens in and out, or scores rows
    of as many given and scored ones in batches of `rows`."""
    stages = Stages(config, arch, plan, rates)
    room = plan.generation
    if room is None:
        parts = stages.each(lambda s: stages.score(s, rows, input_len, output_len))
        turn = paced(parts, max(p.total for p in parts), 1)
        seconds, tokens = turn.total, rows * (input_len + output_len)
        return Prediction(rows, turn, None, seconds / tokens, plan.data * tokens / seconds)
    together = max(1, min(room.refill, plan.max_tokens // input_len))
    prefill = first_tokens(stages, rows, room.beams, input_len, together)
    turn = steps(stages, rows, room.beams, input_len, output_len / 2)
    tokens = rows * output_len * config.decode.num_return_sequences
    seconds = prefill.total + (output_len - 1) * turn.total
    return Prediction(rows, turn, prefill, seconds / tokens, plan.data * tokens / seconds)


def first_tokens(stages: Stages, rows: int, lanes: int, length: int, together: int) -> Parts:
    """From `rows` prompts, read `together` at a time, to the first new token of each."""
    each = min(together, micro_batch(rows, len(stages.seats)))
    count = math.ceil(rows / each)
    parts = stages.each(lambda s: stages.read(s, each, length))
    passed = equal_makespan([p.total for p in parts], count)
    return paced(parts, passed, count) + steps(stages, rows, lanes, length, 0.0)


def steps(stages: Stages, rows: int, lanes: int, length: int, own: float) -> Parts:
    """A step of all rows of a replica, which are in as many micro-batches as there are stages, and
    go round: at the pace of the slowest stage, or of a micro-batch that passes all of them."""
    each = micro_batch(rows, len(stages.seats))
    count = math.ceil(rows / each)
    parts = stages.each(lambda s: stages.step(s, each, lanes, length, own))
    totals = [p.total for p in parts]
    return paced(parts, max(count * max(totals), sum(totals)), count)


def micro_batch(rows: int, stages: int) -> int:
    """Rows of each micro-batch."""
    return math.ceil(rows / min(rows, stages))


def paced(parts: Sequence[Parts], seconds: float, count: int) -> Parts:
    """`seconds` in which each stage does its part `count` times, as the average stage spends them:
    what is left over is the bubble."""
    busy = Parts()
    for part in parts:
        busy += part
    busy = busy.times(count / len(parts))
    return replace(busy, bubble=max(0.0, seconds - busy.total))


def sized(config: JobConfig) -> JobConfig:
    """The configuration with lanes for the rows of plan.batch, unless batch.lanes names some."""
    rows, batch = config.plan.batch, config.batch
    if isinstance(rows, str) or batch.lanes != "auto":
        return config
    stages = config.parallel.pipeline
    lanes = math.ceil(rows / stages) * stages * config.decode.lanes  # micro-batches of equal size
    return replace(config, batch=replace(batch, lanes=lanes))


def rows_at_once(config: JobConfig, plan: Plan, input_len: int, output_len: int) -> int:
    """Rows that a replica has at once: those of plan.batch, or as many as a run takes; 0 where not
    even one fits.

    Raises:
        ConfigError: for a plan.batch that memory or another key has no room for.
    """
    room, fit = plan.generation, plan.rows_that_fit(plan.row_tokens(input_len, output_len))
    if room is None:
        held = max(1, plan.max_tokens // max(1, input_len + output_len - 1))
        why = f"batch.max_tokens={plan.max_tokens} is {held} rows"
    else:
        held = room.slots * plan.pipeline
        why = f"batch.lanes={config.batch.lanes} is {held} rows"
    wanted = config.plan.batch
    if isinstance(wanted, str) or not fit:
        return min(held, fit)
    if wanted > min(held, fit):
        reason = why if held < fit else f"memory has room for {fit} rows a replica"
        raise ConfigError(f"plan.batch={wanted}: {reason}.")
    return wanted


def cell(
    config: JobConfig,
    arch: Arch,
    plan: Plan,
    rates: Rates,
    batch: int,
    input_len: int,
    output_len: int,
) -> dict[str, float]:
    """Seconds of a run as `bench` times it, whose rows enter together: `seconds` of all of it, and
    where rows are continued `prefill_s` to the first new token of each and `step_s` of a decode
    step."""
    stages = Stages(config, arch, plan, rates)
    room = plan.generation
    if room is None:
        most = max(1, plan.max_tokens // (input_len + output_len - 1))
        count = math.ceil(batch / most)
        each = math.ceil(batch / count)
        parts = stages.each(lambda s: stages.score(s, each, input_len, output_len))
        return {"seconds": equal_makespan([p.total for p in parts], count)}
    prefill = first_tokens(stages, batch, room.beams, input_len, batch).total
    step = steps(stages, batch, room.beams, input_len, output_len / 2).total
    seconds = prefill + (output_len - 1) * step
    return {"seconds": seconds, "prefill_s": prefill, "step_s": step}
