"""Which format a checkpoint's folder has, told by what lies in it, and its index.

`job` opens every folder here, after `resolve` found it; the index goes to the plan and to `load`.
"""

from __future__ import annotations

from pathlib import Path

from ftjob.checkpoint.huggingface import open_huggingface
from ftjob.checkpoint.index import CheckpointIndex
from ftjob.errors import CheckpointError


def open_checkpoint(folder: Path) -> CheckpointIndex:
    """The index of a folder; headers and settings are read, no weight.

    Raises:
        CheckpointError: for a folder of no format that is read, and for files that are missing,
            damaged or do not belong together.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: the folder has no config.json; a Hugging Face checkpoint has one beside "
            "its weights."
        )
    return open_huggingface(folder)
