"""The model families: one file each, found by name through `family`.

A family knows its checkpoints' config.json, tensor names and how each tensor is cut, and nothing
of devices. Standard library only, so that plans and refusals are instant.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Protocol, cast

from ftjob.checkpoint.shard import TensorRule
from ftjob.config.groups import ArchConfig
from ftjob.errors import CheckpointError, nearest
from ftjob.model.arch import Arch, Specials

MODULES = MappingProxyType({"gpt2": "ftjob.model.families.gpt2", "t5": "ftjob.model.families.t5"})


class Family(Protocol):
    """What a family's module gives. TOKENIZER is the one that random weights are run with."""

    MODEL_TYPES: tuple[str, ...]
    PREFIXES: tuple[str, ...]
    IGNORED: tuple[str, ...]
    TOKENIZER: str

    def read_config(self, config: Mapping[str, Any], names: Collection[str]) -> Arch:
        """The `Arch` of a checkpoint's config.json and of the names of its tensors; KeyError names
        a missing key."""

    def from_shape(self, shape: ArchConfig) -> Arch:
        """The `Arch` of a whole shape in conf/model, the rest as the family has it by default."""

    def specials(self, config: Mapping[str, Any]) -> Specials:
        """The ids that config.json and generation_config.json together state, not yet checked;
        `vocab_size` is there."""

    def tensors(self, arch: Arch) -> tuple[TensorRule, ...]:
        """Every tensor of a checkpoint, in reading order."""


def family(name: str) -> Family:
    """The family called `name`.

    Raises:
        CheckpointError: for an unknown name, with those that exist.
    """
    if name not in MODULES:
        raise CheckpointError(f"family {name}: not supported. {nearest(name, MODULES)}")
    return cast(Family, importlib.import_module(MODULES[name]))


def family_of(model_type: str) -> str:
    """The family that reads checkpoints whose config.json says `model_type`.

    Raises:
        CheckpointError: where no family does.
    """
    types = {t: name for name in MODULES for t in family(name).MODEL_TYPES}
    if model_type not in types:
        raise CheckpointError(
            f"model_type {model_type!r}: no family reads it. {nearest(model_type, types)}"
        )
    return types[model_type]
