"""What every device of a layout gets from a checkpoint, so that two checkpoints of the same weights
in different formats can be compared part by part, bit by bit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ftjob.checkpoint.load import FileSource, cut_tensors
from ftjob.config import JobConfig, build
from ftjob.job import ModelSource, open_model
from ftjob.plan import Machine, make_plan, stage_tensors

SPLITS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2)]
Parts = dict[tuple[int, str], torch.Tensor]


def config_of(checkpoint: Path | str, family: str = "gpt2", **model: Any) -> JobConfig:
    """The configuration of a job over that checkpoint."""
    return build({"model": {"family": family, "checkpoint": str(checkpoint)} | model})


def parts(config: JobConfig, tensor: int = 1, pipeline: int = 1) -> Parts:
    """(device, parameter) -> its part in float32; each device must read every byte of its slices
    once and no other."""
    source = open_model(config)
    assert source.index is not None
    split = replace(config, parallel=replace(config.parallel, tensor=tensor, pipeline=pipeline))
    machine = Machine((tensor * pipeline,), "cpu", 1 << 34, "test")
    found: Parts = {}
    for number, spec in enumerate(make_plan(split, source.arch, source.rules, machine).devices):
        held = stage_tensors(source.rules, spec)
        rooms = {p.parameter: torch.empty(p.rule.parameter_shape(tensor)) for p in held}
        with FileSource(source.index, torch.device("cpu")) as files:
            cut = cut_tensors(files, held, spec.tensor, tensor, lambda: None, rooms.__getitem__)
            found |= {(number, placed.parameter): part for placed, part in cut}
        assert files.bytes_read == files.bytes_needed
    return found


def assert_same(ours: Parts, theirs: Parts) -> None:
    """Every device has the same parameters with the same bits."""
    assert ours.keys() == theirs.keys()
    for where, part in ours.items():
        assert torch.equal(part, theirs[where]), where


def opened(checkpoint: Path | str, family: str = "gpt2", **model: Any) -> ModelSource:
    """The checkpoint as a job opens it."""
    return open_model(config_of(checkpoint, family, **model))
