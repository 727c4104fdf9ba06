"""The answers do not depend on batches, order or devices, and `compare` can tell when they differ.

The command is run on equal runs and on copies that were tampered with, one way each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Ended, Place, at_once, lines, load

pytestmark = pytest.mark.timeout(60)
Finished = tuple[Path, str, str]
Samples = list[dict[str, Any]]


LAYOUTS = {
    "small": ("batch.max_tokens=64", "batch.order=dataset"),
    "medium": ("batch.max_tokens=500",),
    "large": ("batch.max_tokens=4096", "batch.window=50"),
    "two": ("cluster.devices_per_node=2", "batch.max_tokens=128"),
}


@pytest.fixture(scope="module")
def layouts(
    tmp_path_factory: pytest.TempPathFactory, base: tuple[str, ...]
) -> tuple[Place, dict[str, Ended]]:
    """A run of each layout, in a folder of its name."""
    place = Place(tmp_path_factory.mktemp("layouts"))
    jobs = [(*base, *settings, f"run.dir={name}") for name, settings in LAYOUTS.items()]
    return place, dict(zip(LAYOUTS, at_once(place, jobs), strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(layouts: tuple[Place, dict[str, Ended]], finished: Finished, name: str) -> None:
    place, runs = layouts
    runs[name].expect(0)
    done = place("compare", name, str(finished[0] / "run")).expect(0)
    assert "240 rows: the same answers (0 differences, 0 rows excused" in done.out
    devices = load(place.cwd / name / "results.json")["devices"]
    assert len(devices) == (2 if name == "two" else 1)
    assert sum(d["rows"] for d in devices) == 240
    assert all(d["rows"] > 0 for d in devices)


def test_ngrams_change_no_score(place: Place, base: tuple[str, ...], finished: Finished) -> None:
    """More positions are scored, the last word's score stays."""
    place(*base, "dataset.ngrams=2", "run.dir=run").expect(0)
    ours = lines(place.cwd / "run" / "samples.jsonl")
    theirs = lines(finished[0] / "run" / "samples.jsonl")
    for a, b in zip(ours, theirs, strict=True):
        assert a["output_ids"] == b["output_ids"]
        assert a["logprob"] == pytest.approx(b["logprob"], abs=1e-4)
    score = load(place.cwd / "run" / "results.json")["results"]["lambada"]
    for n in (1, 2):
        hits, count = (sum(s["ngrams"][n - 1][i] for s in ours) for i in (0, 1))
        assert score[f"{n}gram_acc,none"] == hits / count
    assert "3gram_acc,none" not in score


def turn(sample: dict[str, Any]) -> None:
    """Another token won."""
    sample["output_ids"] = [1 + sample["output_ids"][0]]
    sample["correct"] = sample["last_token_correct"] = not sample["correct"]


def score_off(samples: Samples) -> None:
    samples[3]["logprob"] += 2e-4


def score_within(samples: Samples) -> None:
    samples[3]["logprob"] += 5e-5


def turned(samples: Samples) -> None:
    turn(samples[3])


def turned_at_a_tie(samples: Samples) -> None:
    turn(samples[3])
    samples[3]["near_ties"] = [[0, 5e-5]]


def two_turned_at_ties(samples: Samples) -> None:
    for sample in samples[3:5]:
        turn(sample)
        sample["near_ties"] = [[0, 5e-5]]


def turned_at_a_tie_and_score_off(samples: Samples) -> None:
    turned_at_a_tie(samples)
    samples[3]["logprob"] += 2e-4


def lost(samples: Samples) -> None:
    del samples[3]


def lost_at_the_end(samples: Samples) -> None:
    del samples[-1]


def doubled(samples: Samples) -> None:
    samples.insert(3, samples[3])


def failed(samples: Samples) -> None:
    samples[3]["error"] = "line 4: out of paper"


def other_text(samples: Samples) -> None:
    samples[3]["input"] += "!"


def other_key(samples: Samples) -> None:
    """Keys hold the dtype: runs in two dtypes are compared by their answers."""
    samples[3]["key"] = samples[3]["id"] = "0" * 32


TAMPERED: dict[Callable[[Samples], None], tuple[int, str]] = {
    score_off: (5, "different: row 3 (line 4): logprob"),
    score_within: (0, "0 differences, 0 rows excused"),
    turned: (5, "different: row 3 (line 4): correct"),
    turned_at_a_tie: (0, "excused by a recorded near tie: row 3 (line 4)"),
    two_turned_at_ties: (5, "2 rows excused, 1 allowed"),
    turned_at_a_tie_and_score_off: (5, "different: row 3 (line 4): correct"),
    lost: (5, "row 3: only in the first run"),
    lost_at_the_end: (5, "row 239: only in the first run"),
    doubled: (5, "row 3: twice in the second run"),
    failed: (5, "different: row 3 (line 4): error"),
    other_text: (5, "different: row 3 (line 4): input"),
    other_key: (0, "0 differences"),
}


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda f: f.__name__)
def test_compare(
    place: Place, copied: Path, finished: Finished, tamper: Callable[[Samples], None]
) -> None:
    code, word = TAMPERED[tamper]
    file = copied / "samples.jsonl"
    samples = lines(file)
    tamper(samples)
    file.write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")
    done = place("compare", str(finished[0] / "run"), "run").expect(code)
    assert word in done.out
    assert ("NOT the same answers" in done.out) == (code != 0)


def test_compare_of_a_damaged_run(place: Place, copied: Path, finished: Finished) -> None:
    with (copied / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"index": 240,')
    done = place("compare", str(finished[0] / "run"), "run")
    done.expect(3, "run/samples.jsonl", "line 241", "damaged")
