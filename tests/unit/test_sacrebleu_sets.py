"""Sets by name through sacrebleu: its cache, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_pairs import both, config, read, refusal, texts

from ftjob.tasks.rows import RowSource


class Fake:
    """A test set as sacrebleu holds them."""

    def __init__(self, files: list[Path] | BaseException) -> None:
        self.files, self.langpairs = files, {"en-de": [], "de-en": []}

    def get_source_file(self, pair: str) -> str:
        if isinstance(self.files, BaseException):
            raise self.files
        return str(self.files[0])

    def get_reference_files(self, pair: str) -> list[str]:
        assert not isinstance(self.files, BaseException)
        return [str(f) for f in self.files[1:]]


def cached(monkeypatch: pytest.MonkeyPatch, files: list[Path] | BaseException) -> None:
    import sacrebleu

    monkeypatch.setitem(sacrebleu.DATASETS, "wmt17", Fake(files))


def test_sets_of_sacrebleu_are_read_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = texts(tmp_path, b"a\nb\n", b"c\nd\n")
    paths = [Path(f) for f in files.values()]
    cached(monkeypatch, paths)
    source = RowSource(config(sacrebleu="wmt17"))
    source.check()
    rows = list(source.rows())
    assert both(rows) == [("a", "c"), ("b", "d")]
    assert source.name == "wmt17 en-de (sacrebleu)"
    assert [r.content for r in rows] == [r.content for r in read(**files)]
    cached(monkeypatch, [*paths, paths[1]])
    assert "has 2 references a row" in refusal(sacrebleu="wmt17")


@pytest.mark.parametrize("error", [OSError("no route to host"), SystemExit(1), Exception("x")])
def test_a_set_that_is_not_to_be_had_names_the_ways(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    cached(monkeypatch, error)
    message = refusal(sacrebleu="wmt17")
    assert f"could not be downloaded: {type(error).__name__}: {error}" in message
    assert "sacrebleu -t wmt17 -l en-de --echo src" in message
    assert "dataset.path=FILE dataset.target_path=FILE" in message


def test_unknown_sets_and_pairs_are_refused_with_the_nearest() -> None:
    assert "no such test set. Did you mean wmt17?" in refusal(sacrebleu="wtm17")
    message = refusal(sacrebleu="wmt17", pair="en-dd")
    assert "dataset.pair=en-dd: dataset.sacrebleu=wmt17 has no such pair" in message
    assert "Did you mean en-de?" in message
