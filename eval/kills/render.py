"""The campaign's report as Markdown, from its raw JSON: counts by phase and victim, then each seed.

A pure function; `eval.render` calls it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from eval.record import heading, made_line

Json = dict[str, Any]
# "leave" is after report.html: the other files of the report, and the ranks' parting.
PHASES = ("load", "score", "merge", "report", "leave")


def render_kills(name: str, raw: Json) -> str:
    """The report of a campaign."""
    seeds = sorted(raw["seeds"], key=lambda outcome: int(outcome["seed"]))
    kills = [a["kill"] for outcome in seeds for a in outcome["attempts"] if a["kill"]]
    failed = [outcome for outcome in seeds if outcome["problems"]]
    commits = sorted({outcome["commit"] for outcome in seeds})
    flying = sum(kill["in_flight"] > 0 for kill in kills)
    gone = [kill["gone_s"] for kill in kills if kill["gone_s"] is not None]
    lines = [
        *heading(raw, made_line(name, raw, ", ".join(map(str, commits)))),
        "| what | found |",
        "| --- | --- |",
        f"| seeds | {len(seeds)} |",
        f"| seeds that passed every check | {len(seeds) - len(failed)} |",
        f"| kills | {len(kills)} |",
        f"| kills with rows in flight by the journal | {flying} ({_percent(flying, len(kills))}) |",
        f"| moments missed and drawn again | {sum(outcome['missed'] for outcome in seeds)} |",
        f"| rows journaled twice | {sum(outcome['twice'] for outcome in seeds)} |",
        f"| torn last lines | {sum(kill['torn'] for kill in kills)} |",
        f"| longest time until all processes were gone | {max(gone, default=0.0):.2f} s |",
        "",
        *_counts(kills),
        "",
        "| seed | layouts | struck | phase | rows done | in flight | gone after | codes | result |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_row, seeds),
    ]
    for outcome in failed:
        lines += ["", f"Seed {outcome['seed']}:", ""]
        lines += [f"- {problem}" for problem in outcome["problems"]]
    return "\n".join(lines) + "\n"


def _counts(kills: list[Json]) -> list[str]:
    """Kills by victim and phase, with the longest time until all were gone."""
    victims = sorted({kill["victim"] for kill in kills})
    counted = Counter((kill["victim"], kill["phase"]) for kill in kills)
    lines = [
        f"| struck | {' | '.join(PHASES)} | gone after, at most |",
        f"| --- |{' --- |' * len(PHASES)} --- |",
    ]
    for victim in victims:
        seconds = [k["gone_s"] for k in kills if k["victim"] == victim and k["gone_s"] is not None]
        cells = " | ".join(str(counted[victim, phase]) for phase in PHASES)
        lines.append(f"| {victim} | {cells} | {max(seconds, default=0.0):.2f} s |")
    total = " | ".join(str(sum(k["phase"] == phase for k in kills)) for phase in PHASES)
    return [*lines, f"| together | {total} | |"]


def _row(outcome: Json) -> str:
    attempts = outcome["attempts"]
    kills = [a["kill"] for a in attempts if a["kill"]]
    gone = [("never" if k["gone_s"] is None else f"{k['gone_s']:.2f} s") for k in kills]
    cells = [
        str(outcome["seed"]),
        _joined(_layout(a["layout"]) for a in attempts),
        _joined(_struck(k) for k in kills),
        _joined(k["phase"] for k in kills),
        _joined(str(k["done"]) for k in kills),
        _joined(str(k["in_flight"]) for k in kills),
        _joined(gone),
        _joined(map(str, outcome["codes"])),
        "FAILED" if outcome["problems"] else "same answers",
    ]
    return f"| {' | '.join(cells)} |"


def _joined(parts: Any) -> str:
    return ", ".join(parts) or "-"


def _layout(layout: Json) -> str:
    """Ranks x devices, split, tokens of a chunk."""
    split = f"t{layout['tensor']}p{layout['pipeline']}d{layout['data']}"
    return f"{layout['ranks']}x{layout['devices']} {split} {layout['max_tokens']}"


def _struck(kill: Json) -> str:
    if kill["rank"] is None:
        return str(kill["victim"])
    return str(kill["victim"]).replace("rank", f"rank {kill['rank']}", 1)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
