"""What `plan` says of speed: the predicted times of the layout, or with plan.search=true the table
of all layouts.
"""

from __future__ import annotations

from ftjob.commands.layout import columns, size
from ftjob.config import JobConfig
from ftjob.job import ModelSource
from ftjob.plan import Machine, Plan
from ftjob.plan_search import Found, Layout, search
from ftjob.predict import predict, rows_at_once
from ftjob.rates import Rates, rates_of
from ftjob.stage_times import Parts, unknown_wire

MOST_REFUSED = 10
UNKNOWN = (
    "no prediction: how fast a CPU is differs too much. Give plan.rates=FILE, as bench.out writes, "
    "or plan.copy_tb_s and plan.product_tflops"
)


def speed_lines(
    config: JobConfig, source: ModelSource, plan: Plan, input_len: int, output_len: int
) -> list[str]:
    """Predicted times of a plan, and the rates that they come from.

    Raises:
        ConfigError: for rates that are none, or a plan.batch that does not fit.
    """
    rates = rates_of(config, plan.machine.device)
    rows = rows_at_once(config, plan, input_len, output_len)
    if rates is None:
        return [f"speed      {UNKNOWN}"]
    missing = unknown_wire(plan, rates)
    missing = missing or (None if output_len else "plan.output_len=0 asks for no tokens")
    missing = missing or (None if rows else "not even one row fits")
    if missing is not None:
        return [f"speed      no prediction: {missing}"]
    made = predict(config, source.arch, plan, rates, input_len, output_len, rows)
    whole = f"{made.tokens_s:,.0f} tokens/s over all replicas" if plan.data > 1 else ""
    whole = whole or f"{made.tokens_s:,.0f} tokens/s"
    told = f"{rows:,} row{'s' * (rows > 1)}{' a replica' * (plan.data > 1)}"
    if made.prefill is None:
        first = [
            f"speed      {whole}, {ms(made.turn.total)} ms a batch of {told}, "
            f"{1e6 * made.token_s:.3g} us a token (predicted)"
        ]
    else:
        first = [
            f"speed      {whole}: {told} with prefill in {ms(made.prefill.total)} ms and steps of "
            f"{ms(made.turn.total)} ms (predicted)",
            f"prefill    {_shares(made.prefill)}",
        ]
    word = "batch" if made.prefill is None else "step"
    return [*first, f"{word:<11}{_shares(made.turn)}", *rate_lines(rates, plan)]


def rate_lines(rates: Rates, plan: Plan | None = None) -> list[str]:
    """The rates that count, and where they come from."""
    said = [
        f"copy {rates.copy_bytes_s / 1e12:.3g} TB/s",
        f"product {rates.product_flop_s / 1e12:.4g} TFLOP/s",
    ]
    if plan is None or plan.tensor * plan.pipeline > 1:
        names = {"process": "in a node", "nodes": "between nodes"}
        said += [
            f"sums {name} {1e6 * wire.latency_s:.3g} us and {wire.bytes_s / 1e9:.3g} GB/s"
            for place, name in names.items()
            for wire in [rates.reduce.get(place)]  # type: ignore[call-overload]
            if wire is not None
        ]
    return [f"rates      {', '.join(said)} ({rates.source})"]


def search_page(
    config: JobConfig, source: ModelSource, machine: Machine, lengths: tuple[int, int]
) -> list[str]:
    """The table of layouts, what was refused, and the overrides of the best one.

    Raises:
        ConfigError: for rates that are none.
    """
    rates = rates_of(config, machine.device)
    if rates is None:
        return [f"search     {UNKNOWN}"]
    if not lengths[1]:
        return ["search     no prediction: plan.output_len=0 asks for no tokens"]
    found = search(config, source.arch, source.rules, machine, rates, lengths)
    shape = f"{lengths[0]} + {lengths[1]} tokens"
    task = "continued" if config.dataset.generates else "scored"
    lines = [*rate_lines(rates), f"rows       {task}, of {shape}", ""]
    if found.layouts:
        lines += [*_table(found.layouts), ""]
    lines += _refusals(found)
    if found.layouts:
        best = found.layouts[0]
        lines += [
            f"best       parallel.tensor={best.tensor} parallel.pipeline={best.pipeline} "
            f"parallel.data={best.data}"
        ]
    else:
        lines += ["best       none: no layout of these devices holds the model"]
    return lines


def _table(layouts: list[Layout]) -> list[str]:
    scored = layouts[0].prediction.prefill is None
    head = ["rank", "tensor", "pipeline", "data", "batch ms" if scored else "step ms", "tokens/s"]
    table = [[*head, "rows", "memory", "largest batch", "most of it"]]
    for i, x in enumerate(layouts, start=1):
        made = x.prediction
        table.append(
            [
                *map(str, (i, x.tensor, x.pipeline, x.data)),
                ms(made.turn.total),
                f"{made.tokens_s:,.0f}",
                f"{made.rows:,}",
                size(x.bytes_taken),
                f"{x.largest_batch:,}",
                _shares(made.turn, 2, made.turn.total),
            ]
        )
    return columns(table)


def _refusals(found: Found) -> list[str]:
    """The first reasons against the other layouts, and how many more there are."""
    lines = [f"refused    {reason}" for reason in found.refused[:MOST_REFUSED]]
    more = len(found.refused) - MOST_REFUSED
    return [*lines, *([f"refused    {more} more"] if more > 0 else []), *([""] if lines else [])]


def _shares(parts: Parts, most: int = 7, of: float | None = None) -> str:
    """The longest parts by name: in ms, or as shares of `of` seconds."""
    return ", ".join(
        f"{name} {ms(seconds)} ms" if of is None else f"{name} {100 * seconds / of:.0f} %"
        for name, seconds in parts.largest()[:most]
    )


def ms(seconds: float) -> str:
    """Milliseconds with three digits; whole ones where there are more."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
