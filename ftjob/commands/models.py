"""`models`: what can be chosen as model=NAME, with size and where its weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ftjob.commands.layout import columns, parameters
from ftjob.commands.plan import planned_model
from ftjob.config.compose import choices, compose
from ftjob.config.groups import JobConfig
from ftjob.errors import ConfigError

PATH = "PATH"  # stands for a checkpoint


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
        config = _composed(f"model={name}", config_dirs)
        if config.model.arch.layers is None:
            rows.append((0, [name, config.model.family, "-", "-", "-", "-", "of your own"]))
            continue
        # the shape stands in conf: neither files nor the hub are asked
        source = planned_model(replace(config, model=replace(config.model, checkpoint=PATH)))
        arch = source.arch
        shape = [str(arch.layers), str(arch.heads), str(arch.hidden)]
        count, origin = source.parameters, config.model.checkpoint
        rows.append((count, [name, arch.family, parameters(count), *shape, origin]))
    head = ["model", "family", "parameters", "layers", "heads", "hidden", "checkpoint"]
    return "\n".join(columns([head, *(row for _, row in sorted(rows))]))


def _composed(choice: str, config_dirs: Sequence[str]) -> JobConfig:
    """The configuration of a model, with PATH where it needs a checkpoint of the user's."""
    try:
        return compose([choice], config_dirs)
    except ConfigError:
        return compose([choice, f"model.checkpoint={PATH}"], config_dirs)
