"""Tiny random GPT-2s written by transformers, and the same files opened the way a job opens them.

The parity tests compare the two sides: `reference_logits` runs transformers in float32 one row at
a time, `open_stage` builds ours from index, rules, cuts and `Stage.fill`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ftjob.checkpoint.load import FileSource, RandomSource, cut_tensors
from ftjob.comm import Comm, Solo
from ftjob.config import JobConfig, build
from ftjob.job import ModelSource, open_model
from ftjob.model.decoder import DecoderStage
from ftjob.model.layers import WeightFormat
from ftjob.model.packing import Packing
from ftjob.model.stage import Part
from ftjob.plan import Machine, Plan, make_plan, stage_tensors

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 24,
    "vocab_size": 61,
    "n_positions": 40,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def random_gpt2(seed: int = 0, **shape: Any) -> GPT2LMHeadModel:
    """A GPT-2 whose every parameter, biases and norms included, is far from its usual start."""
    model = GPT2LMHeadModel(GPT2Config(**(TINY | shape))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(1 + noise if "ln_" in name and name.endswith("weight") else noise)
    return model


def write_gpt2(
    folder: Path,
    model: GPT2LMHeadModel,
    *,
    dtype: torch.dtype = torch.float32,
    prefix: bool = True,
    shard: str = "1GB",
) -> GPT2LMHeadModel:
    """Save the model; returns it as stored, in float32 again."""
    stored = model.to(dtype)
    (stored if prefix else stored.transformer).save_pretrained(folder, max_shard_size=shard)
    return stored.float()


@torch.no_grad()
def reference_logits(model: GPT2LMHeadModel, ids: Sequence[int]) -> torch.Tensor:
    """transformers' logits of one row: [tokens, vocabulary]."""
    logits: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits


def job_config(checkpoint: Path | str, **model: Any) -> JobConfig:
    """The configuration of a job over that checkpoint."""
    return build({"model": {"checkpoint": str(checkpoint)} | model})


def plan_of(config: JobConfig, source: ModelSource, tensor: int = 1, pipeline: int = 1) -> Plan:
    """The plan of one replica of tensor x pipeline devices on one rank."""
    split = replace(config, parallel=replace(config.parallel, tensor=tensor, pipeline=pipeline))
    machine = Machine((tensor * pipeline,), "cpu", 1 << 34, "test")
    return make_plan(split, source.arch, source.rules, machine)


def open_stage(
    config: JobConfig, group: Comm | None = None, *, pipeline: int = 1, at: int = 0
) -> DecoderStage:
    """Stage `at` of `pipeline` on the device that `group` stands for, filled from the files."""
    group = group or Solo()
    source = open_model(config)
    plan = plan_of(config, source, group.size, pipeline)
    spec = plan.devices[at * group.size + group.rank]
    weights: WeightFormat = config.model.weights
    part = Part(range(spec.first_layer, spec.last_layer), range(0), spec.first, spec.last)
    stage = DecoderStage(source.arch, part, weights, (torch.float32, CPU), group)
    opened = (
        FileSource(source.index, CPU)
        if source.index is not None
        else nullcontext(RandomSource(config.model.seed, CPU))
    )
    with opened as files, torch.no_grad():
        held = stage_tensors(source.rules, spec)
        parts = cut_tensors(files, held, group.rank, group.size, lambda: None, stage.room)
        for placed, part in parts:
            stage.fill(placed.parameter, part, placed.rule.cuts_input)
    return stage


@torch.inference_mode()
def packed_logits(
    stage: DecoderStage, rows: Sequence[Sequence[int]], wanted_from: Sequence[int]
) -> list[torch.Tensor]:
    """Our logits of each row from its wanted position on, from one packed batch."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    ids = torch.tensor([t for i in order for t in rows[i]])
    packing = Packing.of([len(rows[i]) for i in order], [wanted_from[i] for i in order], CPU)
    logits = stage.logits(stage(ids, packing, lambda: None))
    sizes = [len(rows[i]) - wanted_from[i] for i in order]
    split = dict(zip(order, logits.split(sizes), strict=True))
    return [split[i] for i in range(len(rows))]


def random_rows(lengths: Sequence[int], vocab: int, seed: int = 1) -> list[list[int]]:
    """Rows of random ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]
