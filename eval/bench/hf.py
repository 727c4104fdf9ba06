"""transformers' side of a comparison: the model of a job's shape on the job's device, and runs of
the same rows, from token ids on the host to ids on the host.

Where the job reads a Hugging Face folder the model does too; else it has random weights of the same
shape. `peer` and `h200` set its times beside ftjob's.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch

from eval.bench.newstest import Pair
from ftjob.checkpoint.huggingface import has_weights
from ftjob.config.groups import DecodeConfig
from ftjob.errors import ConfigError
from ftjob.job import Job
from ftjob.model.arch import Arch
from ftjob.tasks.base import GenerateRequest, ScoreRequest

# What of decode.* is handed over; another key would make the two run different searches.
SHARED = (
    "max_new_tokens",
    "beams",
    "early_stopping",
    "length_penalty",
    "num_return_sequences",
    "seed",
    "temperature",
    "top_k",
    "top_p",
)


def check_decode(decode: DecodeConfig) -> None:
    """Refuse searches that are not compared.

    Raises:
        ConfigError: with the key and those that are.
    """
    default = DecodeConfig()
    for name, value in vars(decode).items():
        if value != getattr(default, name) and name not in SHARED:
            raise ConfigError(
                f"decode.{name}={value}: is not handed to transformers here. Known: "
                f"{', '.join(SHARED)}."
            )


def told(error: Exception) -> str:
    """What a report says of a run that failed: whatever it is, it is no error of ftjob's. What the
    run held of a GPU is free again."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def build_model(job: Job, device: torch.device, dtype: torch.dtype) -> Any:
    """The model, ready to run; no id ends its rows."""
    import transformers

    arch, index = job.source.arch, job.source.index
    kinds: dict[str, tuple[Any, Any]] = {
        "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config),
        "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config),
    }
    model_class, config_class = kinds[arch.family]
    if index is not None and has_weights(index.folder):
        model = model_class.from_pretrained(index.folder, dtype=dtype, local_files_only=True)
        model = model.to(device)
    else:
        with torch.device(device):
            model = model_class._from_config(config_class(**_shape(arch)), dtype=dtype)
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    # a look of Python's collector through all that came with it takes longer than many a run
    gc.collect()
    gc.freeze()
    return model


def _shape(arch: Arch) -> dict[str, Any]:
    """The arguments of the family's configuration class."""
    if arch.family == "gpt2":
        return {
            "n_embd": arch.hidden,
            "n_layer": arch.layers,
            "n_head": arch.heads,
            "n_inner": arch.ffn,
            "n_positions": arch.positions,
            "vocab_size": arch.vocab,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    assert arch.relative is not None
    return {
        "d_model": arch.hidden,
        "d_kv": arch.head_size,
        "d_ff": arch.ffn,
        "num_layers": arch.encoder_layers,
        "num_decoder_layers": arch.layers,
        "num_heads": arch.heads,
        "vocab_size": arch.vocab,
        "feed_forward_proj": "gated-gelu" if arch.gated else "relu",
        "tie_word_embeddings": arch.tied_head,
        "decoder_start_token_id": 0,
        "relative_attention_num_buckets": arch.relative.buckets,
        "relative_attention_max_distance": arch.relative.max_distance,
    }


@torch.inference_mode()
def generate(
    model: Any, rows: Sequence[GenerateRequest], decode: DecodeConfig, static: bool
) -> list[list[int]]:
    """The new ids of each row, all of one length and forced to max_new_tokens. With `static` the
    cache has a fixed size, and transformers compiles the step where it does so by itself: on GPUs.
    """
    ids = torch.tensor([row.ids for row in rows]).to(model.device)
    new = rows[0].max_new_tokens
    drawn = decode.drawn
    options: dict[str, Any] = {"cache_implementation": "static"} if static else {}
    if drawn:
        options |= {"top_k": decode.top_k, "top_p": decode.top_p or 1.0}
        options |= {"temperature": decode.temperature}
        options |= {"num_return_sequences": decode.num_return_sequences}
    if decode.beams > 1:
        options |= {"length_penalty": decode.length_penalty}
        options |= {"early_stopping": decode.early_stopping}
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=drawn,
        num_beams=decode.beams,
        **options,
    )
    found: list[list[int]] = made[:, -new:].tolist()
    return found


@torch.inference_mode()
def score(model: Any, rows: Sequence[ScoreRequest], batch: int) -> int:
    """Score rows, longest first, in padded batches: how many have every target as the likeliest."""
    right = 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        ids = torch.zeros(len(part), len(part[0].ids), dtype=torch.long)
        for i, row in enumerate(part):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
        best = model(ids.to(model.device)).logits.argmax(-1).tolist()
        for row, likeliest in zip(part, best, strict=True):
            found = likeliest[row.target_from - 1 : len(row.ids) - 1]
            right += found == row.ids[row.target_from :]
    return right


@torch.inference_mode()
def translate(
    model: Any, rows: Sequence[Pair], ids: Sequence[Sequence[int]], batch: int
) -> list[list[int]]:
    """Greedy answers of just the wanted length to sources `ids`, in padded batches of like length;
    a batch goes on until its longest answer is made."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Lengths(StoppingCriteria):
        """Ends each row at its own length; the first id is the start token."""

        def __init__(self, wanted: Sequence[int]) -> None:
            self.wanted = torch.tensor(wanted, device=model.device)

        def __call__(self, made: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            return made.shape[1] - 1 >= self.wanted

    order = sorted(range(len(rows)), key=lambda i: -rows[i].source)
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        padded = torch.zeros(len(part), len(ids[part[0]]), dtype=torch.long)
        mask = torch.zeros_like(padded)
        for i, row in enumerate(part):
            padded[i, : len(ids[row])] = torch.tensor(ids[row])
            mask[i, : len(ids[row])] = 1
        wanted = [rows[row].target for row in part]
        made = model.generate(
            padded.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max(wanted),
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([Lengths(wanted)]),
        ).tolist()
        for row, line, length in zip(part, made, wanted, strict=True):
            answers[row] = line[1 : 1 + length]
    return [answers[i] for i in range(len(rows))]
