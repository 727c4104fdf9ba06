"""The run folder: the whole record of a run, each file with one writer, readable by a person.

Everything but journals and logs is written beside and renamed, so that a death at any moment
leaves the old file or the new one. `rank` writes it while it runs, `summary` when it ends.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ftjob.errors import ResumeRefused, RunFolderError, reading, writing

SUBMISSION = "submit"  # the subfolder of what belongs to a submission: batch script, its output


class RunFolder:
    """Paths below `path`, and the number of attempts made there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> Path:
        """The path of a file of the folder."""
        return self.path / name

    def journal(self, rank: int, attempt: int) -> Path:
        """The journal one rank writes in one attempt."""
        return self.path / "journal" / f"rank{rank:04d}.attempt{attempt}.jsonl"

    def status(self, rank: int, attempt: int) -> Path:
        """The status file one rank writes in one attempt."""
        return self.path / "status" / f"rank{rank:04d}.attempt{attempt}.json"

    def attempts(self) -> list[int]:
        """The numbers of the attempts that left a status or a journal, in order."""
        found = {
            int(m.group(1))
            for kind in ("status", "journal")
            for f in (self.path / kind).glob("rank*")
            if (m := re.fullmatch(r"rank\d+\.attempt(\d+)\.jsonl?", f.name))
        }
        return sorted(found)

    def statuses(self) -> list[dict[str, Any]]:
        """Every rank's status of every attempt, by attempt and rank."""
        files = (self.path / "status").glob("rank*.attempt*.json")
        read = [read_json_file(f) for f in files]
        return sorted(read, key=lambda s: (s["attempt"], s["rank"]))


def claim_attempt(folder: RunFolder, rank: int, attempt: int) -> bool:
    """Leave the attempt's first status, which says that it runs; False where another did so."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    folder.status(rank, attempt).parent.mkdir(exist_ok=True)
    return write_json_once(
        folder.status(rank, attempt),
        {
            "rank": rank,
            "attempt": attempt,
            "code": None,
            "cause": None,
            "started": now,
            "heartbeat": now,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": born("self"),
            "rows": 0,
            "failed": 0,
            "dataset": {"name": "", "total": 0, "whole": False},
            "elapsed_s": 0.0,
            "phases": [],
            "devices": [],
        },
    )


def is_running(status: dict[str, Any]) -> bool:
    """Whether the attempt of this status has not ended, as far as this host can tell: its process
    is here, and was born when the status says."""
    if status["code"] is not None or status["host"] != socket.gethostname():
        return False
    started = status.get("born")  # an older ftjob did not say
    return status["pid"] != os.getpid() and started is not None and born(status["pid"]) == started


def born(pid: int | str) -> int | None:
    """When a process of this host started, in clock ticks since boot; None where there is none.

    Source: proc(5), field 22 of /proc/PID/stat, and field 3, which is Z for one that has ended.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON object of the run folder.

    Raises:
        RunFolderError: naming the file, where it is absent or damaged.
    """
    try:
        with reading(path):
            value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path}: is damaged: {error}") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: is damaged: not a JSON object")
    return value


def write_text(path: Path, text: str) -> None:
    """Write a file whole: beside, synced, then renamed over the old one.

    Raises:
        RunFolderError: as `replaced`.
    """
    with replaced(path) as beside:
        _write_synced(beside, text)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole."""
    write_text(path, _as_json(value))


def write_json_once(path: Path, value: Any) -> bool:
    """Write a value as JSON if there is no such file; False where another was first."""
    beside = _beside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_synced(beside, _as_json(value))
            os.link(beside, path)
        except FileExistsError:
            return False
        finally:
            _drop(beside)
    sync_folder(path.parent)
    return True


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place if all goes well, else vanishes.

    Raises:
        RunFolderError: where it cannot be written.
    """
    beside = _beside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            os.replace(beside, path)
        finally:
            _drop(beside)
    sync_folder(path.parent)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")


def _drop(path: Path) -> None:
    with suppress(OSError):  # a disk that takes nothing has said so already
        path.unlink(missing_ok=True)


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make names in the folder durable; file systems that cannot are left alone."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse fsync on a folder
    finally:
        os.close(handle)


def open_folder(wanted: str | None, name: str, now: datetime) -> RunFolder:
    """The run's folder: `run.dir` if given (new or to be resumed), else a fresh dated one.

    Raises:
        ResumeRefused: where run.dir holds something else than a run.
        RunFolderError: where it cannot be made.
    """
    try:
        if wanted is not None:
            path = Path(wanted).expanduser()
            if _is_foreign(path):
                raise ResumeRefused(
                    f"run.dir={wanted}: the folder is not empty and is no run of "
                    "ftjob's (it has no identity.json). Name another folder."
                )
            path.mkdir(parents=True, exist_ok=True)
        else:
            path = _fresh(Path("runs"), fresh_name(name, now))
            _point_latest(path)
    except OSError as error:
        raise RunFolderError(
            f"run.dir={wanted or 'runs'}: cannot be made: {error.strerror}"
        ) from None
    return RunFolder(path)


def fresh_name(name: str, now: datetime) -> str:
    """The name of a run's folder where run.dir gives none."""
    safe = re.sub(r"[^\w.+-]+", "_", name).strip("._") or "run"
    return f"{now:%Y-%m-%d_%H-%M-%S}_{safe}"


def _is_foreign(path: Path) -> bool:
    """Whether something else than a run lies there; a submitted one that has not begun holds
    only what belongs to its submission."""
    held = {p.name for p in path.iterdir()} if path.is_dir() else set()
    return bool(held - {SUBMISSION}) and "identity.json" not in held


def _fresh(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for suffix in ["", *(f".{n}" for n in range(2, 1000))]:
        path = parent / f"{name}{suffix}"
        try:
            path.mkdir()
        except FileExistsError:
            continue  # another job of the same second
        return path
    raise OSError(17, "a thousand runs of this name and second")


def _point_latest(path: Path) -> None:
    """Point the link `latest` beside the folder at it. A convenience: failing changes nothing."""
    link, beside = path.parent / "latest", path.parent / f".latest.{os.getpid()}"
    if link.exists() and not link.is_symlink():
        return
    try:
        beside.unlink(missing_ok=True)
        beside.symlink_to(path.name, target_is_directory=True)
        os.replace(beside, link)
    except OSError:
        beside.unlink(missing_ok=True)
