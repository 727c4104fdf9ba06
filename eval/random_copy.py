"""`python -m eval.random_copy FOLDER OVERRIDE...`: the seeded random model as a checkpoint.

The load benchmark reads it back, so that random and stored weights are compared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ftjob.checkpoint.load import RandomSource
from ftjob.checkpoint.shard import place_all
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.job import open_model
from ftjob.model.arch import Arch
from ftjob.model.families import family


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
            tensors[f"{family(arch.family).PREFIXES[0]}{name}"] = whole
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stated = _t5_config(arch) if arch.seq2seq else _gpt2_config(arch)
    (folder / "config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


def _gpt2_config(arch: Arch) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_layer": arch.layers,
        "n_head": arch.heads,
        "n_embd": arch.hidden,
        "n_inner": arch.ffn,
        "vocab_size": arch.vocab,
        "n_positions": arch.positions,
        "layer_norm_epsilon": arch.norm_eps,
    }


def _t5_config(arch: Arch) -> dict[str, Any]:
    assert arch.relative is not None
    return {
        "model_type": "t5",
        "num_layers": arch.encoder_layers,
        "num_decoder_layers": arch.layers,
        "num_heads": arch.heads,
        "d_model": arch.hidden,
        "d_kv": arch.head_size,
        "d_ff": arch.ffn,
        "vocab_size": arch.vocab,
        "relative_attention_num_buckets": arch.relative.buckets,
        "relative_attention_max_distance": arch.relative.max_distance,
        "feed_forward_proj": "gated-gelu" if arch.gated else "relu",
        "tie_word_embeddings": arch.tied_head,
        "layer_norm_epsilon": arch.norm_eps,
    }


if __name__ == "__main__":
    save_random(Path(sys.argv[1]), compose([*sys.argv[2:], "model.checkpoint=random"]))
