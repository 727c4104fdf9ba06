"""A real run of the demo model through two stages: its report states the bubble as measured and
as predicted, and the time line shows the stages by name; a run of one stage says nothing of it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import Place, load

pytestmark = pytest.mark.timeout(120)


def test_two_stages_state_their_bubble(place: Place) -> None:
    done = place(
        "dataset.limit=40",
        "batch.max_tokens=300",
        "cluster.devices_per_node=2",
        "parallel.pipeline=2",
        "run.dir=run",
    ).expect(0)
    results = load(place.cwd / "run" / "results.json")
    found = results["pipeline"]
    assert found["stages"] == 2
    (count,) = found["micro_batches"]
    devices = results["devices"]
    assert {d["chunks"] for d in devices} == {count}
    assert 10 < count < 20
    assert all(0 < d["largest_chunk"] <= 300 for d in devices)
    assert 0 < found["bubble"] < 1
    assert 0.07 < found["predicted"] < 0.2  # unequal stages alone make it 7 %
    spans = [
        (p["start_s"], p["end_s"], p["stage"]) for p in results["phases"] if p["name"] == "score"
    ]
    seconds = max(b for _, b, _ in spans) - min(a for a, _, _ in spans)
    busy = sum(d["busy_s"] for d in devices)
    assert found["bubble"] == pytest.approx(1 - busy / (2 * seconds), abs=1e-3)
    assert min(spans)[2] == 0, "the first stage begins"
    assert max(spans, key=lambda s: s[1])[2] == 1, "the last stage ends"
    measured, predicted = (f"{100 * found[k]:.1f}%" for k in ("bubble", "predicted"))
    line = f"{measured}, {predicted} predicted for {count} micro-batches"
    assert re.search(rf"^pipeline bubble +{re.escape(line)}$", done.out, re.MULTILINE)
    page = (place.cwd / "run" / "report.html").read_text("utf-8")
    for text in (
        f"{count} micro-batches.",
        f">{measured}<",
        f">{predicted}<",
        "device 1 (stage 1)",
    ):
        assert text in page
    assert "\npipeline stages : 2\n" in (place.cwd / "run" / "summary.txt").read_text("utf-8")


def test_one_stage_has_no_bubble(finished: tuple[Path, str, str]) -> None:
    folder, out, _ = finished
    assert "pipeline" not in load(folder / "run" / "results.json")
    assert "bubble" not in out
    assert "bubble" not in (folder / "run" / "report.html").read_text("utf-8")
