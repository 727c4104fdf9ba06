"""From `model.checkpoint` to a folder at hand: shipped, local, or from the hub and its cache.

The first thing a run does with the model; the folder goes to `index`, and the tokenizer is looked
for beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ftjob.checkpoint.huggingface import has_weights
from ftjob.errors import CheckpointError, nearest

DEMO = Path(__file__).resolve().parent.parent / "demo"
BUILTIN_CHECKPOINTS = ("demo_gpt", "demo_t5")
BUILTIN_TOKENIZERS = MappingProxyType(
    {
        "demo_gpt": ("demo_gpt/tokenizer.json",),
        "demo_t5": ("demo_t5/tokenizer.json",),
        "gpt2": ("gpt2_bpe/vocab.json.gz", "gpt2_bpe/merges.txt.gz"),
    }
)
# What a run needs of a hub repository; other formats of the same weights stay there.
HUB_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)
# What is fetched too where a repository has no safetensors.
OLDER_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Found:
    """A checkpoint folder and how it was found. `folder` is None for random weights."""

    folder: Path | None
    origin: str


def demo_file(name: str) -> Path:
    """A file of ftjob/demo."""
    return DEMO / name


def resolve(checkpoint: str, revision: str | None, model: str) -> Found:
    """The folder behind `model.checkpoint`; a hub id is taken from the cache, else downloaded.

    Raises:
        CheckpointError: where there are no weights to be had, with the ways to give them.
    """
    if checkpoint == "random":
        return Found(None, "random")
    if checkpoint.startswith("builtin:"):
        name = checkpoint.removeprefix("builtin:")
        if name not in BUILTIN_CHECKPOINTS:
            raise CheckpointError(
                f"model.checkpoint={checkpoint}: no such model is shipped. "
                f"{nearest(name, BUILTIN_CHECKPOINTS)}"
            )
        return Found(demo_file(name), checkpoint)
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return Found(folder, checkpoint)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", checkpoint) or folder.exists():
        raise CheckpointError(
            f"model.checkpoint={checkpoint}: is not a folder, nor a hub id of the form OWNER/NAME."
        )
    return _from_hub(checkpoint, revision, model)


def _from_hub(repo: str, revision: str | None, model: str) -> Found:
    """The cached snapshot if there is a whole one, so that runs repeat; else the network.

    Raises:
        CheckpointError: where neither has the weights, with the ways to give them.
    """
    from huggingface_hub import snapshot_download

    reason = "config.json or the weights are missing there"
    for local, files in ((True, HUB_FILES), (False, HUB_FILES), (False, HUB_FILES + OLDER_FILES)):
        try:
            folder = Path(
                snapshot_download(
                    repo, revision=revision, local_files_only=local, allow_patterns=list(files)
                )
            )
        except Exception as error:  # the hub client raises over a dozen kinds, all meaning this
            first = (str(error).strip().splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {first}"
            continue
        if _is_whole(folder):
            return Found(folder, f"{repo}@{revision or folder.name}")
    raise CheckpointError(
        f"model.checkpoint={repo}: not in the hub's cache (HF_HOME), and could not be "
        f"downloaded: {reason}\nThree ways to give the weights:\n"
        f"  1. on a machine with network: hf download {repo}, then the same HF_HOME here\n"
        f"  2. a folder with config.json and safetensors: model={model} model.checkpoint=PATH\n"
        f"  3. random weights, for speed and memory only: model={model} model.checkpoint=random"
    )


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has a configuration and weights; `huggingface` checks that they fit."""
    return (folder / "config.json").is_file() and has_weights(folder)
