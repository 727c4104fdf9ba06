"""Stopped from outside: 75 for a drain, 130 for Ctrl-C, 137 for a death without a word.

Real signals at a real process, whose device is slowed by a driver so that the signal meets it at
work. Whatever ended it, the journal is whole, and the same command again gives the same answers
as a run that nobody disturbed.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import ROWS, SLOW, Ended, Place, ended, journal, lines, load, status, wait_for

pytestmark = [pytest.mark.timeout(90), pytest.mark.alone]
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGKILL)


class Stopped:
    """A run that got a signal after its first answers, and what it left."""

    def __init__(self, place: Place, base: tuple[str, ...], number: int) -> None:
        self.place, self.run = place, place.cwd / "run"
        self.arguments = (*base, "batch.max_tokens=64", "run.dir=run")
        process = place.driver("slow", SLOW).start(*self.arguments)
        wait_for(lambda: len(self.begun()) > 5, process)
        self.answered = len(journal(self.run, 0))
        process.send_signal(number)
        sent = time.monotonic()
        self.ended: Ended = ended(process)
        self.took = time.monotonic() - sent

    def begun(self) -> list[set[int]]:
        """The lines of each chunk that the device had begun."""
        file = self.place.cwd / "begun"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return [{int(n) for n in line.split()} for line in text.splitlines()]

    def resumes(self, finished: tuple[Path, str, str]) -> None:
        """The same command goes on: no row twice, none lost, the same answers."""
        first = {r["key"] for r in journal(self.run, 0)}
        self.place(*self.arguments).expect(0, f"{len(first)} rows are done")
        second = [r["key"] for r in journal(self.run, 1)]
        assert not first.intersection(second)
        assert len(first) + len(second) == ROWS
        assert status(self.run, 1)["rows"] == len(second)
        assert load(self.run / "status.json")["code"] == 0
        self.place("compare", "run", str(finished[0] / "run")).expect(0)


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, base: tuple[str, ...]
) -> dict[signal.Signals, Stopped]:
    """A run for each signal, all at the same time: they sleep more than they work."""
    places = {s: Place(tmp_path_factory.mktemp(s.name)) for s in SIGNALS}
    with ThreadPoolExecutor(len(places)) as pool:
        stopped = pool.map(lambda s: Stopped(places[s], base, s), SIGNALS)
        return dict(zip(SIGNALS, stopped, strict=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=["TERM", "USR2"])
def test_drain_exits_75(
    runs: dict[signal.Signals, Stopped], finished: tuple[Path, str, str], number: signal.Signals
) -> None:
    """What the device had begun is finished and journaled; nothing new is begun."""
    stopped = runs[number]
    stopped.ended.expect(75, f"drained on {number.name}")
    records = journal(stopped.run, 0)
    assert stopped.answered < len(records) < ROWS
    assert {r["line"] for r in records} == set().union(*stopped.begun())
    assert status(stopped.run, 0)["rows"] == len(records)
    assert number.name in status(stopped.run, 0)["cause"]["message"]
    merged = load(stopped.run / "status.json")
    assert merged["code"] == 75
    assert load(stopped.run / "results.json")["code"] == 75
    assert len(lines(stopped.run / "samples.jsonl")) == len(records)
    stopped.resumes(finished)


def test_interrupt_exits_130(
    runs: dict[signal.Signals, Stopped], finished: tuple[Path, str, str]
) -> None:
    stopped = runs[signal.SIGINT]
    stopped.ended.expect(130, "interrupted")
    assert "Traceback" not in stopped.ended.err
    assert stopped.took < 5
    records = journal(stopped.run, 0)
    assert 0 < len(records) < ROWS
    assert status(stopped.run, 0)["code"] == load(stopped.run / "status.json")["code"] == 130
    stopped.resumes(finished)


def test_kill_reads_137(
    runs: dict[signal.Signals, Stopped], finished: tuple[Path, str, str]
) -> None:
    """It could say nothing, so `report` says it, and counts what the journal holds: all but the
    chunk it was at, and the one before, which perhaps was not written yet."""
    stopped = runs[signal.SIGKILL]
    assert stopped.ended.code == -signal.SIGKILL
    assert {r["line"] for r in journal(stopped.run, 0)} >= set().union(*stopped.begun()[:-2])
    assert status(stopped.run, 0)["code"] is None
    assert not (stopped.run / "status.json").exists()
    done = stopped.place("report", "run")
    assert done.code == 137, done.err
    assert "attempt 0 ended without a status" in done.out
    merged = load(stopped.run / "status.json")
    assert merged["code"] == 137
    assert "attempt 0 ended without a status" in merged["cause"]
    assert "last heartbeat" in merged["cause"]
    assert len(lines(stopped.run / "samples.jsonl")) == len(journal(stopped.run, 0)) > 0
    stopped.resumes(finished)
    attempts = load(stopped.run / "results.json")["attempts"]
    assert [a["code"] for a in attempts] == [137, 0]
    assert [a["rows"] for a in attempts] == [len(journal(stopped.run, n)) for n in (0, 1)]


def test_drain_during_start_up(place: Place, base: tuple[str, ...]) -> None:
    """Imports take minutes on a cold network disk; the notice to leave may come within them."""
    process = place.start(*base, "run.dir=run")
    wait_for((place.cwd / "run" / "environment.json").exists, process)
    os.kill(process.pid, signal.SIGTERM)
    ended(process).expect(75, "SIGTERM")
    assert load(place.cwd / "run" / "status.json")["code"] == 75
