"""A resume takes what is done from the indexes of the run folder, as long as they are this data
set's; else it looks at every row. Either way it answers just what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import Place, journal, lines, write_gpt2

pytestmark = pytest.mark.timeout(60)
DONE = 30
# the last five are like five before them, of which none is done
ROWS: list[dict[str, Any]] = [
    {"id": f"r{i}", "prompt_ids": [i if i < 45 else i - 13, 1, 2]} for i in range(50)
]
# Writes the line of each row that is made, into `made`.
COUNTED = """
from pathlib import Path
from ftjob.tasks.prompt_rows import PromptMaker

real = PromptMaker.of_json


def of_json(self, index, line, raw):
    with Path("made").open("a") as file:
        print(line, file=file)
    return real(self, index, line, raw)


PromptMaker.of_json = of_json
"""


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Run:
    """A folder with a model of its own, `rows.jsonl`, and a run over the first 30 rows."""

    def __init__(self, place: Place) -> None:
        self.place, self.path = place, place.cwd / "rows.jsonl"
        self.run = place.cwd / "run"
        write_gpt2(place.cwd / "model")
        self.base = (
            *("model=gpt2", "model.checkpoint=model", "dataset=prompts"),
            *(
                "dataset.path=rows.jsonl",
                "decode.max_new_tokens=2",
                "decode.top_p=1",
                "batch.window=8",
            ),
        )
        write(self.path, ROWS)
        place(*self.base, "run.dir=run", f"dataset.limit={DONE}").expect(0)

    def goes_on(self, rows: Sequence[dict[str, Any]] = ROWS) -> list[int]:
        """Resume; the lines of the rows that were made. The answers are an undisturbed run's."""
        made = self.place.cwd / "made"
        made.unlink(missing_ok=True)
        done = self.place.driver("counted", COUNTED)(*self.base, "run.dir=run")
        done.expect(0, f"{DONE} rows are done")
        assert sorted(r["line"] for r in lines(self.run / "samples.jsonl")) == [
            *range(1, len(rows) + 1)
        ]
        self.place(*self.base, "run.dir=whole").expect(0)
        answers = [
            {(r["id"], str(r["output_ids"])) for r in lines(self.place.cwd / d / "samples.jsonl")}
            for d in ("run", "whole")
        ]
        assert answers[0] == answers[1]
        assert len(journal(self.run, 1)) == len(rows) - DONE
        return [int(line) for line in made.read_text(encoding="utf-8").split()]


@pytest.fixture
def half(place: Place) -> Run:
    return Run(place)


def test_only_what_is_missing_is_made_into_rows(half: Run) -> None:
    assert half.goes_on() == [*range(DONE + 1, len(ROWS) + 1)]


def test_answers_that_were_lost_are_made_again_with_their_own_draws(half: Run) -> None:
    """Which of equal rows a row is, so its key and draws, comes from the index."""
    half.place(*half.base, "run.dir=lost").expect(0)
    file = half.place.cwd / "lost" / "journal" / "rank0000.attempt0.jsonl"
    held = file.read_bytes().splitlines(keepends=True)
    kept = [json.loads(line) for line in held[1 : 1 + DONE]]
    file.write_bytes(b"".join(held[: 1 + DONE]))
    whole = lines(half.place.cwd / "lost" / "samples.jsonl")
    again = half.place.driver("counted", COUNTED)
    (half.place.cwd / "made").unlink(missing_ok=True)
    again(*half.base, "run.dir=lost").expect(0, f"{DONE} rows are done")
    made = [int(n) for n in (half.place.cwd / "made").read_text(encoding="utf-8").split()]
    assert made == sorted({*range(1, len(ROWS) + 1)} - {r["line"] for r in kept})
    found = lines(half.place.cwd / "lost" / "samples.jsonl")
    assert [(r["key"], r["output_ids"]) for r in found] == [
        (r["key"], r["output_ids"]) for r in whole
    ]


def test_without_indexes_every_row_is_looked_at(half: Run) -> None:
    for index in (half.run / "journal").glob("*.index"):
        index.unlink()
    made = half.goes_on()
    assert sorted({*made}) == [*range(1, len(ROWS) + 1)]
    assert len(made) > len(ROWS)


def test_rows_added_at_the_end_are_answered(half: Run) -> None:
    more = [*ROWS, {"id": "more", "prompt_ids": [9]}, ROWS[3] | {"id": "again"}]
    write(half.path, more)
    assert len(half.goes_on(more)) > len(more)


def test_rows_in_another_order_are_the_same_rows(half: Run) -> None:
    write(half.path, ROWS[::-1])
    done = half.place(*half.base, "run.dir=run")
    done.expect(0, f"{DONE} rows are done")
    assert {r["id"] for r in journal(half.run, 1)} == {r["id"] for r in ROWS[DONE:]}


@pytest.mark.parametrize("time", ["kept", "new"])
def test_a_row_changed_in_place_is_refused(half: Run, time: str) -> None:
    """Of the same length and, where kept, of the same time: nothing but its bytes tells."""
    before = half.path.stat().st_mtime_ns
    text = half.path.read_text(encoding="utf-8")
    half.path.write_text(text.replace("[5, 1, 2]", "[5, 1, 1]", 1), encoding="utf-8")
    if time == "kept":
        os.utime(half.path, ns=(before, before))
    done = half.place(*half.base, "run.dir=run")
    done.expect(2, f"{DONE} rows are done", "rows answered there are not in rows.jsonl")
    write(half.path, ROWS)
    half.place(*half.base, "run.dir=run").expect(0, f"{DONE} rows are done")


def test_an_id_doubled_between_attempts_is_refused(half: Run) -> None:
    write(half.path, [*ROWS[:-1], ROWS[-1] | {"id": "r3"}])
    done = half.place(*half.base, "run.dir=run")
    done.expect(3, "id 'r3' is on line 4 and again on line 50")
