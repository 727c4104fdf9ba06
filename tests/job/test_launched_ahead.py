"""Devices that answer later, as GPUs do: the next chunk is launched before the answers of one are
taken, and still every answer, second and error belongs to its own chunk.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from harness import Place, journal, load, status

pytestmark = pytest.mark.timeout(60)

# One chunk after the other takes {seconds} more than it does; what happens is noted in `events`.
LATE = """
import math
import time
from dataclasses import replace
from pathlib import Path
import torch
import ftjob.device
from ftjob.decode.scoring import Scoring

real = ftjob.device.score_chunk
until = [0.0]


def note(what, chunk):
    with Path("events").open("a") as file:
        print(what, chunk.sequence, file=file)


class Late(Scoring):
    def __init__(self, chunk, found):
        self.chunk, self.found = chunk, found
        self.at = until[0] = max(until[0], time.monotonic()) + {seconds}

    @property
    def done(self):
        return time.monotonic() >= self.at

    def answers(self, check):
        while not self.done:
            check()
            time.sleep(0.001)
        note("told", self.chunk)
        answers = self.found.answers(check)
        {answered}
        return answers


def score_chunk(stage, chunk, *rest):
    note("launched", chunk)
    {launched}
    found = real(stage, chunk, *rest)
    return Late(chunk, found) if chunk.sequence >= 0 else found


ftjob.device.score_chunk = score_chunk
"""


def late(place: Place, seconds: str = "0.05", launched: str = "", answered: str = "") -> Place:
    code = LATE.format(seconds=seconds, launched=launched or "pass", answered=answered or "pass")
    return place.driver("late", code)


def test_one_ahead(place: Place, base: tuple[str, ...], finished: tuple[Path, str, str]) -> None:
    late(place)(*base, "batch.max_tokens=512", "run.dir=run").expect(0)
    events = [e.split() for e in Path(place.cwd / "events").read_text().splitlines()[1:]]
    chunks = len(events) // 2
    assert chunks > 8
    for event in ("launched", "told"):
        assert [int(n) for what, n in events if what == event] == list(range(chunks))
    flying = list(itertools.accumulate(1 if what == "launched" else -1 for what, _ in events))
    assert max(flying) == 2
    assert flying.count(2) >= chunks - 2, "the next one was always there"
    (device,) = load(place.cwd / "run" / "results.json")["devices"]
    assert device["chunks"] == chunks
    assert chunks * 0.05 < device["busy_s"] < chunks * 0.05 + 1.0, "no second counts twice"
    phases = [p for p in status(place.cwd / "run", 0)["phases"] if p["name"] == "score"]
    assert all(a["end_s"] <= b["start_s"] + 1e-3 for a, b in itertools.pairwise(phases))
    timed = sum(p["end_s"] - p["start_s"] for p in phases)
    assert timed == pytest.approx(device["busy_s"], abs=0.1)
    place("compare", "run", str(finished[0] / "run")).expect(0)


def test_no_memory_for_the_next_one(place: Place, base: tuple[str, ...]) -> None:
    """Where not even a row fits, the chunk that is named is the one that did not, not the one still
    being computed."""
    fails = "if chunk.sequence == 3: raise torch.OutOfMemoryError('no room for 1 GiB')"
    done = late(place, launched=fails)(*base, "batch.max_tokens=256", "run.dir=run")
    done.expect(2, "batch.max_tokens=256", "no room for 1 GiB", "(chunk 3)")
    assert "told 3" not in (place.cwd / "events").read_text()
    assert status(place.cwd / "run", 0)["cause"]["phase"] == "score"


def test_no_memory_for_so_many_at_once(
    place: Place, base: tuple[str, ...], finished: tuple[Path, str, str]
) -> None:
    """The run goes on with half as many tokens, says so once, and gives the same answers."""
    fails = "if chunk.tokens > 300: raise torch.OutOfMemoryError('no room for 1 GiB')"
    late(place, seconds="0.0", launched=fails)(*base, "batch.max_tokens=512", "run.dir=run").expect(
        0
    )
    log = (place.cwd / "run" / "logs" / "rank0000.log").read_text()
    (line,) = [line for line in log.splitlines() if "out of memory" in line]
    assert "batch.max_tokens=512" in line
    place("compare", "run", str(finished[0] / "run")).expect(0)


def test_no_numbers_in_the_one_before(place: Place, base: tuple[str, ...]) -> None:
    spoilt = "if self.chunk.sequence == 2: answers[0].logprobs[0] = math.nan"
    done = late(place, answered=spoilt)(*base, "batch.max_tokens=256", "run.dir=run")
    done.expect(2, "infinite or not numbers", "(chunk 2)")
    assert "launched 3\ntold 2" in (place.cwd / "events").read_text()


def test_one_that_never_ends_is_silence(place: Place, base: tuple[str, ...]) -> None:
    """Waiting for a device is no sign of life of it."""
    done = late(place, seconds="(100 if chunk.sequence == 3 else 0.0)")(
        *base, "batch.max_tokens=256", "run.dir=run", "run.deadline_s=2"
    )
    done.expect(124, "no sign of life for 2 s", "in score")
    assert len(journal(place.cwd / "run", 0)) > 0
