"""A job before it runs: the configuration with everything it names found and checked.

`prepare` goes from a `JobConfig` to checkpoint, shape, tokenizer, task and plan without loading a
weight or importing torch; `commands/plan.py` prints the result, `rank` runs it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from ftjob.checkpoint.index import CheckpointIndex, check_tensors, open_index, read_json
from ftjob.checkpoint.resolve import resolve
from ftjob.checkpoint.shard import TensorRule
from ftjob.config import JobConfig
from ftjob.config.groups import ArchConfig
from ftjob.errors import CheckpointError, ConfigError
from ftjob.model.arch import Arch
from ftjob.model.families import Family, family, family_of
from ftjob.plan import Machine, Plan, make_plan
from ftjob.tokenizer import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class ModelSource:
    """Where the model's weights come from and what they are. `index` is None for random ones."""

    arch: Arch
    rules: tuple[TensorRule, ...]
    index: CheckpointIndex | None
    origin: str
    ignored: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of distinct parameters; a tied head counts once."""
        return sum(
            math.prod(r.shape) * (self.arch.layers if r.place == "layer" else 1)
            for r in self.rules
            if r.tied_to is None
        )

    def identity(self, seed: int) -> str:
        """What tells these weights from others."""
        return self.index.identity() if self.index is not None else f"random seed {seed}"


@dataclass(frozen=True)
class Job:
    """Everything a rank needs to run."""

    config: JobConfig
    source: ModelSource
    tokenizer: Tokenizer
    plan: Plan

    def identity(self) -> dict[str, Any]:
        """What shapes the answers, name -> value; a resumed run must have the same."""
        facts = self.config.answer_fields()
        facts.update({f"arch.{k}": v for k, v in asdict(self.source.arch).items()})
        facts["checkpoint"] = self.source.identity(self.config.model.seed)
        facts["tokenizer"] = self.tokenizer.identity
        return facts

    def model_facts(self) -> dict[str, Any]:
        """What reports say of the model."""
        config, source = self.config.model, self.source
        return {
            "name": config.name,
            "family": source.arch.family,
            "checkpoint": source.origin,
            "format": "random" if source.index is None else "Hugging Face safetensors",
            "parameters": source.parameters,
            "dtype": config.dtype,
            "weights": config.weights,
            "tokenizer": self.tokenizer.source,
            "random": source.index is None,
            "layers": source.arch.layers,
            "heads": source.arch.heads,
            "hidden": source.arch.hidden,
            "ffn": source.arch.ffn,
            "vocab": source.arch.vocab,
            "positions": source.arch.positions,
            "layernorm_eps": source.arch.norm_eps,
            "checkpoint tensors not used": ", ".join(source.ignored) or "none",
        }


def identity_hash(facts: dict[str, Any]) -> str:
    """The hash that goes into every key."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def prepare(config: JobConfig, machine: Machine) -> Job:
    """Find and check everything the configuration names.

    Raises:
        ConfigError: for an impossible layout.
        CheckpointError: for a checkpoint or tokenizer that is absent or does not fit.
    """
    source = open_model(config)
    folder = source.index.folder if source.index is not None else None
    plan = make_plan(config, source.arch, source.rules, machine)
    tokenizer = open_tokenizer(config.model.tokenizer, folder)
    if tokenizer.vocab_size > source.arch.vocab:
        raise CheckpointError(
            f"tokenizer {tokenizer.source}: gives ids up to {tokenizer.vocab_size - 1}, but the "
            f"model's vocabulary has {source.arch.vocab}. Name the model's own tokenizer with "
            "model.tokenizer=PATH."
        )
    return Job(config, source, tokenizer, plan)


def open_model(config: JobConfig) -> ModelSource:
    """The model's shape and where its weights are; reads headers only.

    Raises:
        CheckpointError: with file, tensor, expected and found.
        ConfigError: where conf/ and the checkpoint disagree about the shape.
    """
    model = config.model
    found = resolve(model.checkpoint, model.revision, model.name)
    kind: Family = family(model.family)
    if found.folder is None:
        arch = shape_arch(model.family, model.arch)
        return ModelSource(arch, kind.tensors(arch), None, found.origin, ())
    path = found.folder / "config.json"
    stated = read_json(path)
    actual = family_of(str(stated.get("model_type")))
    if actual != model.family:
        raise ConfigError(
            f"model.family={model.family}: {path} says model_type="
            f"{stated.get('model_type')}, which family {actual} reads."
        )
    try:
        arch = kind.read_config(stated)
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing") from None
    check_shape(model.arch, arch, model.name, str(path))
    rules = kind.tensors(arch)
    index = open_index(found.folder, kind.PREFIXES)
    ignored = check_tensors(index, rules, arch.layers, kind.IGNORED)
    return ModelSource(arch, rules, index, found.origin, tuple(ignored))


def shape_arch(family_name: str, shape: ArchConfig) -> Arch:
    """The `Arch` of a shape in the configuration, every size but ffn given."""
    sizes = [shape.layers, shape.heads, shape.hidden, shape.vocab, shape.positions]
    layers, heads, hidden, vocab, positions = (s or 0 for s in sizes)
    return family(family_name).from_shape(layers, heads, hidden, shape.ffn, vocab, positions)


def check_shape(wanted: ArchConfig, arch: Arch, model: str, path: str) -> None:
    """Refuse a checkpoint of another shape than the chosen model's.

    Raises:
        ConfigError: naming the first size that differs.
    """
    for name, value in asdict(wanted).items():
        if value is not None and value != getattr(arch, name):
            raise ConfigError(
                f"model.arch.{name}={value} (model={model}): {path} says {getattr(arch, name)}. "
                f"Choose the model that fits, or take the shape from the checkpoint: "
                f"model={arch.family} model.checkpoint=PATH."
            )
