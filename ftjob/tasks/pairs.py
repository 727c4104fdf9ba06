"""Rows of text files, a row a line: sources alone, or beside the file of their translations.

The files are the user's own or those of a test set that sacrebleu knows; `rows` opens them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from ftjob.errors import DataError, nearest
from ftjob.tasks.base import Row
from ftjob.tasks.files import absent, text_lines
from ftjob.tasks.values import translation_row


def pair_rows(source: Path, target: Path | None) -> Iterator[Row]:
    """The rows, one a line, blank lines too: only so do line numbers of both files agree.

    Raises:
        DataError: where one file ends before the other, or cannot be read.
    """
    targets = text_lines(target) if target is not None else iter(())
    for index, (raw, translated) in enumerate(zip_longest(text_lines(source), targets)):
        if target is not None and (raw is None or translated is None):
            raise DataError(_unequal(source, target))
        yield _row(index, (source, raw), (target, translated))


def check_pair(source: Path, target: Path | None) -> None:
    """Refuse files that are absent or do not have a line for each other's.

    Raises:
        DataError: naming both files and their counts.
    """
    for key, path in (("path", source), ("target_path", target)):
        if path is not None and not path.is_file():
            raise DataError(f"dataset.{key}={path}: {absent(path)}")
    if target is not None and _count(source) != _count(target):
        raise DataError(_unequal(source, target))


def sacrebleu_files(name: str, pair: str) -> tuple[Path, Path]:
    """Source and reference file of a test set: from sacrebleu's cache, else the network.

    Raises:
        DataError: where sacrebleu has no such set or pair, with those it has, or cannot get it,
            with the ways to give the data.
    """
    import sacrebleu

    if name not in sacrebleu.DATASETS:
        raise DataError(f"dataset.sacrebleu={name}: no such test set. "
                        f"{nearest(name, sacrebleu.DATASETS)}")  # fmt: skip
    known = sacrebleu.DATASETS[name].langpairs
    if pair not in known:
        raise DataError(
            f"dataset.pair={pair}: dataset.sacrebleu={name} has no such pair. "
            f"{nearest(pair, known)}"
        )
    try:
        source = Path(sacrebleu.get_source_file(name, pair))
        references = [Path(f) for f in sacrebleu.get_reference_files(name, pair)]
    # sacrebleu raises bare Exception for much, and leaves the process where a checksum is wrong
    except (Exception, SystemExit) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"dataset.sacrebleu={name}: {pair} is not in sacrebleu's cache (SACREBLEU, else "
            f"~/.sacrebleu), and could not be downloaded: {type(error).__name__}: {reason}\n"
            "Two ways to give the data:\n"
            f"  1. on a machine with network: sacrebleu -t {name} -l {pair} --echo src, then the "
            "same cache here\n"
            "  2. text files at hand: dataset.path=FILE "
            "dataset.target_path=FILE"
        ) from None
    if len(references) != 1:
        raise DataError(
            f"dataset.sacrebleu={name}: {pair} has {len(references)} references a row, one is "
            "scored here. Use a set with one, or dataset.path=FILE dataset.target_path=FILE."
        )
    return source, references[0]


def _row(index: int, source: tuple[Path, bytes], target: tuple[Path | None, bytes | None]) -> Row:
    line, texts = index + 1, []
    for path, raw in (source, target):
        try:
            texts.append(None if raw is None else raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            # the length of the first keeps the two apart
            content = b"%d\n%b%b" % (len(source[1]), source[1], target[1] or b"")
            message = f"line {line}: invalid UTF-8 at byte {error.start} in {path}"
            return Row(index, line, content, None, message)
    assert texts[0] is not None
    return translation_row(index, line, texts[0], texts[1])


def _count(path: Path) -> int:
    return sum(1 for _ in text_lines(path))


def _unequal(source: Path, target: Path) -> str:
    return (
        f"dataset.path={source} has {_count(source)} lines and dataset.target_path={target} has "
        f"{_count(target)}: each line must be the translation of the same line."
    )
