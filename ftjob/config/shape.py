"""Which keys of model.arch a family has, and which of them make a shape whole without a checkpoint.

`build` checks with it what is configured; `commands/plan.py` asks it whether a checkpoint's
config.json is needed at all. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ftjob.config.groups import ModelConfig
from ftjob.errors import ConfigError

# The sizes that nothing else gives, and the keys that other families have.
_NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gpt2": ("layers", "heads", "hidden", "vocab", "positions"),
        "t5": ("layers", "heads", "hidden", "vocab"),
    }
)
_FOREIGN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"gpt2": ("encoder_layers", "head_size", "variant"), "t5": ("positions",)}
)


def missing_sizes(model: ModelConfig) -> list[str]:
    """The keys that are null and keep the shape from being whole."""
    names = _NEEDED[model.family]
    return [f"model.arch.{name}" for name in names if getattr(model.arch, name) is None]


def check_model_shape(model: ModelConfig) -> None:
    """Refuse shapes that the family cannot have, and random weights without a whole one.

    Raises:
        ConfigError: naming the keys and the rule.
    """
    arch = model.arch
    for name in _FOREIGN[model.family]:
        if getattr(arch, name) is not None:
            raise ConfigError(
                f"model.arch.{name}={getattr(arch, name)}: family {model.family} has no {name}. "
                "Set it to null."
            )
    if model.checkpoint == "random" and (missing := missing_sizes(model)):
        raise ConfigError(
            f"model.checkpoint=random needs the model's shape; null are: {', '.join(missing)}."
        )
    derived = arch.head_size is None and (model.family == "gpt2" or not missing_sizes(model))
    if derived and arch.hidden and arch.heads and arch.hidden % arch.heads:
        raise ConfigError(
            f"model.arch.hidden={arch.hidden} is not a multiple of "
            f"model.arch.heads={arch.heads}: each head takes hidden / heads columns."
        )
