"""Which format a checkpoint's folder has, told by what lies in it, and its index.

`job` opens every folder here, after `resolve` found it; the index goes to the plan and to `load`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ftjob.checkpoint import fastertransformer
from ftjob.checkpoint.huggingface import open_huggingface
from ftjob.checkpoint.index import CheckpointIndex, Known
from ftjob.errors import CheckpointError


def open_checkpoint(folder: Path, known: Callable[[], Known] = Known) -> CheckpointIndex:
    """The index of a folder; headers and settings are read, no weight. `known` is asked where the
    format leaves something open.

    Raises:
        CheckpointError: for a folder of no format that is read, or of two, and for files that are
            missing, damaged or do not belong together.
    """
    found = {
        "config.json of Hugging Face": folder if (folder / "config.json").is_file() else None,
        "config.ini of FasterTransformer": fastertransformer.folder_inside(folder),
    }
    there = [name for name, place in found.items() if place is not None]
    if len(there) > 1:
        raise CheckpointError(f"{folder}: holds {' and '.join(there)}: keep one format a folder")
    if place := found["config.json of Hugging Face"]:
        return open_huggingface(place)
    if place := found["config.ini of FasterTransformer"]:
        return fastertransformer.open_fastertransformer(place, known())
    raise CheckpointError(
        f"{folder}: is no checkpoint: the folder has no config.json (Hugging Face) and no "
        "config.ini, nor an N-gpu folder with one (FasterTransformer)"
    )
