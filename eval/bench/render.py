"""The report of a benchmark in rounds, from its raw figures: a pure function for `render`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from eval.record import made_line


def render_bench(name: str, raw: dict[str, Any]) -> str:
    """Each contender's median beside its quality, and its ratio to the first of its group, round
    by round."""
    lines = [f"# {raw['title']}", "", *raw["text"], "", made_line(name, raw)]
    for group, members in groupby(raw["contenders"], key=lambda row: row["group"]):
        if group:
            lines += ["", f"## {group}"]
        lines += ["", *_table(list(members), raw)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, Any]], raw: dict[str, Any]) -> list[str]:
    lines = [
        f"| contender | {raw['quality']} | tokens | median seconds | {raw['unit']}, median | "
        "speed of the first over it: median (lowest to highest) of the rounds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        quality = "-" if row["quality"] is None else f"{row['quality']:.4g}"
        seconds = _median(row["seconds"])
        lines.append(
            f"| {row['name']} | {quality} | {row['tokens']} | {seconds:.2f} | "
            f"{row['tokens'] / seconds:.0f} | {'1' if row is rows[0] else ratio(rows[0], row)} |"
        )
    ours = [row for row in rows if not row["peer"]]
    theirs = [row for row in rows if row["peer"]]
    if ours and theirs:
        best, fastest = max(ours, key=_speed), max(theirs, key=_speed)
        lines += ["", f"{best['name']} over {fastest['name']}, the best of each: "]
        lines[-1] += f"{ratio(best, fastest)}."
    return lines


def ratio(first: dict[str, Any], other: dict[str, Any]) -> str:
    """How much faster the first is, in tokens per second: median (lowest to highest)."""
    scale = first["tokens"] / other["tokens"]
    pairs = zip(first["seconds"], other["seconds"], strict=True)
    ratios = [scale * theirs / ours for ours, theirs in pairs]
    return f"{_median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _speed(row: dict[str, Any]) -> float:
    speed: float = row["tokens"] / _median(row["seconds"])
    return speed


def _median(values: Sequence[float]) -> float:
    """The upper one of the middle two, where there are two."""
    return sorted(values)[len(values) // 2]
