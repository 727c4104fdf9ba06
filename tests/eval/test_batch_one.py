"""How answers of two runs are counted that differ, and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.bench.batch_one import changed, render_batch_one
from eval.record import read_raw


def run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_only_answers_count(tmp_path: Path) -> None:
    """A log-probability may differ; either decision, or an id, may not; each row counts once."""
    rows = [{"correct": True, "last_token_correct": True, "logprob": -1.0} for _ in range(4)]
    others = [dict(row, logprob=-1.1) for row in rows]
    others[1]["correct"] = False
    others[2] |= {"correct": False, "last_token_correct": False}
    whole, alone = run(tmp_path / "a", rows), run(tmp_path / "b", others)
    assert changed(whole, alone, "LAMBADA, scored") == {"rows": 4, "changed": 2}
    whole = run(tmp_path / "c", [{"output_ids": [1, 2]}, {"output_ids": [3]}])
    alone = run(tmp_path / "d", [{"output_ids": [1, 2]}, {"output_ids": [3, 4]}])
    assert changed(whole, alone, "captions, greedy") == {"rows": 2, "changed": 1}


def test_a_lost_row_is_no_answer(tmp_path: Path) -> None:
    whole = run(tmp_path / "a", [{"output_ids": [1]}, {"output_ids": [2]}])
    with pytest.raises(ValueError, match="shorter"):
        changed(whole, run(tmp_path / "b", [{"output_ids": [1]}]), "captions, greedy")


def test_the_report_has_a_line_a_task_and_dtype() -> None:
    raw = read_raw("batch_one")
    raw["cases"] = [{"task": "captions, greedy", "dtype": "bf16", "rows": 8, "changed": 1}]
    assert "| captions, greedy | bf16 | 8 | 1 | 12.50 % |" in render_batch_one("batch_one", raw)
