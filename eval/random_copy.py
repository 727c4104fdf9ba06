"""`python -m eval.random_copy FOLDER OVERRIDE...`: the seeded random model as a checkpoint.

The load benchmark reads it back, so that random and stored weights are compared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from ftjob.checkpoint.load import RandomSource
from ftjob.checkpoint.shard import place_all
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.job import open_model


def save_random(folder: Path, config: JobConfig, dtype: torch.dtype = torch.float32) -> None:
    """Write `config`'s model with random weights as config.json and model.safetensors, named as
    transformers names them. Takes the whole model's memory; the folder must exist."""
    source = open_model(config)
    arch = source.arch
    tensors: dict[str, torch.Tensor] = {}
    everything = RandomSource(config.model.seed, torch.device("cpu"))
    for placed in place_all(source.rules, arch.layers, arch.encoder_layers):
        region = tuple(slice(0, n) for n in placed.rule.shape)
        for number, name in enumerate(placed.sources):
            whole = torch.empty(placed.rule.shape, dtype=dtype)
            everything.read(placed, number, region, whole)
            tensors[f"transformer.{name}"] = whole
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stated = {
        "model_type": arch.family,
        "n_layer": arch.layers,
        "n_head": arch.heads,
        "n_embd": arch.hidden,
        "n_inner": arch.ffn,
        "vocab_size": arch.vocab,
        "n_positions": arch.positions,
        "layer_norm_epsilon": arch.norm_eps,
    }
    (folder / "config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    save_random(Path(sys.argv[1]), compose([*sys.argv[2:], "model.checkpoint=random"]))
