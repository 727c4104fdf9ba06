"""The report of `cpu_parts`, from its raw figures: a pure function for `render`."""

from __future__ import annotations

import statistics
from typing import Any

from eval.record import heading, made_line


def render_parts(name: str, raw: dict[str, Any]) -> str:
    """The report of reports/raw/NAME.json."""
    lines = [
        *heading(raw, made_line(name, raw)),
        "| part | microseconds | PyTorch's | microseconds | PyTorch's time over ours: median "
        "(lowest to highest) of the rounds | largest difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for part in raw["parts"]:
        ratios = [p / o for o, p in zip(part["ours"], part["plain"], strict=True)]
        ours, plain = (1e6 * statistics.median(part[k]) for k in ("ours", "plain"))
        lines.append(
            f"| {part['name']} | {ours:.0f} | {part['against']} | {plain:.0f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{part['apart']:.1e} |"
        )
    return "\n".join(lines) + "\n"
