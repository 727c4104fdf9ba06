"""model.checkpoint=random: the same model for the same seed, another one for another seed.

The report of such a run says before all else that its scores mean nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Place, at_once, load

pytestmark = pytest.mark.timeout(60)
SHAPE = ("layers=2", "heads=2", "hidden=16", "vocab=8192", "positions=128")
MODEL = (
    "model=gpt2",
    "model.checkpoint=random",
    "model.tokenizer=builtin:demo_gpt",
    *(f"model.arch.{size}" for size in SHAPE),
)


def test_random_weights(place: Place, tiny: Path) -> None:
    rows = (f"dataset.path={tiny}/rows.jsonl", "dataset.limit=20")
    other_batches = ("batch.max_tokens=64", "cluster.devices_per_node=2")
    jobs = (("run.dir=a",), ("run.dir=b", *other_batches), ("run.dir=c", "model.seed=1"))
    for done in at_once(place, [(*MODEL, *rows, *job) for job in jobs]):
        done.expect(0)
    place("compare", "a", "b").expect(0)
    assert "logprob" in place("compare", "a", "c").expect(5).out
    again = place(*MODEL, *rows, "model.seed=1", "run.dir=a")
    again.expect(2, "checkpoint: random seed 0 -> random seed 1")
    results = load(place.cwd / "a" / "results.json")
    assert results["notes"][0].startswith("The weights are random")
    assert results["model"]["checkpoint"] == "random"
    page = (place.cwd / "a" / "report.html").read_text(encoding="utf-8").partition("<body")[2]
    markdown = (place.cwd / "a" / "report.md").read_text(encoding="utf-8")
    for text in (page, markdown):
        assert text.index("The weights are random") < text.index("Strict last word")


def test_shape_is_needed(place: Place) -> None:
    done = place("model=gpt2", "model.checkpoint=random", "model.arch.layers=2")
    done.expect(2, "model.checkpoint=random", "model.arch.heads", "model.arch.vocab")
    assert "model.arch.layers," not in done.err
