"""`report RUN` makes everything derived anew from what the run wrote down, without torch.

Config, overrides, plan, environment, identity, journal and status are the record; the rest can be
deleted at any time and comes back the same.
"""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from harness import CLI, ROWS, SLOW, Place, ended, journal, load, tree, wait_for

pytestmark = pytest.mark.timeout(30)
RECORD = {
    "config.yaml",
    "overrides.txt",
    "plan.json",
    "environment.json",
    "identity.json",
    "journal",
    "status",
}
DERIVED = ("samples.jsonl", "results.json", "report.html", "report.md", "summary.txt")


def test_rebuild(place: Place, copied: Path, finished: tuple[Path, str, str]) -> None:
    before = tree(copied)
    for path in copied.iterdir():
        if path.name not in RECORD:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    timed = Place(place.cwd, (CLI[0], "-X", "importtime", *CLI[1:]))
    done = timed("report", "run").expect(0)
    after = tree(copied)
    for name in DERIVED:
        assert after[name] == before[name], name
    assert after["status.json"] == before["status.json"]
    assert {n: b for n, b in after.items() if n.split("/")[0] in RECORD} == {
        n: b for n, b in before.items() if n.split("/")[0] in RECORD
    }
    assert "33.3%" in done.out
    imported = set(re.findall(r"\| +([\w.]+)$", done.err, re.MULTILINE))
    assert "ftjob.results.summary" in imported
    assert not imported.intersection({"torch", "mpi4py", "hydra", "mpi4py.MPI"})


def test_from_elsewhere(place: Place, copied: Path) -> None:
    """A folder that was moved, named from another folder, with spaces."""
    moved = place.cwd / "sent by mail"
    copied.rename(moved)
    for name in DERIVED:
        (moved / name).unlink()
    elsewhere = Place(place.cwd / "elsewhere")
    elsewhere("report", str(moved)).expect(0)
    assert load(moved / "results.json")["results"]["lambada"]["acc,none"] == 80 / 240
    assert all((moved / name).is_file() for name in DERIVED)


def test_the_newest_by_its_link(place: Place, copied: Path) -> None:
    """The report names the run, not a link that will be another's."""
    (place.cwd / "latest").symlink_to("run")
    place("report", "latest").expect(0)
    assert load(copied / "results.json")["run_dir"] == "run"


@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "status/rank0000.attempt0.json"])
def test_damaged_record(place: Place, copied: Path, name: str) -> None:
    (copied / name).write_text("{", encoding="utf-8")
    done = place("report", "run").expect(3, f"run/{name}")
    assert "Traceback" not in done.err


def test_missing_record(place: Place, copied: Path) -> None:
    shutil.rmtree(copied / "status")
    place("report", "run").expect(3, "run", "no attempt has left a status")


def test_style_of_fastertransformer(place: Place, copied: Path) -> None:
    done = place("report", "run", "report.style=ft").expect(0)
    assert re.fullmatch(
        r"\[INFO\] last token accuracy: [ \d]\d\.\d\d% \(total token num: 240\)\n", done.out
    )
    place("report", "run", "report.style=x").expect(2, "must be one of report.style=table")
    place("report", "run", "style=ft").expect(2, "report style=ft: must be")


def test_parent_of_many_runs(place: Place, copied: Path) -> None:
    """A line for each run folder: one that is done, one that died and one that runs, both on
    another host, one that cannot be read."""
    status = load(copied / "status" / "rank0000.attempt0.json")
    beats = datetime.now(timezone.utc)
    for name, beat in (("a runs", beats), ("b died", beats - timedelta(minutes=5))):
        shutil.copytree(copied, place.cwd / name)
        more = {"attempt": 1, "code": None, "host": "elsewhere", "heartbeat": beat.isoformat()}
        told = json.dumps(status | more)
        (place.cwd / name / "status/rank0000.attempt1.json").write_text(told, encoding="utf-8")
    shutil.copytree(copied, place.cwd / "c torn")
    shutil.rmtree(place.cwd / "c torn" / "status")
    (place.cwd / "latest").symlink_to("run")
    before = tree(place.cwd)
    lines = place("report", ".").expect(0).out.splitlines()
    assert " ".join(lines[0].split()) == "run code attempts rows score tokens/s model cause"
    lives, died, torn, done = sorted(lines[1:])
    assert re.search(r"^a runs +runs +2 .* attempt 1 still runs, as process \d+ of else", lives)
    assert re.search(r"^b died +137 +2 .* attempt 1 ended without a status", died)
    assert re.search(r"^c torn +\? .* no attempt has left a status", torn)
    assert re.search(r"^run +0 +1 +240 +acc 33\.3% +[\d,]+ +gpt2 +-$", done)
    assert tree(place.cwd) == before, "it only looks"
    assert "result RUNNING" in place("report", "a runs").expect(0).out
    silent = {"heartbeat": (beats - timedelta(minutes=5)).isoformat()}
    path = place.cwd / "a runs/status/rank0000.attempt1.json"
    path.write_text(json.dumps(load(path) | silent), encoding="utf-8")
    assert re.search(r"\na runs +137 +2 ", place("report", ".").expect(0).out)
    place("report", "a runs", "report.over=true").expect(137)
    (place.cwd / "empty").mkdir()
    place("report", "empty").expect(2, "is not a run folder", "none lies in it")


# The run ends when the report has merged what there was till then: half of the rows.
ENDING = """
import os
from pathlib import Path
import ftjob.commands.report as report

real, journal = report.collect, Path("run/journal/rank0000.attempt0.jsonl")

def collect(folder):
    whole = journal.read_bytes()
    if Path("ended.json").exists():
        journal.write_bytes(b"".join(whole.splitlines(True)[:121]))
    found = real(folder)
    if Path("ended.json").exists():
        journal.write_bytes(whole)
        os.replace("ended.json", "run/status/rank0000.attempt0.json")
    return found

report.collect = collect
"""


def test_a_run_that_ends_meanwhile(place: Place, copied: Path) -> None:
    """What the run made of its end is not replaced by what was found before."""
    before, status = tree(copied), copied / "status" / "rank0000.attempt0.json"
    (place.cwd / "ended.json").write_bytes(status.read_bytes())
    alive = {"code": None, "host": "elsewhere", "heartbeat": datetime.now(timezone.utc).isoformat()}
    status.write_text(json.dumps(load(status) | alive), encoding="utf-8")
    said = place.driver("ending", ENDING)("report", "run").expect(0).out
    assert "result VALID" in said
    assert tree(copied) == before


def test_a_run_that_goes_on(place: Place, base: tuple[str, ...]) -> None:
    """How far it is, of all rows as soon as they have been read; the run makes its own report."""
    often = f"{SLOW}\nimport ftjob.rank\nftjob.rank.HEARTBEAT_S = 0.1"
    going = place.driver("slow", often).start(*base, "batch.max_tokens=256", "run.dir=run")
    state, run = {}, place.cwd / "run"

    def read_through() -> bool:
        path = run / "status/rank0000.attempt0.json"
        state.update(load(path) if path.exists() else {})
        return bool(state) and state["dataset"]["whole"] and state["rows"] > 0

    wait_for(read_through, going)
    said = place("report", "run").expect(0).out
    assert "result RUNNING" in said
    assert f"still runs, as process {going.pid} of" in said
    (done,) = re.findall(rf"^running +(\d+) of {ROWS} rows are done$", said, re.MULTILINE)
    assert state["rows"] <= int(done) < ROWS
    assert load(run / "results.json")["code"] is None
    ended(going).expect(0)
    assert len(journal(run, 0)) == ROWS
    assert "progress" not in load(run / "results.json")
