"""The report of pairs of sides, from their raw figures: a pure function for `render`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from eval.bench.workloads_page import figures, ms, origins, spread
from eval.record import heading


def render_sides(name: str, raw: dict[str, Any]) -> str:
    """Each side's times beside the first side's and what was given, and where they were made."""
    every = list(raw["workloads"].values())
    made = (
        f"Rendered by `python -m eval.render` from `raw/{name}.json`. Times are in ms: the median "
        "(lowest to highest)."
    )
    lines = [
        *heading(raw, made),
        "| workload | time of | side | ms | first side's over it | to reach | reached "
        "| FasterTransformer, given | over it | first token | tokens/s | made ready, seconds |",
        f"| {' | '.join(['---'] * 12)} |",
    ]
    for entry in every:
        lines += [_line(entry, side) for side in entry.get("contenders", ())]
    lines += ["", *origins(every)]
    for entry in every:
        if "error" in entry:
            lines += ["", f"{entry['title']}: FAILED, {entry['error']}"]
    return "\n".join(lines) + "\n"


def _line(entry: dict[str, Any], side: dict[str, Any]) -> str:
    cells = [entry["title"], entry["figure"], side["name"]]
    own = figures(entry, side["name"])
    if side["error"] or not own:
        return f"| {' | '.join([*cells, 'failed', *['-'] * 8])} |"
    given, middle = entry["given"][side["name"]], statistics.median(own)
    first = entry["contenders"][0]
    ratio = None if side is first else over(figures(entry, first["name"]), own)
    cells += [f"{spread(own)} of {len(own)}", "-" if ratio is None else f"{ratio:.2f}"]
    cells += list(_reached(given, 1e3 * middle, ratio))
    ft = given["ft"]
    cells += ["-", "-"] if ft is None else [f"{ft:g}", f"{ft / (1e3 * middle):.2f}"]
    ready = ", ".join(f"{name} {seconds:.1f}" for name, seconds in side["phases"].items())
    speed = side["tokens"] / statistics.median(side["seconds"])
    cells += [ms(side["prefill_s"]), f"{speed:,.0f}", ready or "-"]
    return f"| {' | '.join(cells)} |"


def over(first: Sequence[float], other: Sequence[float]) -> float | None:
    """The first side's time over the other's in the rounds that both have, the median; None where
    they have none."""
    ratios = [a / b for a, b in zip(first, other, strict=False)]
    return statistics.median(ratios) if ratios else None


def _reached(given: dict[str, Any], took_ms: float, ratio: float | None) -> tuple[str, str]:
    """What there is to reach, a time or a ratio, and whether it was."""
    if given["reach"] is not None:
        return f"{given['reach']:g} ms", "yes" if took_ms <= given["reach"] else "NO"
    if given["over"] is not None:
        least = f"{given['over']:g} times as fast"
        return least, "-" if ratio is None else "yes" if ratio >= given["over"] else "NO"
    return "-", "-"
