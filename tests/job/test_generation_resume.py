"""Generation that was stopped, killed or cut by dataset.limit goes on, in whatever layout.

Real processes whose steps are slowed by a driver, so that the signal meets rows under way in slots
that have been refilled.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from harness import Place, ended, journal, lines, load, status, wait_for

pytestmark = pytest.mark.timeout(120)
ROWS = 62
CAPTIONS = (
    "model=demo_t5",
    "dataset=demo_en_de",
    "decode.beams=2",
    "decode.n_best=2",
    "decode.max_new_tokens=20",
)
LANES = 16
FEW = (f"batch.lanes={LANES}",)
STAGES = ("parallel.pipeline=2", "cluster.devices_per_node=2")
OTHER = ("batch.order=dataset", "batch.stop_every=3", "batch.lanes=24")
REPLICAS = ("parallel.data=2", "cluster.devices_per_node=1", *OTHER)  # by two ranks
TENSOR = ("parallel.tensor=2", "cluster.devices_per_node=2", *OTHER)

# Writes the lines of each chunk that enters into `entered`; a step takes a moment.
SLOW = """
import time
from pathlib import Path
from ftjob.decode.loop import Generator

real_enter, real_step = Generator._enter, Generator._step


def enter(self, batch, chunk):
    if chunk.requests[0].key and self._spec.first:
        with Path("entered").open("a") as file:
            print(*(r.row.line for r in chunk.requests), file=file, flush=True)
    return real_enter(self, batch, chunk)


def step(self, batch):
    if batch.books.cohorts[0].rows[0].key:
        time.sleep(0.03)
    return real_step(self, batch)


Generator._enter, Generator._step = enter, step
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of one device."""
    place = Place(tmp_path_factory.mktemp("whole"))
    place(*CAPTIONS, "run.dir=run").expect(0)
    return place.cwd / "run"


def stopped(place: Place, number: int, *layout: str) -> set[int]:
    """A run that gets a signal after its first answers; the lines that had entered by its end."""
    process = place.driver("slow", SLOW).start(*CAPTIONS, *FEW, *layout, "run.dir=run")
    file = place.cwd / "run" / "journal" / "rank0000.attempt0.jsonl"
    wait_for(lambda: file.exists() and file.read_bytes().count(b"\n") > 4, process)
    os.kill(process.pid, number)
    done = ended(process)
    assert done.code == (75 if number == signal.SIGTERM else -number), done.err
    return {int(n) for n in (place.cwd / "entered").read_text(encoding="utf-8").split()}


def goes_on(place: Place, command: Place, layout: tuple[str, ...], whole: Path) -> None:
    """What is missing is answered under another layout: no row twice, none lost, same answers."""
    run = place.cwd / "run"
    first = [r["key"] for r in journal(run, 0)]
    command(*CAPTIONS, *layout, "run.dir=run").expect(0, f"{len(first)} rows are done")
    files = sorted((run / "journal").glob("*.attempt1.jsonl"))
    second = [r["key"] for f in files for r in lines(f)[1:]]
    assert len(first) + len(second) == len({*first, *second}) == ROWS
    assert second
    results = load(run / "results.json")
    assert [a["rows"] for a in results["attempts"]] == [len(first), len(second)]
    place("compare", "run", str(whole)).expect(0)


@pytest.mark.parametrize("layout", [(), STAGES], ids=["one", "stages"])
def test_drain_finishes_what_is_under_way(
    place: Place, whole: Path, layout: tuple[str, ...]
) -> None:
    """TERM: no row that was handed out is dropped, no other one begins; then two ranks go on."""
    entered = stopped(place, signal.SIGTERM, *layout)
    run = place.cwd / "run"
    records = journal(run, 0)
    assert {r["line"] for r in records} == entered
    assert len(records) == len(entered) == status(run, 0)["rows"]
    assert 4 <= len(records) < ROWS
    assert all(r["output_ids"] and r["finish_reason"] for r in records)
    merged = load(run / "status.json")
    assert merged["code"] == load(run / "results.json")["code"] == 75
    assert "SIGTERM" in merged["cause"]
    assert len(lines(run / "samples.jsonl")) == len(records)
    told = load(run / "results.json")["throughput"]
    assert told["rows"] == len(records)
    assert told["tokens"] == sum(r["output_tokens"] for r in records)
    goes_on(place, place.ranks(2), REPLICAS, whole)


def test_kill_loses_only_what_was_under_way(place: Place, whole: Path) -> None:
    entered = stopped(place, signal.SIGKILL, *STAGES)
    answered = {r["line"] for r in journal(place.cwd / "run", 0)}
    assert answered < entered
    slots = LANES // 2
    assert len(entered - answered) <= 2 * slots, "a turn's answers may not be written yet"
    done = place("report", "run")
    assert done.code == 137, done.err
    goes_on(place, place, TENSOR, whole)


def test_a_larger_limit_extends(place: Place, whole: Path) -> None:
    """By stages of two ranks, then by a tensor group."""
    first = ("parallel.pipeline=2", "cluster.devices_per_node=1", *FEW, "dataset.limit=20")
    place.ranks(2)(*CAPTIONS, *first, "run.dir=run").expect(0)
    files = (place.cwd / "run" / "journal").glob("*.attempt0.jsonl")
    assert sorted(r["index"] for f in files for r in lines(f)[1:]) == list(range(20))
    place(*CAPTIONS, *TENSOR, "run.dir=run").expect(0, "20 rows are done")
    results = load(place.cwd / "run" / "results.json")
    assert [a["rows"] for a in results["attempts"]] == [20, ROWS - 20]
    place("compare", "run", str(whole)).expect(0)


CHANGES = {
    "beams": (["decode.beams=3"], ["decode.beams: 2 -> 3"]),
    "tokens": (["decode.max_new_tokens=9"], ["decode.max_new_tokens: 20 -> 9"]),
    "penalty": (["decode.length_penalty=0.5"], ["decode.length_penalty: 1.0 -> 0.5"]),
}


def test_other_answers_are_refused(place: Place) -> None:
    place(*CAPTIONS, "dataset.limit=4", "run.dir=run").expect(0)
    before = (place.cwd / "run" / "samples.jsonl").read_bytes()
    for overrides, words in CHANGES.values():
        done = place(*CAPTIONS, *overrides, "run.dir=run")
        done.expect(2, "run.dir=run", "other settings", *words)
    assert (place.cwd / "run" / "samples.jsonl").read_bytes() == before
