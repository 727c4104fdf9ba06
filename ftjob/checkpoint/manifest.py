"""The manifest that `convert` leaves beside what it wrote: length and SHA-256 of every file.

`run` checks a checkpoint that has one before it loads, so that any changed bit is found; the marker
of an unfinished conversion is here too. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ftjob.errors import CheckpointError

MANIFEST_NAME = "ftjob-manifest.json"
UNFINISHED_NAME = "ftjob-unfinished"
_THREADS, _BLOCK = 4, 1 << 22


def manifest_of(folder: Path) -> Path | None:
    """The manifest of a folder, or of the one it lies in: ranks' folders are named too."""
    places = (folder / MANIFEST_NAME, folder.parent / MANIFEST_NAME)
    return next((p for p in places if p.is_file()), None)


def refuse_unfinished(folder: Path) -> None:
    """Refuse a folder that a conversion has not finished.

    Raises:
        CheckpointError: naming the mark.
    """
    for place in (folder, folder.parent):
        if (mark := place / UNFINISHED_NAME).exists():
            raise CheckpointError(
                f"{mark}: a conversion writes this folder, or was ended before it was whole; "
                "convert again"
            )


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Hash every file below the folder and write the manifest."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != UNFINISHED_NAME)
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(_digest, files))
    entries = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, digests, strict=True)
    }
    text = json.dumps({**facts, "files": entries}, indent=1)
    (folder / MANIFEST_NAME).write_text(f"{text}\n", encoding="utf-8")


def check_manifest(folder: Path, pulse: Callable[[], None] = lambda: None) -> int | None:
    """Read every file that the folder's manifest lists and compare; the bytes checked, or None
    where there is no manifest. `pulse` is called after each file.

    Raises:
        CheckpointError: for a file that is missing, or has another length or other bytes.
    """
    path = manifest_of(folder)
    if path is None:
        return None
    entries = _entries(path)
    for name, entry in entries.items():
        file = path.parent / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            found = "nothing" if size is None else f"{size} bytes"
            raise CheckpointError(f"{file}: {path.name} says {entry['bytes']} bytes, found {found}")
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, digest in zip(
            entries, pool.map(lambda n: _digest(path.parent / n), entries), strict=True
        ):
            if digest != entries[name]["sha256"]:
                raise CheckpointError(
                    f"{path.parent / name}: its bytes have changed: {path.name} says SHA-256 "
                    f"{entries[name]['sha256']}, found {digest}"
                )
            pulse()
    return sum(int(entry["bytes"]) for entry in entries.values())


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """The manifest's files, each within its folder."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["files"]
        for name, entry in entries.items():
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            if not inside or type(entry["bytes"]) is not int or len(entry["sha256"]) != 64:
                raise ValueError(f"an entry {name!a}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)[:200]
        raise CheckpointError(f"{path}: is no manifest of ftjob's: {reason!a}") from None
    found: dict[str, dict[str, Any]] = entries
    return found


def _digest(file: Path) -> str:
    """SHA-256 of a file's bytes; reading and hashing let other threads run."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
