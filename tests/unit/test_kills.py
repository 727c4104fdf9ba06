"""The kill campaign's judge: it must see a lost, doubled or changed row, a damaged journal, a wrong
code, an answer that was not in flight; and what is drawn, counted and rendered is as it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.kills.campaign import append_outcome, read_outcomes
from eval.kills.check import answered_twice, check_codes, check_journals, check_samples
from eval.kills.draw import MAX_DEVICES, Layout, draw
from eval.kills.evidence import (
    Damage,
    fence_problems,
    form_chunks,
    in_flight,
    phase_at,
    read_journal,
    read_journals,
)
from eval.kills.render import render_kills

Json = dict[str, Any]
ROWS = 8
FIRST = "rank0000.attempt0.jsonl"


def record(index: int) -> Json:
    """A row's record, as far as it is looked at."""
    return {
        "id": f"k{index}",
        "key": f"k{index}",
        "index": index,
        "line": index + 1,
        "finish_reason": "length",
        "error": None,
        "output_ids": [index],
        "logprob": -float(index),
        "near_ties": [],
        "correct": True,
        "tokens": 10,
    }


def dump(path: Path, records: list[Json]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A campaign's folder with a reference and a run that was killed after half of its rows."""
    rows = [record(i) for i in range(ROWS)]
    run = tmp_path / "run"
    dump(tmp_path / "reference" / "samples.jsonl", rows)
    dump(run / "samples.jsonl", rows)
    dump(run / "journal" / FIRST, [{"fences": {}}, *rows[:4]])
    size = (run / "journal" / FIRST).stat().st_size
    dump(
        run / "journal" / "rank0000.attempt1.jsonl",
        [{"fences": {FIRST: size}}, *rows[4:]],
    )
    attempts = [{"attempt": n, "code": c, "cause": None} for n, c in enumerate((137, 0))]
    for name in ("results.json", "status.json"):
        facts = {"code": 0, "cause": None, "attempts": attempts}
        (run / name).write_text(json.dumps(facts), encoding="utf-8")
    return tmp_path


def judged(folder: Path, in_flight_rows: int = 0) -> list[str]:
    """All that is found wrong."""
    run = folder / "run"
    journals = read_journals(run)
    return [
        *fence_problems(journals),
        *check_journals(journals, ROWS, in_flight_rows),
        *check_samples(folder / "reference", run, journals),
        *check_codes(run, ["score"]),
    ]


def edit(path: Path, change: Callable[[list[Json]], object]) -> None:
    """Change the lines of a JSONL file in place."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    change(records)
    dump(path, records)


def test_a_run_that_ended_well_passes(ended: Path) -> None:
    assert judged(ended) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows.pop(3), ["rows lost: 3", "row 3: only in the first run"]),
        (lambda rows: rows.insert(3, rows[3]), ["rows twice: 3", "row 3: twice"]),
        (lambda rows: rows[5].update(output_ids=[0]), ["rows no journal holds: 5", "output_ids"]),
        (lambda rows: rows[5].update(logprob=-5.1), ["rows no journal holds: 5", "logprob"]),
        (lambda rows: rows[5].update(key="other"), ["rows of another key: 5"]),
        (lambda rows: rows.append(record(ROWS)), [f"rows of no data set: {ROWS}"]),
    ],
    ids=["lost", "twice", "changed answer", "changed figure", "key", "more"],
)
def test_tampered_samples_are_found(
    ended: Path, change: Callable[[list[Json]], object], told: list[str]
) -> None:
    edit(ended / "run" / "samples.jsonl", change)
    found = "\n".join(judged(ended))
    for words in told:
        assert words in found


def test_an_answer_changed_in_journal_and_samples_is_found(ended: Path) -> None:
    """The journal cannot vouch for itself: the reference does."""
    edit(ended / "run" / "samples.jsonl", lambda rows: rows[5].update(output_ids=[0]))
    later = ended / "run" / "journal" / "rank0000.attempt1.jsonl"
    edit(later, lambda rows: rows[2].update(output_ids=[0]))
    assert ["output_ids" in problem for problem in judged(ended)] == [True]


def test_a_field_that_the_reference_alone_has_is_found(ended: Path) -> None:
    reference = ended / "reference" / "samples.jsonl"
    edit(reference, lambda rows: [row.update(token_logprobs=[-1.0]) for row in rows])
    assert judged(ended) == [
        "fields of one run alone: token_logprobs, which only the first run has"
    ]


def test_a_row_missing_in_the_journals_is_found(ended: Path) -> None:
    later = ended / "run" / "journal" / "rank0000.attempt1.jsonl"
    edit(later, lambda rows: rows.pop())
    assert f"rows no attempt journaled: {ROWS - 1}" in judged(ended)


def test_rows_journaled_twice_are_at_most_those_in_flight(ended: Path) -> None:
    later = ended / "run" / "journal" / "rank0000.attempt1.jsonl"
    edit(later, lambda rows: rows.extend([record(0), record(1)]))
    assert answered_twice(read_journals(ended / "run")) == 2
    assert judged(ended, 2) == []
    assert judged(ended, 1) == ["2 rows journaled twice, 1 were in flight"]


def test_a_fence_before_the_last_whole_line_is_found(ended: Path) -> None:
    later = ended / "run" / "journal" / "rank0000.attempt1.jsonl"
    edit(later, lambda rows: rows[0].update(fences={FIRST: 10}))
    assert [p.split(":")[0] for p in judged(ended)] == ["rank0000.attempt1.jsonl"]


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ([0, 0], "attempt 0, killed in score, says code 0"),
        ([1, 0], "attempt 0, killed in score, says code 1"),
        ([137], "results.json: attempts [0]"),
    ],
)
def test_wrong_codes_are_found(ended: Path, codes: list[int], told: str) -> None:
    attempts = [{"attempt": n, "code": c, "cause": None} for n, c in enumerate(codes)]
    results = {"code": 0, "attempts": attempts}
    (ended / "run" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert told in "\n".join(judged(ended))


def test_a_torn_last_line_is_no_damage_but_one_before_is(ended: Path) -> None:
    path = ended / "run" / "journal" / FIRST
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "k')
    assert read_journal(path).torn
    assert read_journal(path).length == len(whole)
    path.write_bytes(whole[:-1] + b"x\n")
    with pytest.raises(Damage, match=FIRST):
        read_journal(path)


def test_rows_in_flight_are_those_of_chunks_handed_out() -> None:
    """Two replicas of one stage hold two chunks each; here a chunk is two rows of ten tokens."""
    layout = Layout(2, 1, 1, 1, max_tokens=20, order="dataset", window=16384)
    rows = [record(i) for i in range(20)]
    chunks = form_chunks(rows, {0, 1}, layout)
    assert [[r.row.index for r in c.requests] for c in chunks][:2] == [[2, 3], [4, 5]]
    flight = in_flight(chunks, {2, 3, 8, 9}, layout)
    assert (flight.rows, flight.passed, flight.allowed) == (8, 2, 4)
    assert in_flight(chunks, {*range(2, 19)}, layout).rows == 1
    assert in_flight(chunks, {*range(2, 20)}, layout).rows == 0
    late = in_flight(chunks, {10, 11}, layout)
    assert late.passed == late.allowed, "no hand-out goes so far ahead"


def test_phases_are_told_by_what_is_on_disk() -> None:
    assert phase_at(0, 8, False, False, False) == "load"
    assert phase_at(3, 8, True, False, False) == "score"
    assert phase_at(8, 8, True, False, False) == "merge"
    assert phase_at(8, 8, True, True, False) == "report"
    assert phase_at(8, 8, True, True, True) == "leave"


def test_draws_are_the_seed_s_alone_and_fit() -> None:
    drawn = [draw(seed) for seed in range(200)]
    assert drawn == [draw(seed) for seed in range(200)]
    assert len({d.layouts for d in drawn}) > 190
    first = [d.shots[0].phase for d in drawn]
    assert first.count("score") >= 0.85 * len(drawn)
    assert {"load", "merge", "report"} <= set(first)
    for seed, d in enumerate(drawn):
        assert len(d.layouts) == len(d.shots) + 1
        assert [s.phase for s in d.shots] == [s.phase for s in draw(seed, 1).shots]
        for layout in d.layouts:
            assert layout.ranks * layout.devices <= MAX_DEVICES
            devices = layout.tensor * layout.pipeline * layout.data
            assert devices == layout.ranks * layout.devices
        for before, after in zip(d.layouts, d.layouts[1:], strict=False):
            assert before.ranks != after.ranks
        for shot, layout in zip(d.shots, d.layouts, strict=False):
            assert shot.rank < layout.ranks
    assert draw(0).layouts != draw(0, 1).layouts


def outcome(seed: int, problems: list[str]) -> Json:
    """One seed's line."""
    layout = Layout(2, 1, 2, 1, 64, "length", 50)
    kill = {
        "phase": "score",
        "victim": "rank",
        "rank": 1,
        "done": 40,
        "in_flight": 6,
        "later": 0,
        "torn": 0,
        "gone_s": 0.25,
    }
    return {
        "seed": seed,
        "missed": 1,
        "attempts": [
            {"layout": layout.as_dict(), "target": "score", "exit": 9, "kill": kill},
            {
                "layout": replace(layout, ranks=1, tensor=1).as_dict(),
                "target": None,
                "exit": 0,
                "kill": None,
            },
        ],
        "codes": [137, 0],
        "twice": 0,
        "problems": problems,
        "seconds": 10.0,
        "commit": "abc",
    }


def test_outcomes_are_kept_and_a_torn_one_runs_again(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    assert read_outcomes(path) == []
    append_outcome(path, outcome(3, []))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    assert [o["seed"] for o in read_outcomes(path)] == [3]
    append_outcome(path, outcome(4, []))
    assert [o["seed"] for o in read_outcomes(path)] == [3, 4]


def test_the_report_counts_and_names_failures() -> None:
    raw = {
        "title": "T",
        "text": ["x"],
        "command": "c",
        "date": "d",
        "cpu": "p",
        "cores": 2,
        "packages": {"torch": "2"},
        "seeds": [outcome(1, ["rows lost: 3"]), outcome(0, [])],
    }
    text = render_kills("kill_campaign", raw)
    assert "| seeds that passed every check | 1 |" in text
    assert "| kills with rows in flight by the journal | 2 (100.0 %) |" in text
    row = "2x1 t2p1d1 64, 1x1 t1p1d1 64 | rank 1 | score | 40 | 6 | 0.25 s | 137, 0 |"
    assert f"| 0 | {row} same answers |" in text
    assert f"| 1 | {row} FAILED |" in text
    assert "- rows lost: 3" in text
