"""When two runs' answers are the same: numbers within 1e-4, decisions turned only at a recorded
near tie and in few rows only, no row lost or doubled. Each way to differ must be found.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftjob.commands import compare as command
from ftjob.errors import BELOW_EXPECTATION, DONE, RunFolderError
from ftjob.results.compare import Comparison, compare_runs, compare_samples

Rows = list[dict[str, Any]]
TIE = 3e-5


def sample(index: int) -> dict[str, Any]:
    return {
        "id": f"key{index}",
        "key": f"key{index}",
        "index": index,
        "line": index + 1,
        "input": f"context {index}",
        "target": " word",
        "output": " word",
        "output_ids": [7, 8],
        "finish_reason": "length",
        "error": None,
        "correct": True,
        "last_token_correct": True,
        "logprob": -2.5 - index,
        "near_ties": [],
        "tokens": 12,
        "target_tokens": 2,
    }


def failed(index: int, message: str) -> dict[str, Any]:
    return sample(index) | {
        "error": message,
        "finish_reason": "error",
        "output": None,
        "output_ids": [],
    }


def run(rows: int = 5) -> Rows:
    return [sample(i) for i in range(rows)]


def turned(ids: list[int], ties: list[list[float]], **more: Any) -> dict[str, Any]:
    """The fields of a row whose decision turned."""
    last = ids[-1] == 8
    changed = {"output_ids": ids, "output": " sword", "correct": False, "near_ties": ties}
    return changed | {"last_token_correct": last} | more


def changed(**fields: Any) -> Rows:
    rows = run()
    rows[2].update(fields)
    return rows


def both_ways(first: Rows, second: Rows) -> Comparison:
    """The comparison, which must not depend on which run is named first."""
    found, back = compare_samples(first, second), compare_samples(second, first)
    assert found.same == back.same
    assert len(found.differences) == len(back.differences)
    assert len(found.excused) == len(back.excused)
    return found


def test_equal_runs_are_the_same() -> None:
    found = both_ways(run(), run())
    assert found.same
    assert (found.rows, found.differences, found.excused) == (5, [], [])


SAME: dict[str, dict[str, Any]] = {
    "logprob 5e-5 off": {"logprob": -4.5 - 5e-5},
    "a near tie recorded by one run alone": {"near_ties": [[0, 9.9e-5]]},
    "another gap of the same near tie": {"near_ties": [[0, 2e-5]]},
    "another key": {"key": "other", "id": "other"},
}
DIFFERENT: dict[str, dict[str, Any]] = {
    "logprob 2e-4 off": {"logprob": -4.5 - 2e-4},
    "logprob 2e-4 off at a near tie": turned([7, 9], [[1, TIE]], logprob=-4.5 + 2e-4),
    "flipped id without a near tie": turned([7, 9], []),
    "near tie at another position": turned([7, 9], [[0, TIE]]),
    "two flipped ids, one near tie": turned([6, 9], [[1, TIE]]),
    "correct flipped without a near tie": {"correct": False},
    "correct flipped beside an unused near tie": {"correct": False, "near_ties": [[0, TIE]]},
    "last token flipped without a near tie": {"last_token_correct": False},
    "one id fewer": turned([7], []),
    "one id more at a near tie": turned([7, 8, 9], [[1, TIE]]),
    "one id more beyond a near tie": turned([7, 9, 9], [[1, TIE]]),
    "other output of the same ids": {"output": " sword"},
    "other input": {"input": "another context"},
    "other target": {"target": " sword"},
    "other line": {"line": 9},
    "other count of tokens": {"tokens": 13},
    "other reason to stop": {"finish_reason": "stop"},
    "failed": failed(2, "line 3: bad"),
    "an error beside the answer": {"error": "line 3: bad"},
    "own id": {"id": "mine"},
    "a field more": {"extra": 1},
    "truth as a number": {"correct": 1},
    "other n-grams": {"ngrams": [[1, 2]]},
}


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME.keys())
def test_small_differences_are_the_same_answers(fields: dict[str, Any]) -> None:
    found = both_ways(run(), changed(**fields))
    assert found.same
    assert found.excused == []


@pytest.mark.parametrize("fields", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_other_answers_are_found(fields: dict[str, Any]) -> None:
    found = both_ways(run(), changed(**fields))
    assert not found.same
    assert len(found.differences) == 1
    assert found.differences[0].startswith("row 2 (line 3): ")


def test_flipped_id_at_a_near_tie_is_excused() -> None:
    found = both_ways(run(), changed(**turned([7, 9], [[1, TIE]])))
    assert found.same
    (line,) = found.excused
    assert line.startswith("row 2 (line 3): ")
    assert "[1]" in line
    first = both_ways(run(), changed(**turned([9, 8], [[0, TIE]])))
    assert (first.same, len(first.excused)) == (True, 1)


@pytest.mark.parametrize(
    ("rows", "flips", "same"),
    [(5, 1, True), (5, 2, False), (1999, 1, True), (1999, 2, False), (2000, 2, True)],
)
def test_few_rows_may_be_excused(rows: int, flips: int, same: bool) -> None:
    second = run(rows)
    for row in second[:flips]:
        row.update(turned([7, 9], [[1, TIE]]))
    found = compare_samples(run(rows), second)
    assert (len(found.excused), found.differences) == (flips, [])
    assert found.same == same


def test_error_texts_are_never_compared() -> None:
    first, second = run(), run()
    first[1], second[1] = failed(1, "line 2: bad"), failed(1, "line 2: worse")
    assert both_ways(first, second).same


LOST: dict[str, Callable[[Rows], Any]] = {
    "first": lambda rows: rows.pop(0),
    "middle": lambda rows: rows.pop(2),
    "last": lambda rows: rows.pop(),
    "all": lambda rows: rows.clear(),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST.keys())
def test_lost_rows_are_found(lose: Callable[[Rows], Any]) -> None:
    short = run()
    lose(short)
    found = both_ways(run(), short)
    assert not found.same
    assert len(found.differences) == 5 - len(short)
    assert found.rows == 5
    gone = sorted({0, 1, 2, 3, 4} - {row["index"] for row in short})
    assert found.differences[0] == f"row {gone[0]}: only in the first run"


@pytest.mark.parametrize("at", [0, 2, 4])
def test_doubled_row_is_found(at: int) -> None:
    double = run()
    double.insert(at, copy.deepcopy(double[at]))
    found = both_ways(run(), double)
    assert found.differences == [f"row {at}: twice in the second run"]
    assert not found.same
    assert not both_ways(double, double).same


def test_one_lost_and_one_doubled_do_not_cancel() -> None:
    rows = run()
    rows[3] = copy.deepcopy(rows[2])
    assert len(both_ways(run(), rows).differences) == 2


def write(folder: Path, rows: Rows) -> str:
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(text)
    return str(folder)


def test_command_prints_differences_and_exits_nonzero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, same = write(tmp_path / "a", run()), write(tmp_path / "b", run())
    other = write(tmp_path / "c", changed(logprob=-9.0))
    assert command.main([first, same]) == DONE
    assert "5 rows: the same answers" in capsys.readouterr().out
    assert command.main([first, other]) == BELOW_EXPECTATION
    out = capsys.readouterr().out
    assert "different: row 2 (line 3): logprob: -4.5 / -9.0" in out
    assert "NOT the same answers (1 differences" in out


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a", run())
    path = tmp_path / "a" / "samples.jsonl"
    path.write_text(path.read_text() + '{"index": 5')
    with pytest.raises(RunFolderError, match=r"samples.jsonl: line 6 is damaged"):
        compare_runs(path, path)
