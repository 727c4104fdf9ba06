"""Builds the tables of a run's report as plain text cells, once for HTML and Markdown alike.

A table function returns an empty table when the run has nothing for it, and the renderers leave
empty tables out. The tables go on to `page`, which alone knows about markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftjob.errors import DONE
from ftjob.results.page.facts import (
    attempts_differ,
    generated,
    items,
    micro_batches,
    part,
    phase_spans,
    phase_times,
    records,
    token_word,
)
from ftjob.results.page.formats import (
    MISSING,
    duration,
    instant,
    measured,
    number,
    pairs,
    real,
    scalar,
    share,
    size,
)

IDENTIFIERS = ("Rank", "Device", "Exit code")
NONE = "none"  # the rows of a device that did nothing


@dataclass(frozen=True)
class Table:
    """Cells as text. `quoted` columns hold text of the data, which is shown as it is."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    quoted: frozenset[int] = frozenset()
    shares: list[float] = field(default_factory=list)

    @property
    def right(self) -> frozenset[int]:
        """The columns of quantities, which are set flush right."""
        return frozenset(
            i
            for i in range(len(self.columns))
            if i > 0
            and self.columns[i] not in IDENTIFIERS
            and any(row[i] != MISSING for row in self.rows)
            and all(_is_number(row[i]) for row in self.rows)
            and all(len(row[i]) <= 16 for row in self.rows)
        )


def _is_number(cell: str) -> bool:
    return cell in (MISSING, NONE) or cell.lstrip("+-−")[:1].isdigit()


def throughput(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of the run's speed, the most asked-for first."""
    speed = part(results, "throughput")
    if not speed:
        return []
    lanes = {(d.get("rank"), d.get("device")) for d in records(results, "devices")}
    n = max(1, len(lanes))
    rate, tokens = real(speed.get("tokens_per_s")), real(speed.get("tokens"))
    word = token_word(results)
    found = [
        (f"{word} per second", number(rate)),
        ("rows per second", number(speed.get("rows_per_s"))),
        ("total time", duration(speed.get("seconds"))),
        ("rows", number(speed.get("rows"))),
        (word, number(tokens)),
    ]
    if generated(results):
        found.append(("input tokens", number(speed.get("input_tokens"))))
    if n > 1:
        found += [
            (f"{word} per device, mean of {n}", number(None if tokens is None else tokens / n)),
            (f"{word} per second per device", number(None if rate is None else rate / n)),
        ]
    if "bubble" in (bubble := part(results, "pipeline")):
        predicted = f", {share(bubble['predicted'])} predicted" if "predicted" in bubble else ""
        found.append((f"pipeline bubble{predicted}", share(bubble["bubble"])))
    return found


def devices(results: Mapping[str, Any]) -> Table:
    """Rows, tokens and speed of each device; one that did nothing says so."""
    found = records(results, "devices")
    most = max((real(d.get("tokens")) or 0.0 for d in found), default=0.0)
    names = {str(d.get("name")) for d in found}
    one_name = len(names) == 1
    by_attempt = attempts_differ(results)
    rows = []
    for device in found:
        busy, tokens = real(device.get("busy_s")), real(device.get("tokens")) or 0.0
        row = [scalar(device.get("rank")), scalar(device.get("device"))]
        row = [scalar(device.get("attempt")), *row] if by_attempt else row
        row += [] if one_name else [str(device.get("name"))]
        rows.append([
            *row,
            number(device.get("rows")) if device.get("rows") else NONE,
            *([number(device.get("input_tokens"))] if generated(results) else []),
            number(tokens) if tokens else NONE,
            number(tokens / busy if busy else None),
            duration(busy),
            size(device.get("weight_bytes")),
        ])  # fmt: skip
    columns = [*(["Attempt"] if by_attempt else []), "Rank", "Device"]
    columns += [] if one_name else ["Name"]
    word = token_word(results).capitalize()
    columns += ["Rows", *(["Input tokens"] if generated(results) else [])]
    columns += [word, f"{word}/s", "Busy", "Weights"]
    shares = [(real(d.get("tokens")) or 0.0) / most if most else 0.0 for d in found]
    idle = sum(not d.get("rows") for d in found)
    note = f"{'Every device' if len(found) > 1 else 'Device'}: {names.pop()}." if one_name else ""
    note += f" {idle} of {len(found)} answered no rows." if idle else ""
    return Table("Rows and tokens per device", columns, rows, note, shares=shares)


def pipeline(results: Mapping[str, Any]) -> Table:
    """The bubble, stage by stage: the time without work, measured beside predicted."""
    bubble = part(results, "pipeline")
    rows = [
        [
            scalar(stage.get("stage")),
            "-".join(str(layer) for layer in items(stage, "layers")),
            share(stage.get("bubble")),
            share(stage.get("predicted")),
        ]
        for stage in records(bubble, "each")
    ]
    if rows:
        rows.append(["all", MISSING, share(bubble.get("bubble")), share(bubble.get("predicted"))])
    counted = micro_batches(results)
    note = (
        f"{counted}{'. ' if counted else ''}Idle is the share of time without work of its own, "
        "from a replica's first batch to its last."
    )
    columns = ["Stage", "Layers", "Idle, measured", "Idle, predicted"]
    if "predicted" not in bubble:
        return Table("Pipeline bubble", columns[:3], [row[:3] for row in rows], note)
    note += (
        " Predicted is what filling, draining and stages of unequal work cost on devices that "
        "share no cores."
    )
    return Table("Pipeline bubble", columns, rows, note)


def phases(results: Mapping[str, Any]) -> Table:
    """Time in each phase: the mean and the longest lane, which is the one waited for."""
    by_attempt, times = attempts_differ(results), phase_times(results)
    cut = {(s["attempt"], s["name"]) for s in phase_spans(results) if s["cut"]}
    shared = any(len(lanes) > 1 for lanes in times.values())
    rows = []
    for (attempt, name), lanes in times.items():
        slowest = max(lanes, key=lambda lane: lanes[lane])
        row = [scalar(attempt)] if by_attempt else []
        row += [f"{name} (cut off)" if (attempt, name) in cut else name, duration(lanes[slowest])]
        if shared:
            row += [duration(sum(lanes.values()) / len(lanes)), number(len(lanes))]
        rows.append([*row, slowest])
    columns = ["Phase", "Longest", "Mean", "Lanes", "Longest in"]
    columns = columns if shared else ["Phase", "Time", "Where"]
    note = "A lane is a rank, or a device of one. Lanes run side by side: times do not add up."
    columns = ["Attempt", *columns] if by_attempt else columns
    return Table("Time per phase", columns, rows, note if shared else "")


def chart_values(chart: Mapping[str, Any]) -> Table:
    """The numbers behind a chart."""
    unit = "%" if chart.get("kind") == "rate" else ""
    rows = [
        [
            str(p.get("label")),
            measured(p.get("value"), unit, p.get("stderr")),
            measured(p.get("stderr"), unit, p.get("stderr")),
            number(p.get("count")),
        ]
        for p in records(chart, "points")
    ]
    columns = [str(chart.get("x") or ""), str(chart.get("y") or ""), "standard error", "rows"]
    return Table(str(chart.get("title") or "Chart"), columns, rows)


def given(results: Mapping[str, Any]) -> list[Table]:
    """The tables the task wrote itself, such as its worst rows."""
    found = []
    for table in records(results, "tables"):
        columns = [str(column) for column in items(table, "columns")]
        n = len(columns)
        rows = [
            [("" if cell is None else str(cell)) for cell in [*row, *[""] * n][:n]]
            for row in items(table, "rows")
            if isinstance(row, (list, tuple))
        ]
        title, note = str(table.get("title") or "Table"), str(table.get("note") or "")
        found.append(Table(title, columns, rows, note, frozenset(range(n))))
    return found


def failed(results: Mapping[str, Any]) -> Table:
    """The first failed rows, with the line to look at and what was wrong with it."""
    part_ = part(results, "failed")
    rows = [
        [scalar(row.get("line")), scalar(row.get("id")), str(row.get("error") or "")]
        for row in records(part_, "first")
    ]
    count = int(part_.get("count") or 0)
    note = f"{number(count)} failed, {number(part_.get('max_failed') or 0)} allowed."
    note += f" {number(len(rows))} of them shown." if 0 < len(rows) < count else ""
    return Table("Failed rows", ["Line", "Id", "Error"], rows, note, frozenset({1, 2}))


def attempts(results: Mapping[str, Any]) -> Table:
    """One line for each time the job was started; empty when the only one went well."""
    found = records(results, "attempts")
    if len(found) < 2 and all(int(a.get("code") or 0) == DONE for a in found):
        found = []
    rows = [
        [
            scalar(a.get("attempt")),
            instant(a.get("started")),
            scalar(a.get("host")),
            number(a.get("rows")),
            scalar(a.get("code")),
            str(a.get("cause") or MISSING),
        ]
        for a in found
    ]
    columns = ["Attempt", "Started", "Host", "Rows", "Exit code", "Cause"]
    return Table("Attempts", columns, rows, quoted=frozenset({5}))


def model(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What ran, how it was laid out and over which rows, as (label, text) pairs."""
    layout = [(f"{label} parallel" if label in ("tensor", "pipeline", "data") else label, text)
              for label, text in pairs(part(results, "parallel"))]  # fmt: skip
    rows = [(f"data set {label}", text) for label, text in pairs(part(results, "dataset"))]
    return pairs(part(results, "model")) + layout + rows
