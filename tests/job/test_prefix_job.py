"""A T5 that needs a prefix gets it, or the run and its report say that it did not."""

from __future__ import annotations

import pytest
import yaml
from harness import Place, at_once, lines, load

pytestmark = pytest.mark.timeout(90)
GERMAN = "translate English to German: "
WARNING = f"dataset.prefix is empty, but the checkpoint's config.json states {GERMAN!r}"
JOB = ("model=demo_t5", "dataset=translation", "dataset.path=builtin:captions_en_de")
MORE = ("dataset.limit=8", "decode.max_new_tokens=40")
RUNS = {
    "own": (),
    "given": (f"dataset.prefix='{GERMAN}'",),
    "empty": ("dataset.prefix=''",),
}


def test_prefix_from_start_to_report(place: Place) -> None:
    jobs = [[*JOB, *MORE, *more, f"run.dir={name}"] for name, more in RUNS.items()]
    own, given, empty = (done.expect(0) for done in at_once(place, jobs))
    run = place.cwd
    assert f"config.json states {GERMAN!r} for dataset.pair=en-de" in own.err
    assert WARNING in empty.err
    assert "prefix" not in given.err

    for name, prefix in (("own", GERMAN), ("given", GERMAN), ("empty", "")):
        config = yaml.safe_load((run / name / "config.yaml").read_text(encoding="utf-8"))
        assert config["dataset"]["prefix"] == prefix
        results = load(run / name / "results.json")
        assert results["dataset"].get("prefix", "") == prefix
        warned = [note for note in results["notes"] if note.startswith(WARNING)]
        assert len(warned) == (name == "empty")
        for report in ("report.html", "report.md"):
            text = (run / name / report).read_text(encoding="utf-8")
            assert ("dataset.prefix is empty" in text) == (name == "empty")
    assert (run / "own" / "samples.jsonl").read_bytes() == (
        run / "given" / "samples.jsonl"
    ).read_bytes()
    place("compare", "own", "empty").expect(5)
    tokens = [[s["tokens"] for s in lines(run / name / "samples.jsonl")] for name in RUNS]
    assert all(a > b for a, b in zip(tokens[0], tokens[2], strict=True))


def test_a_run_goes_on_with_the_prefix_that_it_began_with(place: Place) -> None:
    place(*JOB, "dataset.limit=2", "run.dir=run").expect(0)
    place(*JOB, "dataset.limit=3", f"dataset.prefix='{GERMAN}'", "run.dir=run").expect(0, "2 rows")
    done = place(*JOB, "dataset.limit=4", "dataset.prefix=''", "run.dir=run")
    done.expect(2, "dataset.prefix: translate English to German:  -> ")
