"""`convert`: a checkpoint in another format, split or dtype; or FasterTransformer's settings as
overrides.

Finds and checks the source as a run does, its family by what it holds, and prints what was written.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ftjob.checkpoint.formats import open_checkpoint
from ftjob.checkpoint.manifest import check_manifest
from ftjob.checkpoint.resolve import resolve
from ftjob.commands.layout import parameters, size
from ftjob.commands.settings import settings_page
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.errors import ConfigError
from ftjob.job import ModelSource, check_words, known_of, model_of
from ftjob.tokenizer import open_tokenizer, tokenizer_files


def main(overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    """Convert what the overrides name. Returns the exit code."""
    named = any(o.lstrip("+").startswith(("model=", "convert.settings=")) for o in overrides)
    # a checkpoint of any shape, not the default model's
    config = compose(overrides if named else ["model=gpt2", *overrides], config_dirs)
    to, out = config.convert.to, config.convert.out
    if config.convert.settings is not None:
        print(settings_page(Path(config.convert.settings).expanduser()), end="")
        return 0
    if to is None or out is None:
        raise ConfigError(
            "convert needs model.checkpoint=SRC convert.to=hf|fastertransformer|megatron "
            "convert.out=DIR, or convert.settings=FILE."
        )
    source = open_source(config)
    assert source.index is not None
    if config.model.verify:
        check_manifest(source.index.folder)
    spec, folder = config.model.tokenizer, source.index.folder
    if spec is not None:
        check_words(open_tokenizer(spec, folder), source.arch.vocab)
    # what torch takes to import is not spent on a refusal
    from ftjob.checkpoint.convert import Conversion, convert, leftovers

    work = Conversion(
        source.index,
        source.arch,
        source.specials,
        source.rules,
        to,
        Path(os.path.abspath(Path(out).expanduser())),
        config.convert.tensor,
        config.convert.pipeline,
        config.convert.dtype,
        tokenizer_files(spec, folder),
    )
    started = time.monotonic()
    where = convert(work, _progress(work.bytes, config.run.progress_s))
    print(
        f"source     {source.origin}: {source.index.format}, {parameters(source.parameters)} "
        "parameters\n"
        f"written    {where}: {to}, {work.stored_dtype}, {size(work.bytes)} of tensors, in "
        f"{time.monotonic() - started:.1f} s\n"
        f"compared   {len(work.shapes)} tensors read back, all equal; ftjob-manifest.json is "
        "checked whenever the folder is run\n"
        f"run it     python -m ftjob model={source.arch.family} model.checkpoint={where}"
    )
    for path in leftovers(work.out):
        print(f"left over  {path}: remove it, unless that conversion still runs")
    return 0


def open_source(config: JobConfig) -> ModelSource:
    """The checkpoint to convert, of whichever family.

    Raises:
        CheckpointError: with file, tensor, expected and found.
        ConfigError: for random weights, which have no files.
    """
    model = config.model
    found = resolve(model.checkpoint, model.revision, model.name)
    if found.folder is None:
        raise ConfigError(
            "model.checkpoint=random: has no files to convert; every device makes its own slices."
        )
    folder = found.folder
    index = open_checkpoint(folder, lambda: known_of(config, folder))
    return model_of(config, index, found.origin)


def _progress(total: int, each_s: float) -> Callable[[str, int], None]:
    """Writes a line to stderr as often as a run does; one that is rewritten every second where
    stderr is a terminal."""
    done = {"write": 0, "compare": 0}
    terminal = sys.stderr.isatty()
    wait, end = (min(1.0, each_s), "\r") if terminal else (each_s, "\n")
    last = time.monotonic()

    def told(step: str, count: int) -> None:
        nonlocal last
        done[step] += count
        if time.monotonic() - last >= wait:
            last = time.monotonic()
            line = f"convert: {step} {size(done[step])} of {size(total)}"
            print(f"{line:<60}" if terminal else line, end=end, file=sys.stderr, flush=True)

    return told
