"""`python -m eval.readme`: renders the generated parts of README.md from the code and raw figures.

Each part stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test renders again and compares.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.bench.workloads_page import figures
from eval.record import read_raw
from eval.render import suite_table
from ftjob.__main__ import COMMANDS
from ftjob.config import GROUPS
from ftjob.config.compose import choices
from ftjob.config.groups import DecodeConfig
from ftjob.config.keys import render_table
from ftjob.config.old_settings import render_names
from ftjob.config.options import render_options
from ftjob.errors import EXIT_CODES

README = Path(__file__).resolve().parent.parent / "README.md"


def commands() -> str:
    """The table of commands."""
    lines = ["| command | what it does |", "| --- | --- |"]
    lines += [f"| `python -m ftjob {name}` | {text} |" for name, (_, text) in COMMANDS.items()]
    return "\n".join(lines) + "\n"


def groups() -> str:
    """The table of config groups and what can be chosen."""
    lines = ["| group | choices (conf/GROUP/NAME.yaml) |", "| --- | --- |"]
    lines += [f"| `{group}` | {', '.join(choices(group))} |" for group in GROUPS]
    return "\n".join(lines) + "\n"


def exit_codes() -> str:
    """The table of exit codes."""
    lines = ["| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(lines) + "\n"


def scores(suite: str) -> str:
    """A table of results that opens the README."""
    return "\n".join(suite_table(suite, read_raw(suite))) + "\n"


def gpus() -> str:
    """The table of one GPU's times, medians in ms, beside those of other engines."""
    lines = [
        "| one H200 | ftjob | transformers | transformers, given (compiled) | "
        "FasterTransformer, given |",
        "| --- | --- | --- | --- | --- |",
    ]
    for made in read_raw("h200")["workloads"].values():
        ours, *peers = (figures(made, one["name"]) for one in made["contenders"])
        theirs = [_ms(seconds) for seconds in peers if seconds]
        given = made["given"]["hf"], made["given"]["ft"] or "-"
        cells = (made["title"], _ms(ours), theirs[0] if theirs else "-", *given)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _ms(seconds: Sequence[float]) -> str:
    median = 1e3 * statistics.median(seconds)
    return f"{median:.0f}" if median >= 100 else f"{median:.3g}"


PARTS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("results", lambda: scores("lambada_demo")),
    ("translation", lambda: scores("multi30k_demo")),
    ("gpus", gpus),
    ("commands", commands),
    ("groups", groups),
    ("keys", lambda: render_table(GROUPS)),
    ("options", lambda: render_options(DecodeConfig)),
    ("exit codes", exit_codes),
    ("old names", render_names),
)


def render(text: str) -> str:
    """README.md with every generated part made anew."""
    for name, make in PARTS:
        opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(opening)
        _, found, after = rest.partition(closing)
        if not found:
            raise ValueError(f"README.md has no part {opening.strip()} ... {closing}")
        text = f"{before}{opening}{make()}{closing}{after}"
    return text


def main() -> int:
    """Rewrite README.md."""
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
