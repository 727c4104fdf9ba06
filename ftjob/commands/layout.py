"""Plain-text layout that the printing commands share: aligned columns, sizes, counts."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines with their columns aligned to the left."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def size(count: int) -> str:
    """Bytes with a decimal unit and three digits."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if unit != "B" else f"{count} B"


def parameters(count: int) -> str:
    """A number of parameters in millions or billions."""
    return f"{count / 1e6:,.1f} M" if count < 10**9 else f"{count / 1e9:,.1f} B"
