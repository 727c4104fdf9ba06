"""Checkpoints and data sets by hub id, from a cache as the hub's own tools leave it, offline.

The test lays the cache out below HF_HOME: blobs, snapshots and refs for a checkpoint, the prepared
Arrow file for a data set. The network itself is never touched.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pyarrow
import pytest
from harness import DEMO, ROWS, Place, ended, gpt2_tensors, lines, load, text_of, write_gpt2

pytestmark = pytest.mark.timeout(60)
REPO, FOLDER = "openai-community/gpt2-medium", "models--openai-community--gpt2-medium"
COMMIT, OLD = "6dcaa7a952f72f9298047fd5137cd6e4f05f41da", "0" * 40


def cache_snapshot(home: Path, source: Path, commit: str, ref: str | None) -> Path:
    """Put a folder into the hub cache as one commit: content in blobs, names as links to them."""
    repo = home / "hub" / FOLDER
    snapshot = repo / "snapshots" / commit
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    if ref is not None:
        (repo / "refs" / ref).write_text(commit, encoding="utf-8")
    return snapshot


@pytest.fixture
def home(place: Place, tiny: Path) -> Path:
    """HF_HOME with the tiny model at `main`, and with an older commit of other weights."""
    home = place.cwd / "hf"
    cache_snapshot(home, tiny / "model", COMMIT, "main")
    cache_snapshot(home, write_gpt2(place.cwd / "old", gpt2_tensors(seed=2)), OLD, None)
    return home


def test_checkpoint_from_the_cache(
    place: Place, base: tuple[str, ...], home: Path, finished: tuple[Path, str, str]
) -> None:
    """`main` by default, another commit by model.revision; the report names which it was."""
    hub = ("model=gpt2", f"model.checkpoint={REPO}", base[2])
    env = {"HF_HOME": str(home)}
    newest = place.start(*hub, "run.dir=newest", env=env)
    place(*hub, f"model.revision={OLD}", "run.dir=older", env=env).expect(0)
    ended(newest).expect(0)
    place("compare", "newest", str(finished[0] / "run")).expect(0)
    assert "logprob" in place("compare", "newest", "older").expect(5).out
    for name, commit in (("newest", COMMIT), ("older", OLD)):
        model = load(place.cwd / name / "results.json")["model"]
        assert model["checkpoint"] == f"{REPO}@{commit}"


def test_known_models_keep_their_shape(place: Place, home: Path) -> None:
    """conf/model/gpt345m.yaml says 24 layers, and the cache holds a model of 2."""
    done = place("model=gpt345m", env={"HF_HOME": str(home)})
    done.expect(2, "model.arch.layers=24", "model=gpt345m", "says 5", "model=gpt2")
    assert [f.name for f in place.cwd.iterdir() if f.name not in ("hf", "old")] == []


@pytest.mark.parametrize(
    "absent", [("config.json", "model.safetensors"), ("model.safetensors",)], ids=len
)
def test_half_a_cache(place: Place, home: Path, absent: tuple[str, ...]) -> None:
    """Only a tokenizer came into it, or the download stopped before the weights: no checkpoint."""
    for name in absent:
        (home / "hub" / FOLDER / "snapshots" / COMMIT / name).unlink()
    done = place("model=gpt2", f"model.checkpoint={REPO}", env={"HF_HOME": str(home)})
    done.expect(3, REPO, "HF_HOME", "model.checkpoint=PATH", "model.checkpoint=random")


def cache_dataset(home: Path, texts: list[str]) -> None:
    """Put texts into the datasets library's cache of prepared sets, under LAMBADA's id."""
    folder = home / "datasets" / "EleutherAI___lambada_openai" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    table = pyarrow.table({"text": texts})
    with (
        (folder / "lambada_openai-test.arrow").open("wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    split = {
        "name": "test",
        "num_bytes": table.nbytes,
        "num_examples": len(texts),
        "dataset_name": "lambada_openai",
    }
    info = {
        "builder_name": "json",
        "dataset_name": "lambada_openai",
        "config_name": "default",
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "features": {"text": {"dtype": "string", "_type": "Value"}},
        "splits": {"test": split},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def test_data_set_from_the_cache(
    place: Place, base: tuple[str, ...], finished: tuple[Path, str, str]
) -> None:
    """The rows of dataset=lambada_hub give the keys and answers of the same rows in a file."""
    home = place.cwd / "hf"
    cache_dataset(home, [text_of(i) for i in range(ROWS)])
    place(*base[:2], "dataset=lambada_hub", "run.dir=run", env={"HF_HOME": str(home)}).expect(0)
    place("compare", "run", str(finished[0] / "run")).expect(0)
    keys = [
        [s["key"] for s in lines(run / "samples.jsonl")]
        for run in (place.cwd / "run", finished[0] / "run")
    ]
    assert keys[0] == keys[1]
    dataset = load(place.cwd / "run" / "results.json")["dataset"]
    assert dataset == {"source": "EleutherAI/lambada_openai (default, test)", "rows": ROWS}


def test_data_set_not_in_the_cache(place: Place, base: tuple[str, ...]) -> None:
    home = {"HF_HOME": str(place.cwd / "hf")}
    done = place(*base[:2], "dataset=lambada_hub", "run.dir=run", env=home)
    done.expect(3, "dataset.hub=EleutherAI/lambada_openai", "dataset=lambada", "dataset.path=FILE")
    assert "Traceback" not in done.err
    assert not (place.cwd / "run").exists()


def test_shipped_rows_are_the_hubs(place: Place) -> None:
    """dataset=lambada is EleutherAI/lambada_openai's test set: 5153 rows of one text each."""
    held = gzip.decompress((DEMO / "lambada_test.jsonl.gz").read_bytes()).splitlines()
    texts = [json.loads(line) for line in held]
    assert len(texts) == 5153
    assert all(set(row) == {"text"} for row in texts)
    assert len({row["text"] for row in texts}) == 5151
