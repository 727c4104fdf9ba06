"""A disk that takes no more: exit 3 and one message that names the file, at whatever file it
happens; the same command goes on where there is room again.

The kernel's limit on the size of a file stands for the disk: a file that grows past it is refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import ROWS, Ended, Place, journal, load

LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
JOURNAL = 60_000  # more than the report has, less than the journal of all rows
ANY = 2400  # config.yaml has less, the status of a rank that has begun more


def with_room_for(size: int, place: Place, *arguments: str) -> Ended:
    """The run where no file may have more bytes."""
    return place.driver("small", LIMIT.format(size))(*arguments, "run.dir=run")


def test_a_full_disk_is_told_and_the_run_goes_on(
    place: Place, base: tuple[str, ...], finished: tuple[Path, str, str]
) -> None:
    said = with_room_for(JOURNAL, place, *base)
    said.expect(3, "run/journal/rank0000.attempt0.jsonl: cannot be written: File too large")
    assert "Traceback" not in said.err
    status = load(place.cwd / "run/status.json")
    assert status["code"] == 3
    assert "cannot be written" in status["cause"]
    place(*base, "run.dir=run").expect(0, "a torn last line was cut off")
    assert 0 < len(journal(place.cwd / "run", 1)) < ROWS
    place("compare", "run", str(finished[0] / "run")).expect(0)


@pytest.mark.parametrize("size", [100, 1000, ANY])
def test_what_cannot_even_be_told_on_disk_is_told(
    place: Place, base: tuple[str, ...], size: int
) -> None:
    said = with_room_for(size, place, *base)
    said.expect(3, "ftjob: ", "cannot be written: File too large")
    assert "Traceback" not in said.err
    held = {path.name for path in (place.cwd / "run").rglob("*") if path.name.startswith(".")}
    assert not held


def test_a_report_that_cannot_be_written_is_told(place: Place, copied: Path) -> None:
    said = place.driver("small", LIMIT.format(ANY))("report", "run")
    said.expect(3, "run/samples.jsonl: cannot be written: File too large")
    assert "Traceback" not in said.err
