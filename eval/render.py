"""`python -m eval.render`: every report under reports/ from its raw JSON, by pure functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from eval.bench.batch_one import render_batch_one
from eval.bench.parts import render_parts
from eval.bench.predicted import render_predicted
from eval.bench.render import render_bench
from eval.bench.sides_page import render_sides
from eval.bench.workloads_page import render_workloads
from eval.kills.render import render_kills
from eval.record import REPORTS, data_sentence, heading, made_line, read_raw

SUITES = Path(__file__).resolve().parent / "suites"


def render(name: str) -> str:
    """The report of reports/raw/NAME.json as Markdown."""
    raw = read_raw(name)
    renderers = {
        "suite": render_suite,
        "batch_one": render_batch_one,
        "bench": render_bench,
        "load": render_load,
        "kills": render_kills,
        "mutations": render_mutations,
        "parts": render_parts,
        "predicted": render_predicted,
        "rows": render_rows,
        "sides": render_sides,
        "workloads": render_workloads,
    }
    return renderers[raw["kind"]](name, raw)


def render_suite(name: str, raw: dict[str, Any]) -> str:
    """A suite's report: what was expected, what was found, how each figure was made."""
    suite = yaml.safe_load((SUITES / f"{name}.yaml").read_text(encoding="utf-8"))
    lines = [
        f"# {suite['title']}",
        "",
        f"Rendered by `python -m eval.render` from `raw/{name}.json`; made by "
        f"`python -m eval.run {name}`.",
        "",
        *suite_table(name, raw),
    ]
    lines += [
        "",
        "| job | what | same answers as transformers, by the rule of `compare` "
        "| command | made on |",
    ]
    lines += ["| --- | --- | --- | --- | --- |"]
    for job in (j for j in suite["jobs"] if j["name"] in raw["jobs"]):
        made = raw["jobs"][job["name"]]
        data = made.get("data", [])
        lines.append(
            f"| {job['name']} | {job['note']} | {_oracle(made)} | `{made['command']}` | "
            f"{made['date']}, commit {made['commit']}, {made['cpu']}, {made['cores']} cores, "
            f"torch {made['packages']['torch']}{'.' if data else ''}{data_sentence(data)} |"
        )
    return "\n".join(lines) + "\n"


def suite_table(name: str, raw: dict[str, Any]) -> list[str]:
    """The lines of the table of a suite's figures, beside what was expected."""
    suite = yaml.safe_load((SUITES / f"{name}.yaml").read_text(encoding="utf-8"))
    lines = [
        "| job | metric | found | standard error | expected | rows |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for job in (j for j in suite["jobs"] if j["name"] in raw["jobs"]):
        lines += _suite_rows(job, raw["jobs"][job["name"]])
    return lines


def _suite_rows(job: dict[str, Any], made: dict[str, Any]) -> list[str]:
    rows = []
    for metric, about in made["metrics"].items():
        value = made["figures"].get(f"{metric},none")
        if value is None:
            continue
        percent = about["unit"] == "%"
        bound = job.get("expect", {}).get(metric)
        expected = "-"
        if bound:
            within = abs(value - bound["value"]) <= bound["tolerance"]
            # half a row of 5153 is 0.01 %: a tolerance below that means exactly so many rows
            exact = percent and bound["tolerance"] < 1e-5
            tolerance = "" if exact else f" ± {_figure(bound['tolerance'], percent)}"
            expected = f"{_figure(bound['value'], percent)}{tolerance}: {'yes' if within else 'NO'}"
        error = made["figures"].get(f"{metric}_stderr,none")
        rows.append(
            f"| {job['name']} | {about['title']} | {_figure(value, percent)} | "
            f"{'-' if error is None else _figure(error, percent)} | {expected} | {made['rows']} |"
        )
    return rows


def _oracle(made: dict[str, Any]) -> str:
    found = made.get("oracle")
    if found is None:
        return "not compared"
    same = found["rows"] - found["different"]
    excused = f", {len(found['excused'])} of them by a near tie" if found["excused"] else ""
    return f"{same} of {found['rows']} rows{excused}"


def _figure(value: float, percent: bool) -> str:
    return f"{100 * value:.3f} %" if percent else f"{value:.6g}"


def render_load(name: str, raw: dict[str, Any]) -> str:
    """The load benchmark's report: peak memory and bytes read beside their bounds."""
    rounds = f"Of {raw['rounds']} rounds the highest peak and the most bytes."
    lines = [
        *heading(raw, f"{made_line(name, raw)} {rounds}"),
        "| weights | node | weights, MB | before, MB | peak, MB | peak / weights | "
        "(peak - before) / weights | 1.2 kept | read / slices |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in raw["cases"]:
        megabytes = [f"{case[k] / 1e6:.0f}" for k in ("weight_bytes", "before_bytes", "peak_bytes")]
        whole, added, counted = load_ratios(case)
        read = f"{case['bytes_read'] / case['slice_bytes']:.4f}" if case["slice_bytes"] else "-"
        lines.append(
            f"| {case['weights']} | {case['name']} | {' | '.join(megabytes)} | {whole:.3f} | "
            f"{added:.3f} | {'yes' if counted <= 1.2 else 'NO'}"
            f"{', all included' if counted == whole else ''} | {read} |"
        )
    return "\n".join(lines) + "\n"


def load_ratios(case: dict[str, Any]) -> tuple[float, float, float]:
    """Peak over weights, what the load adds over weights, and the one that the bound is for."""
    whole = case["peak_bytes"] / case["weight_bytes"]
    added = (case["peak_bytes"] - case["before_bytes"]) / case["weight_bytes"]
    return whole, added, whole if case["before_bytes"] <= 0.2 * case["weight_bytes"] else added


def render_rows(name: str, raw: dict[str, Any]) -> str:
    """Memory and time of runs of many rows, beside those of few."""
    lines = [
        *heading(raw, made_line(name, raw)),
        "| case | peak, MB | more than the few rows, MB | seconds to the first new row | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    few = raw["cases"][0]["peak_bytes"]
    for case in raw["cases"]:
        more = "-" if case is raw["cases"][0] else f"{(case['peak_bytes'] - few) / 1e6:.0f}"
        resumed = case["name"].startswith("resume")
        first = f"{case['held_s']:.1f}" if resumed else "-"
        peak = f"{case['peak_bytes'] / 1e6:.0f}"
        lines.append(f"| {case['name']} | {peak} | {more} | {first} | {case['seconds']:.0f} |")
    lines += ["", f"The indexes take {raw['index_bytes_a_row']:.1f} bytes a row."]
    return "\n".join(lines) + "\n"


def render_mutations(name: str, raw: dict[str, Any]) -> str:
    """What became of damaged checkpoints, a line a format."""
    outcomes = ("refused", "as it was", "other numbers", "other settings", "FAILED")
    lines = [
        *heading(raw, made_line(name, raw)),
        f"| format | mutations | {' | '.join(outcomes)} | found by the manifest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for form, made in raw["formats"].items():
        counts = " | ".join(str(made["outcomes"].get(o, 0)) for o in outcomes)
        changed = made["listed files changed"]
        found = f"{made['found by the manifest']} of {changed}" if changed else "has none"
        lines.append(f"| {form} | {made['mutations']} | {counts} | {found} |")
    failures = [f"- {form}, {f}" for form, made in raw["formats"].items() for f in made["failures"]]
    return "\n".join([*lines, *(["", *failures] if failures else [])]) + "\n"


def main() -> int:
    """Render every report that has raw figures."""
    for raw in sorted((REPORTS / "raw").glob("*.json")):
        (REPORTS / f"{raw.stem}.md").write_text(render(raw.stem), encoding="utf-8")
        print(f"eval/reports/{raw.stem}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
