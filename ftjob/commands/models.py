"""`models`: what can be chosen as model=NAME, with size and where its weights come from."""

from __future__ import annotations

from collections.abc import Sequence

from ftjob.commands.layout import columns, parameters
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
    """One line a model, smallest first: name, family, parameters, shape, checkpoint."""
    rows: list[tuple[int, list[str]]] = []
    for name in choices("model", config_dirs):
        values = [f"model={name}", "model.checkpoint=PATH"]
        config = compose(values, config_dirs)
        if config.model.arch.layers is None:
            rows.append((0, [name, config.model.family, "-", "-", "-", "-", "of your own"]))
            continue
        source = planned_model(config)
        arch = source.arch
        shape = [str(arch.layers), str(arch.heads), str(arch.hidden)]
        origin = compose(values[:1], config_dirs).model.checkpoint
        count = source.parameters
        rows.append((count, [name, arch.family, parameters(count), *shape, origin]))
    head = ["model", "family", "parameters", "layers", "heads", "hidden", "checkpoint"]
    return "\n".join(columns([head, *(row for _, row in sorted(rows))]))
