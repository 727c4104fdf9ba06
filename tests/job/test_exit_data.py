"""Data that cannot be used: a bad file ends the job with 3, bad rows are error records and exit 4.

Every bad row is in samples.jsonl with its line number, and every other row is scored as usual.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from harness import POSITIONS, ROWS, Ended, Place, at_once, lines, load, status, text_of, write_rows

pytestmark = pytest.mark.timeout(30)

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


def run(tiny: Path, file: Path, *more: str) -> list[str]:
    """The overrides of a run of the tiny model over a file."""
    return ["model=gpt2", f"model.checkpoint={tiny}/model", f"dataset.path={file}", *more]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Place, Ended]:
    """A run over all bad rows, a sound one before and after each, and a blank line, no row."""
    place = Place(tmp_path_factory.mktemp("mixed"))
    data = b"\n".join([SOUND, b"", *(x for bad in BAD for x in (bad, SOUND))])
    (place.cwd / "mixed.jsonl").write_bytes(data)
    return place, place(*run(tiny, Path("mixed.jsonl"), "run.dir=run"))


def test_bad_rows_are_records(mixed: tuple[Place, Ended]) -> None:
    place, done = mixed
    done.expect(4, f"{len(BAD)} rows failed", "run.max_failed is 0")
    samples = lines(place.cwd / "run" / "samples.jsonl")
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
    results = load(place.cwd / "run" / "results.json")
    assert results["results"]["lambada"]["acc,none"] == 1.0
    assert results["failed"]["count"] == len(BAD)
    assert [f["line"] for f in results["failed"]["first"]] == [b["line"] for b in bad]
    assert (results["code"], load(place.cwd / "run" / "status.json")["code"]) == (4, 4)


@pytest.mark.parametrize(("allowed", "code"), [(len(BAD) - 1, 4), (len(BAD), 0)])
def test_allowed_failures(
    place: Place, mixed: tuple[Place, Ended], tiny: Path, allowed: int, code: int
) -> None:
    """Another allowance on the same folder: nothing runs again, only the verdict changes."""
    shutil.copytree(mixed[0].cwd, place.cwd, dirs_exist_ok=True)
    more = ("run.dir=run", f"run.max_failed={allowed}")
    done = place(*run(tiny, Path("mixed.jsonl"), *more))
    done.expect(code, f"{2 * len(BAD) + 1} rows are done")
    assert status(place.cwd / "run", 1)["rows"] == 0
    results = load(place.cwd / "run" / "results.json")
    assert (results["code"], results["failed"]["count"]) == (code, len(BAD))


@pytest.mark.parametrize(
    "bad", [b"[" * 100_000, b'{"half a pair \\ud83d": 1}'], ids=["nested", "unpaired surrogate"]
)
def test_hostile_row_is_a_record(place: Place, tiny: Path, bad: bytes) -> None:
    """What breaks the parser, or cannot be written back as UTF-8, is one bad row like others."""
    file = place.cwd / "rows.jsonl"
    file.write_bytes(b"\n".join([SOUND, bad, SOUND]))
    place(*run(tiny, file, "run.dir=run")).expect(4, "1 rows failed")
    samples = lines(place.cwd / "run" / "samples.jsonl")
    assert [s["error"] is None for s in samples] == [True, False, True]


def test_wrong_field_everywhere(place: Place, tiny: Path, base: tuple[str, ...]) -> None:
    done = place(*base, "dataset.column=passage", "dataset.limit=3", "run.dir=run")
    done.expect(4, "3 rows failed", "no field 'passage' (found: text)")
    assert (place.cwd / "run" / "report.html").is_file()
    assert "acc,none" not in load(place.cwd / "run" / "results.json")["results"]["lambada"]


def missing(file: Path) -> None:
    """Leaves no file."""


def torn_gzip(file: Path) -> None:
    """Cut within its data, like a download that stopped."""
    rows = "".join(json.dumps({"text": text_of(i)}) + "\n" for i in range(3000))
    whole = gzip.compress(rows.encode())
    file.write_bytes(whole[: len(whole) * 3 // 4])


def no_column(file: Path) -> None:
    file.write_text("passage,number\none two,1\n", encoding="utf-8")


def torn_parquet(file: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one two"]}), file)
    file.write_bytes(file.read_bytes()[:-6])


UNREADABLE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "missing.jsonl": (missing, ["no such file"]),
    "torn.jsonl.gz": (torn_gzip, ["cannot be read to its end"]),
    "columns.csv": (no_column, ["no column 'text'", "passage"]),
    "torn.parquet": (torn_parquet, ["is not a whole Parquet file"]),
    "rows.xlsx": (no_column, ["cannot tell the format", ".jsonl", ".parquet"]),
}


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Ended]:
    """How a run over each unreadable file ended."""
    place = Place(tmp_path_factory.mktemp("unreadable"))
    jobs = []
    for number, (name, (make, _)) in enumerate(UNREADABLE.items()):
        make(place.cwd / name)
        jobs.append(run(tiny, Path(name), f"run.dir=run{number}"))
    return dict(zip(UNREADABLE, at_once(place, jobs), strict=True))


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_file(unreadable: dict[str, Ended], name: str) -> None:
    done = unreadable[name].expect(3, name, *UNREADABLE[name][1])
    assert "Traceback" not in done.err


def test_torn_file_keeps_what_was_answered(place: Place, tiny: Path) -> None:
    """The rows before the tear stay; with the whole file the same run goes on."""
    file = place.cwd / "rows.jsonl.gz"
    torn_gzip(file)
    whole = "".join(json.dumps({"text": text_of(i)}) + "\n" for i in range(3000))
    small = ("batch.window=100", "dataset.limit=1500", "run.dir=run")
    place(*run(tiny, file, *small)).expect(3, str(file))
    kept = len(lines(place.cwd / "run" / "samples.jsonl"))
    assert 0 < kept <= 1500
    file.write_bytes(gzip.compress(whole.encode()))
    place(*run(tiny, file, *small)).expect(0)
    assert status(place.cwd / "run", 1)["rows"] == 1500 - kept
    samples = lines(place.cwd / "run" / "samples.jsonl")
    assert [s["index"] for s in samples] == list(range(1500))


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_other_formats_give_the_same(
    place: Place, tiny: Path, finished: tuple[Path, str, str], name: str
) -> None:
    file, texts = place.cwd / name, [text_of(i) for i in range(ROWS)]
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"n": range(ROWS), "text": texts}), file)
    else:
        rows = ["n,text", *(f'{i},"{t}"' for i, t in enumerate(texts))]
        file.write_text("\r\n".join(rows), encoding="utf-8")
    place(*run(tiny, file, "run.dir=run")).expect(0)
    head = name.endswith(".csv")  # a line is the file's own
    ours = lines(place.cwd / "run" / "samples.jsonl")
    assert [s["line"] for s in ours] == [i + 1 + head for i in range(ROWS)]
    theirs = lines(finished[0] / "run" / "samples.jsonl")
    for a, b in zip(ours, theirs, strict=True):
        assert (a["key"], a["input"], a["output_ids"]) == (b["key"], b["input"], b["output_ids"])
        assert a["logprob"] == pytest.approx(b["logprob"], abs=1e-4)


def test_ids_of_the_caller(place: Place, tiny: Path) -> None:
    plain = write_rows(place.cwd / "named.jsonl", 3)
    rows = [json.loads(line) for line in plain.read_text(encoding="utf-8").splitlines()]
    named = [json.dumps({"id": f"row-{i}", **row}) for i, row in enumerate(rows)]
    plain.write_text("\n".join(named), encoding="utf-8")
    place(*run(tiny, plain, "run.dir=run")).expect(0)
    samples = lines(place.cwd / "run" / "samples.jsonl")
    assert [s["id"] for s in samples] == ["row-0", "row-1", "row-2"]


def test_doubled_ids_are_refused(place: Place, tiny: Path) -> None:
    rows = '{"id": "same", "text": "one two three"}\n{"id": "same", "text": "four five six"}\n'
    (place.cwd / "doubled.jsonl").write_text(rows, encoding="utf-8")
    done = place(*run(tiny, place.cwd / "doubled.jsonl", "run.dir=run"))
    done.expect(3, "same", "line 2")
