"""Which format a checkpoint's folder has, told by what lies in it, and its index.

`job` opens every folder here, after `resolve` found it; the index goes to the plan and to `load`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ftjob.checkpoint import fastertransformer, megatron_files
from ftjob.checkpoint.huggingface import open_huggingface
from ftjob.checkpoint.index import CheckpointIndex, Known
from ftjob.checkpoint.manifest import refuse_unfinished
from ftjob.checkpoint.megatron import open_megatron
from ftjob.errors import CheckpointError


def open_checkpoint(
    folder: Path, known: Callable[[], Known] = Known, *, unfinished: bool = False
) -> CheckpointIndex:
    """The index of a folder; headers and settings are read, no weight. `known` is asked where the
    format leaves something open; `unfinished` allows the folder that a conversion writes.

    Raises:
        CheckpointError: for a folder of no format that is read, or of two, and for files that are
            missing, damaged or do not belong together.
    """
    if not unfinished:
        refuse_unfinished(folder)
    config = folder / "config.json"
    converted = fastertransformer.folder_inside(folder)
    trained = megatron_files.folder_inside(folder)
    there = [
        name
        for name, place in (
            ("config.json of Hugging Face", config.is_file()),
            ("config.ini of FasterTransformer", converted),
            ("ranks of Megatron-LM", trained),
        )
        if place
    ]
    if len(there) > 1:
        raise CheckpointError(f"{folder}: holds {' and '.join(there)}: keep one format a folder")
    if converted:
        return fastertransformer.open_fastertransformer(converted, known())
    if trained:
        return open_megatron(trained, folder, known())
    if config.is_file():
        return open_huggingface(folder)
    raise CheckpointError(
        f"model.checkpoint={folder}: is no checkpoint: the folder has no config.json (Hugging "
        "Face), no config.ini nor N-gpu folder with one (FasterTransformer), and no mp_rank_00, "
        "release or iter_0000000 (Megatron-LM)"
    )
