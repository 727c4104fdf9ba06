"""Draws the charts of a run's report as SVG markup, ready to stand inside the page.

Charts with axes come from matplotlib; the time line is written by hand, because SVG percentages
let it follow the page's width without shrinking its text. Colours are CSS variables of the page,
so light and dark need one drawing. The markup goes on to `page`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from markupsafe import Markup, escape

from ftjob.results.page.facts import device_name, lane_name, phase_spans, records
from ftjob.results.page.formats import duration, measured, number, one_line, real

# Colours that stand for CSS variables until the SVG text is rewritten.
INK, SOFT, RULE, ACCENT = "#010101", "#020202", "#030303", "#040404"
VARIABLES = MappingProxyType(
    {INK: "currentColor", SOFT: "var(--soft)", RULE: "var(--rule)", ACCENT: "var(--accent)"}
)
# Known phases keep their colour from report to report; others take the last two in turn.
PHASES = (
    *("compose", "import", "read", "load", "warm-up", "score", "merge", "report"),
    *("prefill", "decode"),
)
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
MAX_LANES, MAX_BARS = 160, 5000
HEAD = 24  # pixels above the first lane, where the seconds stand


def rate_chart(chart: Mapping[str, Any], width: float, prefix: str) -> Markup:
    """Points with error bars of one standard error, `width` CSS pixels wide; `prefix` keeps the
    ids of several drawings in one page apart."""
    points = [p for p in records(chart, "points") if real(p.get("value")) is not None]
    if not points:
        return Markup()
    svg = _points_svg(chart, points, width)
    title = f"{chart.get('title')}: " + "; ".join(_spoken(chart, p) for p in points)
    return Markup(_inline(svg, title, prefix, width))


def _spoken(chart: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    unit = "%" if chart.get("kind") == "rate" else ""
    return f"{point.get('label')} {measured(point.get('value'), unit, point.get('stderr'))}"


def _points_svg(chart: Mapping[str, Any], points: list[dict[str, Any]], width: float) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Only these two are global, and every thread sets them to the same values.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ftjob"})
    narrow = width < 500
    height = 250 if narrow else 310
    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), facecolor="none")
    rate = chart.get("kind") == "rate"
    scale = 100.0 if rate else 1.0
    values = [scale * float(p["value"]) for p in points]
    errors = [scale * (real(p.get("stderr")) or 0.0) for p in points]
    x = range(len(points))
    axes.errorbar(x, values, yerr=errors, fmt="o", ms=7, lw=0, elinewidth=1.6, capsize=0,
                  color=ACCENT, ecolor=ACCENT, clip_on=False, zorder=3)  # fmt: skip
    _limits(axes, values, errors, rate, len(points))
    _labels(axes, points, narrow)
    if len(points) <= (7 if narrow else 12):
        for i, (value, p) in enumerate(zip(values, points, strict=True)):
            text = measured(p["value"], "%" if rate else "", p.get("stderr"))
            axes.annotate(text, (i, value), (6, 0), textcoords="offset points", va="center",
                          fontsize=10 if narrow else 12, color=INK, parse_math=False)  # fmt: skip
    margin = 46 / width
    right = (26 if narrow else 12) / width
    foot, head = 66 / height, 34 / height
    axes.set_position((margin, foot, 1 - margin - right, 1 - foot - head))
    figure.text(0, 0.985, f"{one_line(chart.get('y') or '')}{', %' if rate else ''}", va="top",
                fontsize=12, color=SOFT, parse_math=False)  # fmt: skip
    figure.text(1 - 12 / width, 0.015, one_line(chart.get("x") or ""), ha="right",
                va="bottom", fontsize=12, color=SOFT, parse_math=False)  # fmt: skip
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return out.getvalue()


def _limits(axes: Any, values: list[float], errors: list[float], rate: bool, n: int) -> None:
    top = max(v + e for v, e in zip(values, errors, strict=True))
    low = min(v - e for v, e in zip(values, errors, strict=True))
    room = (top - min(0.0, low)) * 1.08 or 1.0
    # A share starts at zero and never passes 100 %.
    axes.set_ylim(0.0 if rate or low >= 0 else low * 1.08, min(room, 104.0) if rate else room)
    axes.set_xlim(-0.5, n - 0.5)
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:,g}")
    axes.grid(axis="y", color=RULE, lw=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=12, labelcolor=SOFT, pad=6)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)


def _labels(axes: Any, points: list[dict[str, Any]], narrow: bool) -> None:
    every = math.ceil(len(points) / (6 if narrow else 10))
    shown = range(0, len(points), every)
    size = 10 if narrow else 12
    texts = [one_line(points[i].get("label"))[:18] for i in shown]
    axes.set_xticks(list(shown), texts, parse_math=False)
    # One line each: only single lines are anchored at their middle, whatever the page's font.
    for i in shown:
        if real(points[i].get("count")) is not None:
            axes.annotate(f"n = {number(points[i]['count'])}", (i, 0), (0, -24), va="top",
                          xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                          ha="center", fontsize=size, color=SOFT)  # fmt: skip
    axes.tick_params(axis="x", labelsize=size)


def _inline(svg: str, title: str, prefix: str, width: float) -> str:
    """matplotlib's file as an element of the page: no prolog, no global style, its own ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r"font(-family)?: ?[^;\"]*'DejaVu Sans'[^;\"]*;?", _font_size, svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    view = re.search(r'viewBox="[^"]*"', svg)
    opening = (
        f'<svg {view.group(0) if view else ""} width="{width:g}" role="img" '
        f'aria-label="{escape(one_line(title))}">'
    )
    return re.sub(r"\s*\n\s*", "\n", opening + svg[svg.index(">") + 1 :]).strip()


def _font_size(match: re.Match[str]) -> str:
    """Keep the size of a `font:` shorthand, whose family the page decides."""
    points = re.search(r"([\d.]+)px", match.group(0))
    return f"font-size: {points.group(1)}px;" if points else ""


def timeline(results: Mapping[str, Any]) -> Markup:
    """The phases of every rank and device against time, one band for each attempt."""
    spans = phase_spans(results)
    if not spans:
        return Markup()
    attempts = sorted({span["attempt"] for span in spans})
    end = max(max(span["end_s"] for span in spans), 1e-3)
    bands = [(a, _lanes([s for s in spans if s["attempt"] == a])) for a in attempts]
    n = sum(len(lanes) for _, lanes in bands)
    step = 26 if n <= 12 else 18 if n <= 40 else 13
    names, bars, y, drawn = [], [], HEAD, 0
    for attempt, lanes in bands:
        if len(bands) > 1:
            names.append(f'<text x="0" y="{y + 16}" class="band">attempt {attempt}</text>')
            y += 24
        for lane, members in lanes[: max(0, MAX_LANES - drawn)]:
            names.append(_lane_label(lane, members[0], y, step))
            seen = _joined(members, end * min(n, MAX_LANES) / MAX_BARS)
            bars += [_bar(span, end, y, step, spans) for span in seen]
            y, drawn = y + step, drawn + 1
    spoken = f"Time line of {n} lanes over {duration(end)}. The table of phases has the numbers."
    note = "Faded bars were cut off. " if any(span["cut"] for span in spans) else ""
    note += f"{MAX_LANES} of {n} lanes are drawn." if drawn < n else ""
    staged = ""
    if any(span.get("stage") is not None for span in spans):
        staged = " staged"
        note += " Gaps shorter than about 0.2 % of the time before them are not drawn."
    return Markup(
        f'{_legend(spans)}<div class="timeline" role="img" aria-label="{spoken}">'
        f'<svg class="names{staged}" height="{y + 4}">{"".join(names)}</svg>'
        f'<svg class="plot" height="{y + 4}">{_ticks(end, y)}{"".join(bars)}</svg>'
        f'</div><p class="small">{note}</p>'
    )


def _lanes(spans: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Spans by lane, a rank before its devices."""
    lanes: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for span in spans:
        device = span.get("device")
        key = (int(span.get("rank") or 0), -1 if device is None else int(device))
        lanes.setdefault(key, []).append(span)
    return [(lane_name(lanes[key][0]), lanes[key]) for key in sorted(lanes)]


def _joined(members: Sequence[dict[str, Any]], gap: float) -> list[dict[str, Any]]:
    """A lane's spans without gaps of less than `gap` seconds within a phase, so that a page of
    many batches stays small; long spans first, so that short ones lie on top."""
    found: list[dict[str, Any]] = []
    last: dict[str, dict[str, Any]] = {}
    for span in sorted(members, key=lambda s: float(s["start_s"])):
        before = last.get(span["name"])
        if before is not None and span["start_s"] - before["end_s"] < gap:
            before.update(end_s=max(before["end_s"], span["end_s"]), cut=span["cut"])
        else:
            last[span["name"]] = dict(span)
            found.append(last[span["name"]])
    return sorted(found, key=lambda s: float(s["start_s"] - s["end_s"]))


def _lane_label(lane: str, member: Mapping[str, Any], y: int, step: int) -> str:
    device = member.get("device")
    indent, text = (0, lane) if device is None else (12, device_name(member))
    small = ' class="small"' if step < 16 else ""
    return f'<text x="{indent}" y="{y + step / 2 + 4:g}"{small}>{escape(text)}</text>'


def _bar(span: dict[str, Any], end: float, y: int, step: int, spans: list[dict[str, Any]]) -> str:
    start, stop, name = span["start_s"], span["end_s"], span["name"]
    share = max(100 * (stop - start) / end, 2.0 if span["cut"] else 0.3)
    left = min(100 * start / end, 100 - share)
    cut, faded = (", cut off", ' class="cut"') if span["cut"] else ("", "")
    tip = f"{name}, {lane_name(span)}: {start:.2f} to {stop:.2f} s ({duration(stop - start)}{cut})"
    # About 1 % of the plot per letter on a desk, 2.4 % on a phone.
    fits = "" if share > 2.4 * len(name) + 3 else ' class="wide"' if share > len(name) + 2 else None
    label = ""
    if fits is not None and step >= 18:
        label = f'<text x="6" y="{step / 2 + 3:g}"{fits}>{escape(one_line(name))}</text>'
    return (
        f'<svg class="p{_colour(name, spans)}" x="{left:.2f}%" y="{y + 1}" '
        f'width="{share:.2f}%" height="{step - 2}"><title>{escape(one_line(tip))}</title>'
        f'<rect width="100%" height="100%"{faded}/>{label}</svg>'
    )


def _colour(name: str, spans: Sequence[Mapping[str, Any]]) -> int:
    if name in PHASES:
        return PHASES.index(name)
    others = list(dict.fromkeys(s["name"] for s in spans if s["name"] not in PHASES))
    return len(PHASES) + others.index(name) % 2


def _legend(spans: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(s["name"] for s in sorted(spans, key=lambda s: float(s["start_s"])))
    entries = "".join(
        f'<li><svg class="p{_colour(name, spans)}" width="12" height="12" aria-hidden="true">'
        f'<rect width="12" height="12"/></svg>{escape(one_line(name))}</li>'
        for name in names
    )
    return f'<ul class="legend">{entries}</ul>'


def _ticks(end: float, height: int) -> str:
    """Vertical lines at round times, few enough for a phone."""
    step = next((s for s in STEPS if end / s <= 6), 86400.0)
    marks = []
    for i in range(int(end / step) + 1):
        seconds, at = i * step, f"{100 * i * step / end:.2f}%"
        label = f"{seconds:g} s" if end < 600 else f"{seconds / 60:g} min"
        label = f"{seconds / 3600:g} h" if end >= 7200 else label
        side = "start" if i == 0 else "end" if i * step / end > 0.95 else "middle"
        marks.append(
            f'<line x1="{at}" x2="{at}" y1="{HEAD - 6}" y2="{height}"/>'
            f'<text x="{at}" y="12" text-anchor="{side}">{label}</text>'
        )
    return f'<g class="ticks">{"".join(marks)}</g>'
