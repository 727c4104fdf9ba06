"""A job before it runs: the configuration with everything it names found and checked.

`prepare` goes from a `JobConfig` to checkpoint, shape, tokenizer, task and plan without loading a
weight or importing torch; `commands/plan.py` prints the result, `rank` runs it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ftjob.checkpoint.formats import open_checkpoint
from ftjob.checkpoint.index import CheckpointIndex, Known, check_layers, check_tensors
from ftjob.checkpoint.resolve import resolve
from ftjob.checkpoint.shard import TensorRule, place_all
from ftjob.checkpoint.specials import read_specials
from ftjob.config import JobConfig
from ftjob.config.dataset import check_model_for_task
from ftjob.config.groups import ArchConfig
from ftjob.errors import CheckpointError, ConfigError
from ftjob.model.arch import Arch, Specials
from ftjob.model.families import Family, family, family_of
from ftjob.plan import Machine, Plan, make_plan
from ftjob.prefix import Remark, choose_prefix, stated_prefix
from ftjob.tasks.base import ModelLimits, NoTokenizer
from ftjob.tasks.generation import run_options
from ftjob.tokenizer import END_OF_TEXT, NONE, Tokenizer, has_tokenizer, open_tokenizer


@dataclass(frozen=True)
class ModelSource:
    """Where the model's weights come from and what they are. `index` is None for random ones.
    `prefix` is what the checkpoint states for the sources of dataset.pair."""

    arch: Arch
    specials: Specials
    rules: tuple[TensorRule, ...]
    index: CheckpointIndex | None
    origin: str
    ignored: tuple[str, ...]
    prefix: str | None = None

    @property
    def parameters(self) -> int:
        """Number of distinct parameters; a tied head counts once."""
        whole = place_all(self.rules, self.arch.layers, self.arch.encoder_layers)
        return sum(len(p.sources) * math.prod(p.rule.shape) for p in whole)

    def identity(self, seed: int) -> str:
        """What tells these weights from others."""
        return self.index.identity() if self.index is not None else f"random seed {seed}"


@dataclass(frozen=True)
class Job:
    """Everything a rank needs to run. `remarks` are for the user, before the run."""

    config: JobConfig
    source: ModelSource
    tokenizer: Tokenizer
    plan: Plan
    remarks: tuple[Remark, ...] = ()

    def limits(self) -> ModelLimits:
        """What a task must know to make requests."""
        arch, room = self.source.arch, self.plan.generation
        ends = self.source.specials.ends
        cells = None if room is None else room.cells
        return ModelLimits(arch.positions, arch.vocab, ends, arch.seq2seq, cells)

    def identity(self) -> dict[str, Any]:
        """What shapes the answers, name -> value; a resumed run must have the same."""
        facts = self.config.answer_fields()
        facts.update({f"arch.{k}": v for k, v in asdict(self.source.arch).items()})
        facts["specials.start"] = self.source.specials.start
        facts["specials.ends"] = list(self.source.specials.ends)
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
            "format": "random" if source.index is None else source.index.format,
            "parameters": source.parameters,
            "dtype": config.dtype,
            "weights": config.weights,
            "tokenizer": self.tokenizer.source,
            "random": source.index is None,
            **_arch_facts(source.arch),
            **(source.index.remarks if source.index is not None else {}),
            "checkpoint tensors not used": ", ".join(source.ignored) or "none",
        }


def _arch_facts(arch: Arch) -> dict[str, Any]:
    """The shape in words and numbers."""
    facts: dict[str, Any] = {"layers": arch.layers, "heads": arch.heads}
    if arch.seq2seq:
        facts = {
            "encoder layers": arch.encoder_layers,
            "decoder layers": arch.layers,
            "heads": arch.heads,
            "head size": arch.head_size,
        }
    facts |= {"hidden": arch.hidden, "ffn": arch.ffn, "vocab": arch.vocab}
    if arch.positions is not None:
        facts["positions"] = arch.positions
    if arch.relative is not None:
        facts["positions"] = (
            f"unlimited (relative: {arch.relative.buckets} buckets up to "
            f"{arch.relative.max_distance} tokens)"
        )
    return facts | {f"{arch.norm}norm_eps": arch.norm_eps}


def identity_hash(facts: dict[str, Any]) -> str:
    """The hash that goes into every key."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def prepare(config: JobConfig, machine: Machine) -> Job:
    """Find and check everything the configuration names. The job's own configuration has the
    prefix that was chosen.

    Raises:
        ConfigError: for an impossible layout, or words and ids that the vocabulary has not.
        CheckpointError: for a checkpoint or tokenizer that is absent or does not fit.
    """
    source = open_model(config)
    check_model_for_task(config, source.arch.seq2seq)
    folder = source.index.folder if source.index is not None else None
    prefix, remarks = choose_prefix(config.dataset, source.prefix, source.arch, folder is None)
    config = replace(config, dataset=replace(config.dataset, prefix=prefix))
    plan = make_plan(config, source.arch, source.rules, machine)
    spec = config.model.tokenizer
    if spec is None and folder is None:
        spec = family(config.model.family).TOKENIZER
    if spec is None and folder is not None and config.dataset.task == "prompts":
        spec = None if has_tokenizer(folder) else NONE
    tokenizer = open_tokenizer(spec, folder)
    check_words(tokenizer, source.arch.vocab)
    job = Job(config, source, tokenizer, plan, tuple(remarks))
    if config.dataset.generates:
        run_options(config.decode, tokenizer, job.limits())
    return job


def check_words(tokenizer: Tokenizer, vocab: int) -> None:
    """Refuse a tokenizer that gives ids beyond the model's vocabulary.

    Raises:
        CheckpointError: with both sizes.
    """
    if tokenizer.vocab_size > vocab:
        raise CheckpointError(
            f"tokenizer {tokenizer.source}: gives ids up to {tokenizer.vocab_size - 1}, but the "
            f"model's vocabulary has {vocab}. Name the model's own tokenizer with "
            "model.tokenizer=PATH."
        )


def open_model(config: JobConfig) -> ModelSource:
    """The model's shape and where its weights are; reads headers only.

    Raises:
        CheckpointError: with file, tensor, expected and found.
        ConfigError: where conf/ and the checkpoint disagree about the shape.
    """
    model = config.model
    found = resolve(model.checkpoint, model.revision, model.name)
    if found.folder is None:
        return shape_source(config, found.origin)
    folder = found.folder
    index = open_checkpoint(folder, lambda: known_of(config, folder))
    stated = str(index.config.get("model_type"))
    actual = family_of(stated)
    if actual != model.family:
        raise ConfigError(
            f"model.family={model.family}: {index.stated_in} says model_type={stated}, which "
            f"family {actual} reads."
        )
    return model_of(config, index, found.origin)


def model_of(config: JobConfig, index: CheckpointIndex, origin: str) -> ModelSource:
    """The model that an index describes, with every tensor of it checked.

    Raises:
        CheckpointError: with file, tensor, expected and found.
        ConfigError: where conf/ and the checkpoint disagree about the shape.
    """
    kind = family(family_of(str(index.config.get("model_type"))))
    try:
        arch = kind.read_config(index.config, index.tensors.keys())
    except KeyError as error:
        raise CheckpointError(f"{index.stated_in}: {error} is missing") from None
    except CheckpointError as error:
        reason = str(error).removeprefix("config.json: ")
        raise CheckpointError(f"{index.stated_in}: {reason}") from None
    check_shape(config.model.arch, arch, config.model.name, str(index.stated_in))
    check_layers(arch.layers + arch.encoder_layers, len(index.tensors), index.stated_in)
    rules = kind.tensors(arch)
    whole = place_all(rules, arch.layers, arch.encoder_layers)
    ignored = [*check_tensors(index, whole, kind.IGNORED), *index.unused]
    specials = read_specials(kind, index, arch.vocab)
    prefix = stated_prefix(index.config, config.dataset.pair)
    return ModelSource(arch, specials, rules, index, origin, tuple(ignored), prefix)


def known_of(config: JobConfig, folder: Path) -> Known:
    """What configuration and tokenizer say of a model whose files may not; a tokenizer that is
    absent is refused later, where it is needed."""
    arch = config.model.arch
    try:
        tokenizer = open_tokenizer(config.model.tokenizer, folder)
        end = tokenizer.encode([END_OF_TEXT])[0]
    except (CheckpointError, NoTokenizer):
        return Known(arch.heads, arch.vocab)
    single = end[0] if len(end) == 1 else None
    return Known(arch.heads, arch.vocab, tokenizer.vocab_size, single)


def shape_source(config: JobConfig, origin: str) -> ModelSource:
    """The model of the shape in the configuration, which is whole; without weights at hand."""
    kind: Family = family(config.model.family)
    arch = kind.from_shape(config.model.arch)
    specials = kind.specials({"vocab_size": arch.vocab})
    return ModelSource(arch, specials, kind.tensors(arch), None, origin, ())


def check_shape(wanted: ArchConfig, arch: Arch, model: str, path: str) -> None:
    """Refuse a checkpoint of another shape than the chosen model's.

    Raises:
        ConfigError: naming the first size that differs.
    """
    actual = asdict(arch) | {"variant": "v1_1" if arch.gated else "v1_0"}
    for name, value in asdict(wanted).items():
        if value is not None and value != actual[name]:
            raise ConfigError(
                f"model.arch.{name}={value} (model={model}): {path} says {actual[name]}. "
                f"Choose the model that fits, or take the shape from the checkpoint: "
                f"model={arch.family} model.checkpoint=PATH."
            )
