"""A run started again with the same run.dir scores what is missing, or is refused by name.

Batch settings may change between attempts; whatever shapes the answers may not, and a refusal
leaves every byte of the folder as it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import (
    ROWS,
    Place,
    gpt2_tensors,
    journal,
    lines,
    load,
    status,
    tree,
    write_gpt2,
    write_rows,
)

pytestmark = pytest.mark.timeout(60)
Finished = tuple[Path, str, str]


def same_as(place: Place, finished: Finished) -> None:
    """The run here holds the answers of the undisturbed one."""
    place("compare", "run", str(finished[0] / "run")).expect(0)


def test_a_larger_limit_extends(place: Place, base: tuple[str, ...], finished: Finished) -> None:
    """With other batches and two devices, which shape no answer."""
    run = place.cwd / "run"
    place(*base, "dataset.limit=40", "run.dir=run").expect(0)
    assert len(lines(run / "samples.jsonl")) == 40
    other = ("batch.max_tokens=500", "batch.order=dataset", "cluster.devices_per_node=2")
    place(*base, *other, "run.dir=run").expect(0, "40 rows are done")
    first, second = ({r["key"] for r in journal(run, n)} for n in (0, 1))
    assert not first.intersection(second)
    assert (len(first), len(second)) == (40, ROWS - 40)
    assert [status(run, n)["rows"] for n in (0, 1)] == [40, ROWS - 40]
    same_as(place, finished)
    results = load(run / "results.json")
    assert results["throughput"]["rows"] == ROWS
    assert [a["rows"] for a in results["attempts"]] == [40, ROWS - 40]


def test_a_smaller_limit_is_refused(place: Place, copied: Path, base: tuple[str, ...]) -> None:
    before = tree(copied)
    done = place(*base, "dataset.limit=40", "run.dir=run")
    done.expect(2, "dataset.limit=40", "all rows", "extended, not cut")
    assert tree(copied) == before


CHANGES = {
    "dtype": (["model.dtype=bf16"], ["model.dtype: f32 -> bf16"]),
    "weights": (["model.weights=int8"], ["model.weights: float -> int8"]),
    "ngrams": (["dataset.ngrams=2"], ["dataset.ngrams: 0 -> 2"]),
    "tokenizer": (["model.tokenizer={other}/tokenizer.json"], ["tokenizer: ", " -> "]),
    "checkpoint": (["model.checkpoint={other}"], ["arch.norm_eps: 1e-05 -> 1e-06", "checkpoint: "]),
    "model": (["model=demo_gpt", "model.checkpoint=builtin:demo_gpt"], ["arch.layers: 5 -> 8"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_answers_are_refused(
    place: Place, copied: Path, base: tuple[str, ...], name: str
) -> None:
    other = write_gpt2(place.cwd / "other", layer_norm_epsilon=1e-6)
    with (other / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    overrides, words = CHANGES[name]
    before = tree(copied)
    done = place(*base, *(o.format(other=other) for o in overrides), "run.dir=run")
    done.expect(2, "run.dir=run", "other settings", *words)
    assert tree(copied) == before


def test_torn_last_line(
    place: Place, copied: Path, base: tuple[str, ...], finished: Finished
) -> None:
    """A death within a write: that row runs again, the others do not."""
    file = copied / "journal" / "rank0000.attempt0.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    place(*base, "run.dir=run").expect(0, f"{file.name}: a torn last line", f"{ROWS - 1} rows are")
    assert len(journal(copied, 1)) == status(copied, 1)["rows"] == 1
    same_as(place, finished)
    place("report", "run").expect(0)
    same_as(place, finished)


def test_damage_before_the_last_line(place: Place, copied: Path, base: tuple[str, ...]) -> None:
    """No death leaves this; guessing would lose answers in silence."""
    file = copied / "journal" / "rank0000.attempt0.jsonl"
    held = file.read_bytes().splitlines(keepends=True)
    held[5] = b'{"index": 3, "key' + held[5]
    file.write_bytes(b"".join(held))
    place(*base, "run.dir=run").expect(3, str(Path("run") / "journal" / file.name), "line 6")


def test_foreign_folder(place: Place, base: tuple[str, ...]) -> None:
    folder = place.cwd / "thesis"
    (folder / "chapters").mkdir(parents=True)
    (folder / "chapters" / "one.txt").write_text("mine", encoding="utf-8")
    done = place(*base, "run.dir=thesis").expect(2, "run.dir=thesis", "not empty")
    assert "Traceback" not in done.err
    assert tree(place.cwd) == {"thesis/chapters/one.txt": b"mine"}
    assert [f.name for f in place.cwd.iterdir()] == ["thesis"]


def test_a_file_in_place_of_the_folder(place: Place, base: tuple[str, ...]) -> None:
    (place.cwd / "run").write_text("mine", encoding="utf-8")
    place(*base, "run.dir=run").expect(3, "run.dir=run", "cannot be made")
    assert tree(place.cwd) == {"run": b"mine"}


def test_changed_data_set(
    place: Place, copied: Path, tiny: Path, base: tuple[str, ...], finished: Finished
) -> None:
    """Refused with another data set; with the first one again, the run goes on."""
    file = copied / "journal" / "rank0000.attempt0.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:101]))
    rows = Path(shutil.copy(tiny / "rows.jsonl", place.cwd))
    sound, first = rows.read_text(encoding="utf-8"), journal(copied, 0)[0]["index"]
    rows.write_text(sound.replace(f"{first} the ", f"{first} that ", 1), encoding="utf-8")
    arguments = (*base, "dataset.path=rows.jsonl", "batch.window=20", "run.dir=run")
    place(*arguments).expect(2, "100 rows are done", "1 rows answered there", "rows.jsonl")
    rows.write_text(sound, encoding="utf-8")
    place(*arguments).expect(0)
    same_as(place, finished)


def test_other_weights_of_the_same_shape_are_refused(place: Place, base: tuple[str, ...]) -> None:
    """Nothing but the bytes of the tensors tells two trainings of one shape apart."""
    write_gpt2(place.cwd / "a", gpt2_tensors(seed=1))
    write_gpt2(place.cwd / "b", gpt2_tensors(seed=2))
    rows = (base[2], "dataset.limit=4", "run.dir=run")
    place("model=gpt2", "model.checkpoint=a", *rows).expect(0)
    place("model=gpt2", "model.checkpoint=b", *rows).expect(2, "checkpoint: ", " -> ")


def test_equal_rows_count_apart(place: Place, tiny: Path) -> None:
    """LAMBADA holds texts twice; each is a row of its own, in whatever attempt it comes."""
    file = write_rows(place.cwd / "rows.jsonl", 6)
    file.write_text(file.read_text(encoding="utf-8") * 2, encoding="utf-8")
    model = ("model=gpt2", f"model.checkpoint={tiny}/model", "dataset.path=rows.jsonl")
    place(*model, "dataset.limit=8", "run.dir=run").expect(0)
    place(*model, "run.dir=run").expect(0, "8 rows are done")
    samples = lines(place.cwd / "run" / "samples.jsonl")
    assert [s["index"] for s in samples] == list(range(12))
    assert len({s["key"] for s in samples}) == 12
    for first, again in zip(samples[:6], samples[6:], strict=True):
        assert (first["input"], first["output_ids"]) == (again["input"], again["output_ids"])
