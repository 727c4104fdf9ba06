"""The tiny model, its data set and one finished run of them, made once for all tests of jobs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import Place, write_gpt2, write_rows


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` (a checkpoint) and `rows.jsonl`; the tests only read it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_gpt2(folder / "model")
    write_rows(folder / "rows.jsonl")
    return folder


@pytest.fixture(scope="session")
def base(tiny: Path) -> tuple[str, ...]:
    """The overrides of a run of the tiny model over its rows."""
    return ("model=gpt2", f"model.checkpoint={tiny}/model", f"dataset.path={tiny}/rows.jsonl")


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, base: tuple[str, ...]
) -> tuple[Path, str, str]:
    """An undisturbed run that meets what was expected of it, `run` in the folder returned with
    what it printed on stdout and stderr."""
    place = Place(tmp_path_factory.mktemp("finished"))
    done = place(*base, "dataset.expect={acc: 0.33}", "run.dir=run").expect(0)
    return place.cwd, done.out, done.err


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty folder to run in."""
    return Place(tmp_path / "work")


@pytest.fixture
def copied(place: Place, finished: tuple[Path, str, str]) -> Path:
    """A copy of the finished run, as `run` of `place`, for the test to change."""
    return Path(shutil.copytree(finished[0] / "run", place.cwd / "run"))
