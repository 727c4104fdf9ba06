"""Tiny random checkpoints of the T5 family, written by transformers: version 1.0, 1.1 with a head
of its own, 1.1 tied, and mT5; every stack has sizes of its own, so that none can be mistaken.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from ftjob.config import JobConfig, build
from ftjob.job import ModelSource, open_model

State = dict[str, torch.Tensor]
H, W, F, V, HEADS, BUCKETS = 24, 40, 44, 61, 4, 8
TINY: dict[str, Any] = {
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": HEADS,
    "d_model": H,
    "d_kv": W // HEADS,
    "d_ff": F,
    "vocab_size": V,
    "relative_attention_num_buckets": BUCKETS,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
# The same in conf/'s words.
SHAPE: dict[str, Any] = {
    **{"layers": 3, "encoder_layers": 2, "heads": HEADS, "head_size": W // HEADS},
    **{"hidden": H, "ffn": F, "vocab": V},
}
BIAS = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
NEWER = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# name -> class, what config.json says besides, and whether the head is its own
KINDS: MappingProxyType[str, tuple[type[Any], type[Any], dict[str, Any], bool]] = MappingProxyType(
    {
        "v1_0": (T5Config, T5ForConditionalGeneration, {}, False),
        "v1_1": (T5Config, T5ForConditionalGeneration, NEWER, True),
        "v1_1_tied": (T5Config, T5ForConditionalGeneration, NEWER, False),
        "mt5": (MT5Config, MT5ForConditionalGeneration, {}, True),
    }
)


def random_t5(kind: str, seed: int = 0, **shape: Any) -> Any:
    """A model whose every parameter, norms included, is far from its usual start."""
    config, model_type, more, own_head = KINDS[kind]
    model = model_type(config(**(TINY | more | shape))).eval()
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(1 + noise if "layer_norm" in name else noise)
    return model


def write_t5(folder: Path, kind: str, *, shard: str = "1GB", **shape: Any) -> Any:
    """A random model saved in `folder`, and the model."""
    model = random_t5(kind, **shape)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def job_config(checkpoint: Path | str, **model: Any) -> JobConfig:
    """The configuration of a job over that checkpoint."""
    return build({"model": {"family": "t5", "checkpoint": str(checkpoint)} | model})


def opened(folder: Path) -> ModelSource:
    """The checkpoint as a job opens it."""
    return open_model(job_config(folder))
