"""The report of a campaign of workloads, from its raw figures: a pure function for `render`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from eval.bench.workloads import PEERS


def render_workloads(name: str, raw: dict[str, Any]) -> str:
    """The times, what lies behind them, and what each was made with."""
    every = list(raw["workloads"].values())
    fine = [made for made in every if "error" not in made]
    lines = [
        f"# {raw['title']}",
        "",
        *raw["text"],
        "",
        f"Rendered by `python -m eval.render` from `raw/{name}.json`. Times are in ms: the median "
        "(lowest to highest) of the rounds.",
        "",
        *_times(fine),
        "",
        "`least` is what bytes and operations take at the copy and the product that were measured "
        "in the same process (`ftjob/bench/roofline.py`); `limit` the same as given. `first token` "
        "and `step` are ftjob's.",
        "",
        *_behind(fine),
        "",
        *origins(every),
    ]
    for made in every:
        if "error" in made:
            lines += ["", f"{made['title']}: FAILED, {made['error']}"]
    return "\n".join(lines) + "\n"


def _times(fine: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| workload | ftjob | transformers | over ftjob's | static cache, compiled | over ftjob's "
        "| FasterTransformer, given | over ftjob's | to reach | reached |",
        f"| {' | '.join(['---'] * 10)} |",
    ]
    for made in fine:
        ours, given = figures(made, "ftjob"), made["given"]
        middle = statistics.median(ours)
        cells = [made["title"], f"{spread(ours)} of {len(ours)}"]
        for peer in PEERS.values():
            cells += _beside(made, peer, ours)
        over = "-" if given["ft"] is None else f"{given['ft'] / (1e3 * middle):.2f}"
        cells += ["-" if given["ft"] is None else f"{given['ft']:g}", over]
        reached = "yes" if 1e3 * middle <= given["reach"] else "NO"
        cells += [f"{given['reach']:g}", reached]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def figures(made: dict[str, Any], name: str) -> list[float]:
    """The seconds that count of a contender: of runs or rows, or of a step from the pairs of a
    run and a short one; none where it did not run."""
    for one in made["contenders"]:
        if one["name"] == name and one["error"] is None:
            if made["figure"] != "step":
                return list(one["seconds"])
            pairs = zip(one["seconds"], one["short_seconds"], strict=True)
            return [(whole - short) / made["steps"] for whole, short in pairs]
    return []


def _beside(made: dict[str, Any], peer: str, ours: Sequence[float]) -> list[str]:
    """A peer's times, and theirs over ours in the rounds that both have."""
    failed = [c for c in made["contenders"] if c["name"] == peer and c["error"]]
    theirs = figures(made, peer)
    if failed or not theirs:
        return ["failed" if failed else "-", "-"]
    ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=False))
    return [f"{spread(theirs)} of {len(theirs)}", f"{ratio:.2f}"]


def _behind(fine: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| workload | least | limit, given | transformers, given | first token | step | tokens/s "
        "| made ready before, seconds | transformers' first run, seconds |",
        f"| {' | '.join(['---'] * 9)} |",
    ]
    for made in fine:
        ours, *others = made["contenders"]
        speed = made["tokens"] / statistics.median(ours["seconds"])
        ready = ", ".join(f"{name} {s:.1f}" for name, s in made["phases"].items())
        first = [f"{c['first_s']:.1f}" for c in others if c["first_s"] is not None]
        cells = [made["title"], ms(made["limit_s"]), f"{made['given']['limit']:g}"]
        cells += [made["given"]["hf"], ms(ours["prefill_s"]), ms(ours["step_s"])]
        cells += [f"{speed:,.0f}", ready, ", ".join(first) or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def origins(every: Sequence[dict[str, Any]]) -> list[str]:
    """Where each workload was made: card, clocks under a product, commit, command."""
    lines = [
        "| workload | card | clocks, MHz: SM, memory | copy, TB/s | product, TFLOP/s | made by |",
        f"| {' | '.join(['---'] * 6)} |",
    ]
    for made in every:
        ceilings, card = made["ceilings"], made["ceilings"]["card"]
        name, clocks = made["device"], "-"
        if card is not None:
            name = f"{card['name']}, driver {card['driver_version']}"
            clocks = f"{card['clocks.sm']}, {card['clocks.mem']}"
        torch = made["packages"]["torch"]
        cells = [made["title"], name, clocks, f"{ceilings['copy_bytes_s'] / 1e12:.3g}"]
        cells += [
            f"{ceilings['product_flop_s'] / 1e12:.4g}",
            f"`{made['command']}`, {made['date']}, commit {made['commit']}, "
            f"{', '.join([f'torch {torch}', *made['peers']])}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def spread(seconds: Sequence[float]) -> str:
    """Median (lowest to highest) in ms."""
    return f"{ms(statistics.median(seconds))} ({ms(min(seconds))} to {ms(max(seconds))})"


def ms(seconds: float | None) -> str:
    """Milliseconds, whole from a second on."""
    return (
        "-"
        if seconds is None
        else f"{1e3 * seconds:.3g}"
        if seconds < 1
        else f"{1e3 * seconds:.0f}"
    )
