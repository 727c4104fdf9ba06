"""Prints a run's facts as plain text: summary.txt for grep, and the table that ends a run.

Both are ASCII, because a batch job's locale is often C and its log outlives the run. summary.txt
is written beside report.html; the terminal table is the last thing the job's log shows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from ftjob.errors import DONE
from ftjob.results.page.facts import (
    Score,
    generated,
    micro_batches,
    part,
    phase_times,
    samples,
    scores,
    state,
    token_word,
)
from ftjob.results.page.formats import ascii_line, duration, number, real, scalar, share

WIDTH = 80
MAX_LINES = 25


def render_summary(results: Mapping[str, Any]) -> str:
    """summary.txt: one `key : value` a line, numbers unrounded enough to compute with."""
    end, speed, word = state(results), part(results, "throughput"), token_word(results)
    lines: list[tuple[str, Any]] = [
        ("run", results.get("name")),
        ("run folder", results.get("run_dir")),
        ("date", results.get("date")),
        ("ftjob", results.get("ftjob")),
        ("git hash", results.get("git_hash")),
        ("scenario", "Offline"),
        ("result", end.verdict),
        *(("reason", reason) for reason in end.reasons),
        ("exit code", end.code),
        ("cause", end.cause),
        ("samples per second", speed.get("rows_per_s")),
        (f"{word} per second", speed.get("tokens_per_s")),
        ("seconds", speed.get("seconds")),
        ("samples", speed.get("rows")),
        (word, speed.get("tokens")),
        *([("input tokens", speed.get("input_tokens"))] if generated(results) else []),
        ("failed samples", part(results, "failed").get("count")),
        ("failed samples allowed", part(results, "failed").get("max_failed")),
        *([("samples left out", results["skipped"])] if results.get("skipped") else []),
    ]
    if bubble := part(results, "pipeline"):
        lines.append(("pipeline stages", bubble.get("stages")))
        if "micro_batches" in bubble:
            lines.append(("pipeline micro-batches", scalar(bubble["micro_batches"])))
        lines.append(("pipeline bubble", bubble.get("bubble")))
        if "predicted" in bubble:
            lines.append(("pipeline bubble predicted", bubble["predicted"]))
    for score in scores(results):
        key = f"{score.task} {score.name}{',' if score.kept else ''}{score.kept}"
        lines.append((key, score.value))
        if score.stderr is not None:
            lines.append((f"{key} standard error", score.stderr))
        if score.ends is not None:
            lines += [(f"{key} 95% from", score.ends[0]), (f"{key} 95% to", score.ends[1])]
        if score.signature:
            lines.append((f"{key} signature", score.signature))
    for name, expect in part(results, "expect").items():
        for key, value in expect.items() if isinstance(expect, Mapping) else ():
            if key != "value":
                lines.append((f"expect {name} {key}", value))
    for group in ("model", "parallel", "dataset"):
        lines += [(f"{group} {key}", value) for key, value in part(results, group).items()]
    lines.append(("command", results.get("command")))
    rule = "=" * 48
    body = [f"{ascii_line(key)} : {_raw(value)}" for key, value in lines]
    return "\n".join([rule, "ftjob results summary", rule, *body, ""])


def _raw(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else ascii_line(value)


def render_terminal(results: Mapping[str, Any]) -> str:
    """The table printed at the end of a run: at most 25 lines of 80 columns."""
    end = state(results)
    name = ascii_line(results.get("name") or "run", WIDTH - 24)
    verdict = f"result {end.verdict}"
    lines = ["-" * WIDTH, f"ftjob  {name}".ljust(WIDTH - len(verdict)) + verdict]
    lines += _rows("ended", end.meaning) if end.code not in (DONE, None) else []
    lines += _rows("cause", end.cause) if end.cause else []
    for reason in end.reasons[:3]:
        label = "running" if end.running else "reason"
        lines += _rows(label, reason) if "incomplete" not in reason else []
    lines.append("-" * WIDTH)
    shown = scores(results)
    tasks = len({score.task for score in shown})
    lines += [_score(score, tasks > 1) for score in shown[:8]] or [_row("score", "none")]
    lines += _work(results)
    lines.append("-" * WIDTH)
    lines += _phases(results, MAX_LINES - len(lines) - 2)
    lines.append("-" * WIDTH)
    folder = ascii_line(results.get("run_dir") or "-")
    # The end of a path tells more than its beginning.
    room = WIDTH - 18
    lines.append(_row("run folder", folder if len(folder) <= room else f"...{folder[3 - room :]}"))
    return "\n".join([*lines[:MAX_LINES], ""])


def _row(label: str, value: Any) -> str:
    return ascii_line(label, 16).ljust(18) + ascii_line(value, WIDTH - 18)


def _rows(label: str, value: Any) -> list[str]:
    """A sentence over two lines at most."""
    text = textwrap.wrap(
        ascii_line(value), WIDTH - 18, max_lines=2, placeholder="...", break_on_hyphens=False
    )
    return [_row(label if i == 0 else "", line) for i, line in enumerate(text)]


def _score(score: Score, with_task: bool) -> str:
    error = f" +- {score.error} (95%: {score.interval})" if score.error else ""
    where = f"{score.task}: " if with_task else ""
    missed = "" if score.met else "  MISSED"
    return _row(score.name, f"{where}{score.shown}{error}{missed}")


def _work(results: Mapping[str, Any]) -> list[str]:
    speed, failed = part(results, "throughput"), part(results, "failed")
    found = []
    counted = samples(results)
    rows = [counted[:1].lower() + counted[1:]] if counted else []
    rows += [f"{number(failed.get('count') or 0)} failed"] if failed else []
    found += [_row("rows", ", ".join(rows))] if rows else []
    if speed:
        pace = f"{number(speed.get('rows_per_s'))} rows/s, {number(speed.get('tokens_per_s'))}"
        over = f"{token_word(results)}/s over {duration(speed.get('seconds'))}"
        found.append(_row("speed", f"{pace} {over}"))
    if "bubble" in (bubble := part(results, "pipeline")):
        text = share(bubble["bubble"])
        if "predicted" in bubble:
            text += f", {share(bubble['predicted'])} predicted for {micro_batches(results)}"
        found.append(_row("pipeline bubble", text))
    return found


def _phases(results: Mapping[str, Any], room: int) -> list[str]:
    """The last attempt's phases: an earlier one's are in the report."""
    times = phase_times(results)
    last = max((attempt for attempt, _ in times), default=0)
    rows = [(name, max(lanes.values())) for (a, name), lanes in times.items() if a == last]
    total = max((real(seconds) or 0.0 for _, seconds in rows), default=0.0) or 1.0
    return [
        f"{_row(name, '')}{duration(seconds):<14}{'#' * round(48 * seconds / total)}".rstrip()
        for name, seconds in rows[: max(0, room)]
    ]
