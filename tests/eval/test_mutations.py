"""Damaged checkpoints of every format: a short draw of the campaign now, and the committed figures
of the long one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eval.mutations import campaign, judge, load, make_formats
from eval.record import read_raw

FORMATS = {
    *("safetensors", "pytorch_model.bin, zip", "pytorch_model.bin, plain"),
    *("FasterTransformer GPT", "FasterTransformer T5", "Megatron-LM, zip", "Megatron-LM, plain"),
}


def test_short_draw_has_no_failure(tmp_path: Path) -> None:
    found = campaign(tmp_path, 25, 1, lambda line: None)
    assert found.keys() == FORMATS
    assert [f for made in found.values() for f in made["failures"]] == []
    assert all(sum(made["outcomes"].values()) == 25 for made in found.values())
    assert all(made["outcomes"]["refused"] > 5 for made in found.values())
    for made in found.values():
        assert made["found by the manifest"] == made["listed files changed"]
    assert found["safetensors"]["listed files changed"] > 15


def test_judge_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, and numbers from nowhere, are failures."""
    whole = make_formats(tmp_path)["safetensors"]
    facts, weights = load(whole)
    assert judge(whole, whole, (facts, weights)) == "as it was"
    name = next(iter(weights))
    other = weights | {name: weights[name] + 1}
    assert judge(whole, whole, (facts, other)).startswith("FAILED: ")
    monkeypatch.setattr("eval.mutations.load", lambda folder: torch.zeros(2)[5])
    assert judge(whole, whole, (facts, weights)).startswith("FAILED: IndexError")


def test_committed_figures_have_no_failure() -> None:
    raw = read_raw("mutations")["formats"]
    assert raw.keys() == FORMATS
    for made in raw.values():
        assert made["mutations"] >= 500
        assert made["failures"] == []
        assert made["found by the manifest"] == made["listed files changed"]
