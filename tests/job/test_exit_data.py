"""Data that cannot be used: a bad file ends the job with 3, bad rows are error records and exit 4.

Every bad row is in samples.jsonl with its line number, and every other row is scored as usual. The
tiny model runs once over each file of FILES; the tests look at what came of it.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from harness import POSITIONS, ROWS, Ended, Place, at_once, lines, load, status, text_of

pytestmark = pytest.mark.timeout(90)

SOUND = json.dumps({"text": "the light voice voice"}).encode()
# bytes of a line -> what its error record says
BAD: dict[bytes, str] = {
    b"{broken": "not JSON",
    b'{"txt": "one two"}': "no field 'text' (found: txt)",
    b'{"text": 7}': "expected text, found int",
    b'{"text": null}': "expected text, found NoneType",
    b'{"text": "alone"}': "no space before a last word",
    b'{"text": " word"}': "no text before the last word",
    b'{"text": "caf\xe9 au lait"}': "invalid UTF-8 at byte 13",
    b'{"text": "half a pair \\ud83d here"}': "invalid UTF-8 at character 12",
    b'["a", "list"]': "no field 'text' (found: list)",
    json.dumps({"text": "house " * (POSITIONS + 1) + "house"}).encode(): f"{POSITIONS} positions",
}
# What breaks the parser, and what cannot be written back as UTF-8.
HOSTILE = (b"[" * 100_000, b'{"half a pair \\ud83d": 1}')
LONG, LIMIT = 3000, 1500


def jsonl(count: int, **more: Any) -> bytes:
    """The first rows of the tests' data set."""
    rows = (json.dumps({"text": text_of(i), **more}) for i in range(count))
    return "\n".join(rows).encode()


def parquet(texts: list[str]) -> bytes:
    """A table of a number and a text."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"n": range(len(texts)), "text": texts}), file)
    return file.getvalue()


TEXTS = [text_of(i) for i in range(ROWS)]
WHOLE = gzip.compress("\n".join(["text", *map(text_of, range(LONG))]).encode())
FILES = {
    "mixed.jsonl": b"\n".join([SOUND, b"", *(x for bad in BAD for x in (bad, SOUND))]),
    "hostile.jsonl": b"\n".join([SOUND, *(x for bad in HOSTILE for x in (bad, SOUND))]),
    "array.json": b'\n[\n{"text": "one two"},\n{"text": "one two"}]\n',
    "other.jsonl": b'{"passage": "one two three"}\n' * 3,
    "short.jsonl": b'{"text": "alone"}\n' * 3,
    "named.jsonl": b"\n".join(b'{"id": "row-%d", %s' % (i, SOUND[1:]) for i in range(3)),
    "doubled.jsonl": jsonl(2, id="same"),
    "rows.csv": "\r\n".join(["n,passage", *(f'{i},"{t}"' for i, t in enumerate(TEXTS))]).encode(),
    "rows.parquet": parquet(TEXTS),
    "torn.csv.gz": WHOLE[: len(WHOLE) * 3 // 4],
    "torn.jsonl.gz": gzip.compress(jsonl(9))[:-5],
    "columns.csv": b"passage,number\none two,1\n",
    "empty.jsonl": b"\n \n",
    "head.csv": b"text\n",
}
MORE = {
    "rows.csv": ("dataset.column=passage",),
    "torn.csv.gz": ("batch.window=100", f"dataset.limit={LIMIT}"),
}
UNREADABLE = {
    "doubled.jsonl": ["id 'same' is on line 1 and again on line 2"],
    "torn.jsonl.gz": ["cannot be read to its end"],
    "columns.csv": ["no column 'text'", "passage"],
    "other.jsonl": ["lines 1 to 3: no field 'text' (dataset.column)", "Known: passage."],
    "empty.jsonl": ["holds no rows"],
    "array.json": ["line 2: begins a JSON array", "JSON Lines"],
    "folder": ["dataset.path=folder: is a folder"],
    "head.csv": ["holds no rows"],
}


def arguments(tiny: Path, name: str, run: str) -> list[str]:
    """The overrides of a run of the tiny model over a file."""
    model = ("model=gpt2", f"model.checkpoint={tiny}/model")
    return [*model, f"dataset.path={name}", f"run.dir={run}", *MORE.get(name, ())]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Path, dict[str, Ended]]:
    """A folder with runs/NAME for each file, and how those runs ended."""
    place = Place(tmp_path_factory.mktemp("data"))
    for name, data in FILES.items():
        (place.cwd / name).write_bytes(data)
    (place.cwd / "folder").mkdir()
    names = [*FILES, "missing.jsonl", "folder"]
    jobs = [arguments(tiny, name, f"runs/{name}") for name in names]
    return place.cwd, dict(zip(names, at_once(place, jobs), strict=True))


Ran = tuple[Path, dict[str, Ended]]


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_file(ran: Ran, name: str) -> None:
    """Refused before there is a run folder."""
    done = ran[1][name].expect(3, name, *UNREADABLE[name])
    assert "Traceback" not in done.err
    assert not (ran[0] / "runs" / name).exists()


def test_missing_file(ran: Ran) -> None:
    """Refused before anything starts: there is no run folder."""
    done = ran[1]["missing.jsonl"].expect(3, "dataset.path=missing.jsonl", "no such file")
    assert "Traceback" not in done.err
    assert not (ran[0] / "runs" / "missing.jsonl").exists()


def test_bad_rows_are_records(ran: Ran) -> None:
    ran[1]["mixed.jsonl"].expect(4, f"{len(BAD)} rows failed", "run.max_failed is 0")
    run = ran[0] / "runs" / "mixed.jsonl"
    samples = lines(run / "samples.jsonl")
    assert [s["index"] for s in samples] == list(range(2 * len(BAD) + 1))
    bad = [s for s in samples if s["error"] is not None]
    for number, (record, says) in enumerate(zip(bad, BAD.values(), strict=True)):
        assert record["line"] == 3 + 2 * number
        assert f"line {record['line']}: " in record["error"]
        assert says in record["error"]
        assert len(record["error"]) < 500
        assert (record["finish_reason"], record["output"]) == ("error", None)
    good = [s for s in samples if s["error"] is None]
    assert len(good) == len(BAD) + 1
    assert all(s["correct"] for s in good)
    results = load(run / "results.json")
    assert results["results"]["lambada"]["acc,none"] == 1.0
    assert results["failed"]["count"] == len(BAD)
    assert [f["line"] for f in results["failed"]["first"]] == [b["line"] for b in bad]
    assert (results["code"], load(run / "status.json")["code"]) == (4, 4)


def test_allowed_failures(place: Place, ran: Ran, tiny: Path) -> None:
    """Another allowance on the same folder: nothing runs again, only the verdict changes."""
    shutil.copytree(ran[0] / "runs" / "mixed.jsonl", place.cwd / "run")
    shutil.copy(ran[0] / "mixed.jsonl", place.cwd)
    more = arguments(tiny, "mixed.jsonl", "run")
    done = place(*more, f"run.max_failed={len(BAD)}")
    done.expect(0, f"{2 * len(BAD) + 1} rows are done")
    assert status(place.cwd / "run", 1)["rows"] == 0
    results = load(place.cwd / "run" / "results.json")
    assert (results["code"], results["failed"]["count"]) == (0, len(BAD))


def test_hostile_rows_are_records(ran: Ran) -> None:
    ran[1]["hostile.jsonl"].expect(4, "2 rows failed")
    samples = lines(ran[0] / "runs" / "hostile.jsonl" / "samples.jsonl")
    assert [s["error"] is None for s in samples] == [True, False, True, False, True]


def test_every_row_bad(ran: Ran) -> None:
    ran[1]["short.jsonl"].expect(4, "3 rows failed", "no space before a last word")
    run = ran[0] / "runs" / "short.jsonl"
    assert (run / "report.html").is_file()
    assert "acc,none" not in load(run / "results.json")["results"]["lambada"]


def test_ids_of_the_caller(ran: Ran) -> None:
    ran[1]["named.jsonl"].expect(0)
    samples = lines(ran[0] / "runs" / "named.jsonl" / "samples.jsonl")
    assert [s["id"] for s in samples] == ["row-0", "row-1", "row-2"]
    assert len({s["key"] for s in samples}) == 3


@pytest.mark.parametrize(("name", "head"), [("rows.csv", 1), ("rows.parquet", 0)])
def test_formats(ran: Ran, finished: tuple[Path, str, str], name: str, head: int) -> None:
    """The same texts give the same keys and answers; a line is the file's own."""
    ran[1][name].expect(0)
    ours = lines(ran[0] / "runs" / name / "samples.jsonl")
    assert [s["line"] for s in ours] == [i + 1 + head for i in range(ROWS)]
    theirs = lines(finished[0] / "run" / "samples.jsonl")
    for a, b in zip(ours, theirs, strict=True):
        assert (a["key"], a["input"], a["output_ids"]) == (b["key"], b["input"], b["output_ids"])
        assert a["logprob"] == pytest.approx(b["logprob"], abs=1e-4)


def test_torn_file_keeps_what_was_answered(place: Place, ran: Ran, tiny: Path) -> None:
    """A table is not read to its end before the run: the rows before the tear stay, and with the
    whole file the same run goes on."""
    name = "torn.csv.gz"
    ran[1][name].expect(3, name, "cannot be read to its end")
    assert load(ran[0] / "runs" / name / "status.json")["code"] == 3
    run = Path(shutil.copytree(ran[0] / "runs" / name, place.cwd / "run"))
    kept = len(lines(run / "samples.jsonl"))
    assert 0 < kept <= LIMIT
    (place.cwd / name).write_bytes(WHOLE)
    place(*arguments(tiny, name, "run")).expect(0)
    assert status(run, 1)["rows"] == LIMIT - kept
    assert [s["index"] for s in lines(run / "samples.jsonl")] == list(range(LIMIT))
