"""Which keys of dataset, decode and model go together: one source of rows, a task it can serve.

`build` checks with it what is configured; `tasks.rows` opens the source that is left. Standard
library only.
"""

from __future__ import annotations

from pathlib import PurePath

from ftjob.config.groups import DatasetConfig, DecodeConfig, JobConfig
from ftjob.config.options import conflict
from ftjob.errors import ConfigError

# Endings of files whose rows have named columns, and of text, a row a line.
TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
TEXT = ".txt"


def file_kind(path: str) -> str:
    """The ending that tells a file's format: lower case, without .gz."""
    return PurePath(PurePath(path).name.removesuffix(".gz")).suffix.lower()


def is_text_alone(data: DatasetConfig) -> bool:
    """Whether dataset.path is a text of sources, a row a line, without references: by its ending,
    or because it is no table and none are wanted."""
    if data.task != "translation" or data.path is None or data.path.startswith("builtin:"):
        return False
    kind = file_kind(data.path)
    alone = data.target_path is None
    return alone and (kind == TEXT or (kind not in TABLES and data.target_column is None))


def check_dataset(config: JobConfig) -> None:
    """Refuse rows that could not be read, asked or scored as configured.

    Raises:
        ConfigError: naming the keys, the rule and a legal choice.
    """
    _check_source(config.dataset)
    _check_task(config)
    _check_search(config)


def check_model_for_task(config: JobConfig, seq2seq: bool) -> None:
    """Refuse a model that the task has no use for, once the checkpoint has said what it is.

    Raises:
        ConfigError: naming both and the nearest legal choices.
    """
    if seq2seq and config.dataset.task == "lambada":
        raise ConfigError(
            f"model={config.model.name} with dataset.task=lambada: the last word of a passage is "
            "predicted by decoder-only models, this one has an encoder. Use a translation set, "
            "such as dataset=demo_en_de, or a model of family gpt2, such as model=demo_gpt."
        )


def _check_source(data: DatasetConfig) -> None:
    named = ("path", "hub", "sacrebleu")
    sources = [name for name in named if getattr(data, name) is not None]
    if data.test_set is None and "sacrebleu" in sources:
        sources.remove("sacrebleu")  # dataset.path is a copy of it
    if len(sources) > 1:
        both = " and ".join(f"dataset.{name}={getattr(data, name)}" for name in sources)
        away = " ".join(f"dataset.{name}=null" for name in sources[1:])
        raise ConfigError(
            f"{both} are set: a data set has one source. For dataset.{sources[0]} add {away}."
        )
    if data.hub_config is not None and data.hub is None:
        raise ConfigError(f"dataset.hub_config={data.hub_config} needs dataset.hub=ID.")
    if data.target_path is None:
        return
    if data.path is None:
        raise ConfigError(
            f"dataset.target_path={data.target_path} needs dataset.path=FILE, the text file whose "
            "lines it translates."
        )
    for name, path in (("path", data.path), ("target_path", data.target_path)):
        if file_kind(path) in TABLES or path.startswith("builtin:"):
            raise ConfigError(
                f"dataset.{name}={path}: with dataset.target_path both are text files, a row a "
                "line. A file with columns has its references in dataset.target_column."
            )


def _check_task(config: JobConfig) -> None:
    data = config.dataset
    if data.task != "lambada" and data.mode == "score":
        raise ConfigError(
            f"dataset.mode=score: dataset.task={data.task} generates. Use mode=auto, or "
            "dataset.task=lambada."
        )
    if data.task == "prompts" and data.path is None and data.hub is None:
        raise ConfigError("dataset.task=prompts has no rows: give dataset.path=FILE.")
    if data.task == "prompts" and data.column in ("id", "prompt_ids"):
        raise ConfigError(
            f"dataset.column={data.column}: has a meaning of its own there. Token ids need no such "
            "key; a text is in dataset.column=prompt or another column."
        )
    if data.task == "translation":
        if data.path is None and data.hub is None and data.sacrebleu is None:
            raise ConfigError(
                "dataset.task=translation has no rows: give dataset.path=FILE, alone or with "
                "dataset.target_path=FILE, or dataset.sacrebleu=NAME or dataset.hub=ID; "
                "dataset=demo_en_de is shipped."
            )
    else:
        for name in ("target_path", "sacrebleu"):
            if getattr(data, name) is not None:
                raise ConfigError(
                    f"dataset.{name}={getattr(data, name)}: dataset.task={data.task} has no "
                    "translations. Use dataset.task=translation."
                )
    if data.ngrams and data.generates:
        raise ConfigError(
            f"dataset.ngrams={data.ngrams} with dataset.task={data.task} and dataset.mode="
            f"{data.mode}: n-grams are counted teacher-forced. Use dataset.task=lambada "
            "dataset.mode=score, or dataset.ngrams=0."
        )


def _check_search(config: JobConfig) -> None:
    decode, data = config.decode, config.dataset
    default = DecodeConfig()
    given = {k for k, v in vars(decode).items() if v != getattr(default, k)}
    problem = conflict(
        decode, decode.convention, decode.beams, decode.max_new_tokens, given, "decode."
    )
    if problem is None and decode.convention == "ft" and decode.early_stopping == "never":
        problem = "decode.early_stopping=never: with decode.convention=ft it is always true"
    if problem is not None:
        raise ConfigError(f"{problem}.")
    if decode.beams > 1 and not data.generates:
        raise ConfigError(
            f"decode.beams={decode.beams}: dataset.task={data.task} with dataset.mode={data.mode} "
            "scores, and decodes nothing. Use decode=greedy, or dataset.mode=generate."
        )
