"""The configuration as frozen dataclasses: one per Hydra group, every key with its meaning.

These are the only defaults; the files in conf/ say just what differs. `build.build` makes a
checked `JobConfig` out of what Hydra composed, and everything after it reads this object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, cast

from ftjob.config.bench import BenchConfig
from ftjob.config.cluster import MOST_DEVICES
from ftjob.config.cluster import ClusterConfig as ClusterConfig
from ftjob.config.convert import ConvertConfig
from ftjob.config.decode import MOST_NEW_TOKENS as MOST_NEW_TOKENS
from ftjob.config.decode import DecodeConfig as DecodeConfig
from ftjob.config.doctor import DoctorConfig
from ftjob.config.keys import FINITE, Rule, about, at_least, between, key, keys_of, positive
from ftjob.config.plan import PlanConfig as PlanConfig
from ftjob.errors import ConfigError


@dataclass(frozen=True)
class ArchConfig:
    """The shape of the model. A null is read from the checkpoint's own config.json."""

    layers: int | None = key(
        None, "transformer layers, of the decoder", rule=at_least(1), shapes_answer=True
    )
    encoder_layers: int | None = key(
        None,
        "layers of the encoder; null is as many as layers",
        rule=at_least(1),
        shapes_answer=True,
    )
    heads: int | None = key(None, "attention heads", rule=at_least(1), shapes_answer=True)
    head_size: int | None = key(
        None, "size of a head; null is hidden / heads", rule=at_least(1), shapes_answer=True
    )
    hidden: int | None = key(None, "hidden size", rule=at_least(1), shapes_answer=True)
    ffn: int | None = key(
        None, "inner size of the MLP; null is 4 x hidden", rule=at_least(1), shapes_answer=True
    )
    vocab: int | None = key(None, "vocabulary size", rule=at_least(1), shapes_answer=True)
    positions: int | None = key(
        None, "longest sequence in tokens", rule=at_least(1), shapes_answer=True
    )
    variant: Literal["v1_0", "v1_1"] | None = key(
        None,
        "T5: v1_0 has a relu MLP and a tied, scaled head, v1_1 a gated GELU and its own head",
        shapes_answer=True,
    )


@dataclass(frozen=True)
class ModelConfig:
    """What model runs, from which weights, in which precision."""

    name: str = key("model", "name shown in reports")
    family: Literal["gpt2", "t5"] = key("gpt2", "architecture family", shapes_answer=True)
    checkpoint: str = key(
        "", "folder, hub id such as openai-community/gpt2-medium, builtin:NAME, or random"
    )
    revision: str | None = key(None, "branch, tag or commit of a hub id")
    dtype: Literal["f32", "bf16", "f16"] = key(
        "f32", "dtype of weights and activations", shapes_answer=True
    )
    weights: Literal["float", "int8"] = key(
        "float",
        "int8: the layers' weights as int8, one scale per output column",
        shapes_answer=True,
    )
    tokenizer: str | None = key(
        None,
        "tokenizer.json, spiece.model, a folder with one or with vocab.json and merges.txt, or "
        "builtin:NAME; null is the checkpoint's own; none: rows are token ids (prompts)",
    )
    verify: bool = key(
        True,
        "read a checkpoint that has ftjob-manifest.json, which convert writes, once through and "
        "compare its checksums before it is loaded",
    )
    seed: int = key(0, "seed of checkpoint=random", rule=at_least(0))
    arch: ArchConfig = field(default_factory=ArchConfig)


@dataclass(frozen=True)
class ParallelConfig:
    """How many devices share a layer, share the layers, and share the rows."""

    tensor: int = key(1, "devices that share each layer", rule=at_least(1))
    pipeline: int = key(1, "stages the layers are cut into", rule=at_least(1))
    data: Literal["auto"] | int = key(
        "auto", "replicas; auto takes what tensor x pipeline leaves", rule=at_least(1)
    )


@dataclass(frozen=True)
class DatasetConfig:
    """What rows run, and what score is expected of them."""

    task: Literal["lambada", "translation", "prompts"] = key(
        "lambada", "how rows are read and scored", shapes_answer=True
    )
    mode: Literal["auto", "score", "generate"] = key(
        "auto",
        "score the targets teacher-forced, or generate and compare; auto: lambada scores, the "
        "others generate",
        shapes_answer=True,
    )
    path: str | None = key(
        None,
        "local .jsonl, .json, .csv, .tsv or .parquet file, or but for lambada a text file of a row "
        "a line (.gz too), or builtin:captions_en_de; null is the shipped LAMBADA",
    )
    target_path: str | None = key(
        None, "text file of reference translations, line by line those of dataset.path"
    )
    hub: str | None = key(None, "data set id on the hub, read through datasets")
    hub_config: str | None = key(None, "configuration name of the hub data set")
    split: str = key("test", "split of the hub data set")
    sacrebleu: str | None = key(
        None,
        "test set that sacrebleu knows, such as wmt17; from its cache, else the network; "
        "dataset.path, a copy at hand, comes first",
    )
    pair: str = key(
        "en-de",
        "languages, source first",
        rule=Rule("two languages as in en-de", lambda v: all(v.partition("-"))),
    )
    column: str = key("text", "column that holds the text, or the source")
    target_column: str | None = key(
        "target", "column that holds the reference translation; null is none, so no score"
    )
    prefix: str | None = key(
        None,
        "text put before every source; null is what the checkpoint's config.json states for pair, "
        "else none",
        shapes_answer=True,
    )
    max_source_tokens: int | None = key(
        None,
        "longest source in tokens, prefix and end token included; null is what the model allows",
        rule=at_least(1),
        shapes_answer=True,
    )
    too_long: Literal["error", "truncate", "skip"] = key(
        "error",
        "rows that are longer: an error record, the first tokens of the source (the last ones of a "
        "prompt without an encoder), or left out",
        shapes_answer=True,
    )
    limit: int | None = key(None, "only the first rows; null is all", rule=at_least(1))
    ngrams: int = key(
        0,
        "also score 1..N-grams at every position (slower)",
        rule=between(0, 4),
        shapes_answer=True,
    )
    expect: dict[str, float] = field(
        default_factory=dict,
        metadata=about(
            "metric -> least value in the units of results.json; below it the job exits 5", FINITE
        ),
    )

    @property
    def test_set(self) -> str | None:
        """The set to be had from sacrebleu, where no copy of it is at hand."""
        return self.sacrebleu if self.path is None else None

    @property
    def generates(self) -> bool:
        """Whether rows are continued; else their targets are scored teacher-forced."""
        return self.mode == "generate" or (self.mode == "auto" and self.task != "lambada")


@dataclass(frozen=True)
class BatchConfig:
    """How rows become batches. Answers do not depend on it."""

    max_tokens: Literal["auto"] | int = key(
        "auto",
        "tokens read in one batch; auto is 2048 on CPU, 16384 on GPU, or 33792 of rows "
        "that one replica scores where that fits, divided by the pipeline's stages but at least "
        "512 and 2048",
        rule=at_least(1),
    )
    lanes: Literal["auto"] | int = key(
        "auto",
        "rows x beams that a replica decodes at once, fewer where memory is short; at least beams "
        "x pipeline, a row a stage; auto is 512 on CPU, 1024 on GPU, or as many as that",
        rule=at_least(1),
    )
    stop_every: Literal["auto"] | int = key(
        "auto",
        "decode steps between two looks at which rows are finished; auto is 1 on CPU, 4 on GPU",
        rule=between(1, 256),
    )
    window: int = key(16384, "rows sorted by length at a time", rule=at_least(1))
    order: Literal["length", "dataset"] = key("length", "order of rows within a window")


@dataclass(frozen=True)
class RunConfig:
    """Where results go, and when the job gives up."""

    name: str | None = key(None, "last part of the run folder's name; null is the model's name")
    dir: str | None = key(
        None,
        "run folder, resumed if it exists; null is runs/DATE_TIME_name",
        rule=Rule("not empty", bool),  # a script's unset variable would mean the current folder
    )
    parquet: bool | None = key(
        None, "also write samples.parquet; null: where the rows of dataset.path come from one"
    )
    max_failed: int = key(0, "failed rows that still count as done (exit 0)", rule=at_least(0))
    deadline_s: float = key(
        60.0,
        "seconds a device or a rank may be silent before the job ends (exit 124)",
        rule=positive(1_000_000),
    )
    drain_s: float = key(
        120.0,
        "seconds before a Slurm job's time limit at which it drains to be requeued (exit 75)",
        rule=positive(1_000_000),
    )
    progress_s: float = key(
        30.0,
        "seconds between progress lines where stderr is no terminal",
        rule=positive(1_000_000),
    )


@dataclass(frozen=True)
class JobConfig:
    """The whole resolved configuration of one job."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    run: RunConfig = field(default_factory=RunConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, tuples as lists, for config.yaml and JSON."""
        plain: dict[str, Any] = dataclasses.asdict(self, dict_factory=_plain_dict)
        return plain

    def answer_fields(self) -> dict[str, Any]:
        """The keys marked as shaping the answers, dotted name -> value."""
        found: dict[str, Any] = {}
        for k in keys_of(JobConfig):
            if k.shapes_answer:
                value: Any = self
                for part in k.name.split("."):
                    value = getattr(value, part)
                found[k.name] = _plain(value)
        return found


GROUPS: Mapping[str, type[Any]] = MappingProxyType(
    {f.name: cast(type[Any], f.default_factory) for f in dataclasses.fields(JobConfig)}
)


def _plain_dict(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {k: _plain(v) for k, v in items}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def check_fields_together(config: JobConfig) -> None:
    """Refuse combinations that no single key can see.

    Raises:
        ConfigError: naming both keys and the rule.
    """
    if not config.model.checkpoint:
        raise ConfigError(
            "model.checkpoint is not set: give a folder, a hub id, or random "
            "(model.checkpoint=PATH)."
        )
    counts = config.cluster.devices_per_node
    if isinstance(counts, int) and not 1 <= counts <= MOST_DEVICES:
        raise ConfigError(f"cluster.devices_per_node={counts}: must be from 1 to {MOST_DEVICES}.")
