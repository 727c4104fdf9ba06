"""Renders a finished run as documents: report.html, its Markdown twin, and the two plain texts.

Takes results.json as a mapping and returns strings; `report` writes them into the run folder.
The HTML is one file without network, script or font of its own, so that it can travel by mail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ftjob.results.page import facts, plots, tables
from ftjob.results.page.formats import MISSING, instant, one_line, pairs
from ftjob.results.page.tables import Table

WIDE, NARROW = 700, 330  # CSS pixels of a chart on a desk and on a phone


def render_html(results: dict[str, Any], config_yaml: str, environment: dict[str, Any]) -> str:
    """report.html: equal arguments give equal bytes."""
    engine = Environment(
        loader=PackageLoader("ftjob.results.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = facts.headline(results)
    return engine.get_template("report.html.j2").render(
        run=_identity(results),
        notes=[str(note) for note in facts.items(results, "notes")],
        state=facts.state(results),
        headline=shown,
        others=[score for score in facts.scores(results) if score not in shown],
        several_tasks=len({score.task for score in facts.scores(results)}) > 1,
        samples=facts.samples(results),
        throughput=tables.throughput(results),
        charts=_charts(results),
        timeline=plots.timeline(results),
        devices=tables.devices(results),
        phases=tables.phases(results),
        pipeline=tables.pipeline(results),
        given=tables.given(results),
        failed=tables.failed(results),
        attempts=tables.attempts(results),
        model=tables.model(results),
        config_yaml=config_yaml,
        environment=pairs(environment),
    )


def _identity(results: Mapping[str, Any]) -> dict[str, str]:
    keys = ("name", "run_dir", "git_hash", "ftjob", "command")
    known = {key: str(results.get(key) or "") for key in keys}
    return {**known, "date": instant(results.get("date"))}


def _charts(results: Mapping[str, Any]) -> list[tuple[Table, Markup, Markup]]:
    """Each chart as its numbers, and drawn for a desk and for a phone."""
    drawn = []
    for i, chart in enumerate(facts.records(results, "charts")):
        wide = plots.rate_chart(chart, WIDE, f"c{i}w")
        if wide:
            narrow = plots.rate_chart(chart, NARROW, f"c{i}n")
            drawn.append((tables.chart_values(chart), wide, narrow))
    return drawn


def render_markdown(results: dict[str, Any], environment: dict[str, Any]) -> str:
    """The page's facts for a pull request, as GitHub-flavoured Markdown tables."""
    state, run = facts.state(results), _identity(results)
    lines = [f"# {_text(run['name'] or 'run')}", ""]
    for note in facts.items(results, "notes"):
        lines += [f"> **Note.** {_text(note)}", ""]
    lines += [f"**{state.title}. {state.sentence}**", ""]
    lines += [f"- {_text(reason)}" for reason in state.reasons]
    lines += ["", f"First cause: {_quoted(state.cause)}"] if state.cause else []
    lines += ["", *_markdown_scores(results)]
    lines += _facts_table("Throughput", tables.throughput(results))
    listed = [tables.chart_values(chart) for chart in facts.records(results, "charts")]
    listed += [tables.devices(results), tables.pipeline(results), tables.phases(results)]
    listed += tables.given(results)
    listed += [tables.failed(results), tables.attempts(results)]
    for table in listed:
        lines += _markdown_table(table)
    lines += _facts_table("Model and layout", tables.model(results))
    lines += _facts_table("Environment", pairs(environment))
    lines += _facts_table("Run", [
        ("date", run["date"]),
        ("run folder", run["run_dir"]),
        ("git hash", run["git_hash"]),
        ("ftjob", run["ftjob"]),
    ])  # fmt: skip
    if run["command"]:
        fence = "`" * (_longest_ticks(run["command"]) + 3)
        lines += ["## Run it again", "", f"{fence}sh", run["command"], fence]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _markdown_scores(results: Mapping[str, Any]) -> list[str]:
    scores = facts.scores(results)
    if not scores:
        return ["No score was measured.", ""]
    rows = [
        [s.task, s.title, s.shown, s.error or MISSING, s.interval or MISSING, _expectation(s)]
        for s in scores
    ]
    columns = ["Task", "Metric", "Value", "Standard error", "95% interval", "Expected"]
    table = _markdown_table(Table("Scores", columns, rows, facts.samples(results)))
    defined = {s.title: s.about for s in scores if s.about}
    return [*table, *(f"- **{_text(t)}**: {_text(d)}" for t, d in defined.items()), ""]


def _expectation(score: facts.Score) -> str:
    if not score.expectation:
        return MISSING
    return f"{score.expectation}: {'met' if score.met else 'missed'}"


def _facts_table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    cells = [[label, text or MISSING] for label, text in rows]
    return _markdown_table(Table(title, ["", ""], cells))


def _markdown_table(table: Table) -> list[str]:
    if not table.rows:
        return []
    cell = partial(_cell, table)
    marks = ["---:" if i in table.right else "---" for i in range(len(table.columns))]
    lines = [f"## {_text(table.title)}", ""]
    lines += [_text(table.note), ""] if table.note else []
    lines += [_line([_text(column) for column in table.columns]), _line(marks)]
    return [*lines, *(_line([cell(i, c) for i, c in enumerate(row)]) for row in table.rows), ""]


def _cell(table: Table, column: int, text: str) -> str:
    plain = column in table.right or column not in table.quoted or text == MISSING
    return _text(text) if plain else _quoted(text).replace("|", "\\|")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: Any) -> str:
    """Text that Markdown takes literally, on one line."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)


def _quoted(text: Any) -> str:
    """Text of the data as a code span, where neither @names nor #numbers become links."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    if not line.strip():
        return MISSING
    ticks = "`" * (_longest_ticks(line) + 1)
    pad = " " if line[0] in "` " or line[-1] in "` " else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _longest_ticks(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
