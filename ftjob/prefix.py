"""The text that stands before every source: as configured, else what the checkpoint states.

T5's checkpoints were trained on many tasks at once, each behind words of its own, and translate
badly without them. `job` asks here once; the task puts the text before the sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ftjob.config.groups import DatasetConfig
from ftjob.model.arch import Arch


@dataclass(frozen=True)
class Remark:
    """What a user should know before the run; the report repeats a warning."""

    level: Literal["note", "warning"]
    text: str


def stated_prefix(config: Mapping[str, Any], pair: str) -> str | None:
    """What a checkpoint's config.json says is put before a source of this pair of languages, such
    as en-de: task_specific_params.translation_en_to_de.prefix, as in the published T5's."""
    source, _, target = pair.partition("-")
    value: Any = config
    for name in ("task_specific_params", f"translation_{source}_to_{target}", "prefix"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) and value else None


def choose_prefix(
    data: DatasetConfig, stated: str | None, arch: Arch, random: bool
) -> tuple[str, list[Remark]]:
    """The prefix of a run and what there is to say of it. `stated` is the checkpoint's for
    dataset.pair; the weights may be `random`."""
    if data.task != "translation":
        return data.prefix or "", []
    whose = f"the checkpoint's config.json states {stated!r} for dataset.pair={data.pair}"
    if data.prefix is None and stated is not None:
        return stated, [Remark("note", f"dataset.prefix: {whose}: it is put before every source")]
    if data.prefix == "" and stated is not None:
        text = (
            f"dataset.prefix is empty, but {whose}: without it the model may translate badly. "
            "dataset.prefix=null takes it."
        )
        return "", [Remark("warning", text)]
    if data.prefix is None and arch.family == "t5" and not arch.gated and not random:
        text = (
            "dataset.prefix=null puts nothing before the sources: the checkpoint's config.json "
            f"states no prefix for dataset.pair={data.pair}. A T5 of version 1.0 is mostly trained "
            "with one, such as 'translate English to German: ', and translates badly without. Give "
            "it by dataset.prefix=TEXT, or say by dataset.prefix='' that there is none."
        )
        return "", [Remark("warning", text)]
    return data.prefix or "", []
