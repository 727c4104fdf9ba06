"""Turns single values into text: sensible digits, units, one printable line.

Every renderer of a run's report (page, pull-request twin, summary, terminal) formats through
here, so that one number reads the same everywhere. The text goes on to `facts` and `page`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

MISSING = "–"


def real(value: Any) -> float | None:
    """`value` as a finite float, or None for anything else ("N/A", NaN, None, true)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: Any, digits: int = 4) -> str:
    """A number with `digits` significant digits and thousands separators; never an exponent
    between 0.0001 and 10^12."""
    x = real(value)
    if x is None:
        return MISSING
    if x == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(x)))
    if not -4 <= magnitude < 12:
        return f"{x:.{digits - 1}e}"
    if x == int(x) and magnitude < 9:
        return f"{int(x):,}"
    return f"{x:,.{max(0, digits - 1 - magnitude)}f}"


def measured(value: Any, unit: str = "", stderr: Any = None) -> str:
    """A metric's value, with as many digits as its standard error supports."""
    x = real(value)
    if x is None:
        return MISSING
    percent = unit == "%"
    scale = 100.0 if percent else 1.0
    decimals = _decimals(real(stderr), scale)
    if decimals is None:
        text = f"{x * scale:.2f}" if percent else number(x)
    else:
        decimals = min(max(decimals, 1), 2) if percent else decimals
        text = f"{x * scale:,.{decimals}f}"
    return f"{text}%" if percent else f"{text} {unit}".rstrip()


def share(value: Any) -> str:
    """A share of time as per cent: 4.3%."""
    x = real(value)
    return MISSING if x is None else f"{100 * x:.1f}%"


def limit(value: Any, unit: str = "") -> str:
    """A number somebody chose, such as an expected minimum, without digits nobody gave."""
    x = real(value)
    if x is None:
        return MISSING
    return f"{100 * x:.5g}%" if unit == "%" else f"{number(x)} {unit}".rstrip()


def _decimals(stderr: float | None, scale: float) -> int | None:
    if stderr is None or stderr <= 0:
        return None
    return min(8, max(0, 1 - math.floor(math.log10(stderr * scale))))


def duration(seconds: Any) -> str:
    """Seconds as people say them: 0.12 s, 12.1 s, 3 min 05 s, 2 h 04 min."""
    x = real(seconds)
    if x is None:
        return MISSING
    if x < 10:
        return f"{x:.2f} s"
    if x < 119.95:
        return f"{x:.1f} s"
    whole = round(x)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(n_bytes: Any) -> str:
    """Bytes in decimal units: 70.1 MB."""
    x = real(n_bytes)
    if x is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(x) < 1000:
            return f"{x:.0f} B" if unit == "B" else f"{x:.3g} {unit}"
        x /= 1000
    return f"{x:.3g} TB"


def instant(text: Any) -> str:
    """An ISO time as a date people read, in UTC; other text as it is."""
    if not isinstance(text, str):
        return MISSING
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return text
    if moment.tzinfo is None:
        return f"{moment.day} {moment:%B %Y, %H:%M}"
    moment = moment.astimezone(timezone.utc)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def scalar(value: Any) -> str:
    """Any leaf of a mapping as text."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(scalar(item) for item in value) or MISSING
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return str(value)


def pairs(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (label, text) pairs, inner keys joined by a dot."""
    found: list[tuple[str, str]] = []
    for key, value in mapping.items():
        # names of environment variables stay as they are
        label = prefix + (str(key) if str(key).isupper() else str(key).replace("_", " "))
        if isinstance(value, Mapping):
            found += pairs(value, f"{label}.")
        else:
            found.append((label, scalar(value)))
    return found


def one_line(text: Any) -> str:
    """Text on one line, control characters spelled out: a log line cannot be forged with it."""
    joined = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def ascii_line(text: Any, width: int = 0) -> str:
    """`one_line` that any terminal or C locale can print, cut to `width` columns if given."""
    line = one_line(text).replace("±", "+-").replace(MISSING, "-").replace("…", "...")
    line = line.encode("ascii", "backslashreplace").decode()
    return line if not width or len(line) <= width else f"{line[: width - 3]}..."
