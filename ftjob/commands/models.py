"""`models`: what can be chosen as model=NAME, with size and where its weights come from."""

from __future__ import annotations

from collections.abc import Sequence

from ftjob.commands.plan import planned_model
from ftjob.config.compose import choices, compose
from ftjob.errors import ConfigError


def main(overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    """Print the table. Returns the exit code."""
    if overrides:
        raise ConfigError(f"models takes no overrides, found {overrides[0]!r}.")
    print(table(config_dirs))
    return 0


def table(config_dirs: Sequence[str]) -> str:
    """One line a model: name, family, parameters, shape, checkpoint."""
    rows = [("model", "family", "parameters", "layers", "heads", "hidden", "checkpoint")]
    for name in choices("model", config_dirs):
        model = compose(
            [f"model={name}", *([] if name != "gpt2" else ["model.checkpoint=PATH"])], config_dirs
        ).model
        if model.arch.layers is None:
            rows.append((name, model.family, "-", "-", "-", "-", "model.checkpoint=PATH"))
            continue
        source = planned_model(compose([f"model={name}"], config_dirs))
        arch = source.arch
        rows.append(
            (
                name,
                arch.family,
                f"{source.parameters / 1e6:,.1f} M",
                str(arch.layers),
                str(arch.heads),
                str(arch.hidden),
                model.checkpoint,
            )
        )
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
