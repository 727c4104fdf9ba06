"""Our T5 against transformers': the log-probabilities of every token of an answer to 1e-4, for many
shapes and ways of storing the files, with sources and answers longer than what the buckets of
distances tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_job import generate, generation_job
from generation_oracle import END, lively, logits_after, rows_for

from ftjob.tasks.base import Generated

LENGTHS = [60, 1, 13, 13, 2, 41, 7]
LIMITS = [30, 30, 5, 30, 1, 30, 30]
# name -> kind, and what of the tiny shape is different
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "usual": ("v1_0", {}),
    "one head": ("v1_0", {"num_heads": 1, "d_kv": 18}),
    "three heads, odd vocabulary": ("v1_1", {"num_heads": 3, "vocab_size": 97}),
    "heads as wide as usual": ("v1_0", {"d_kv": 6}),
    "one layer each": ("mt5", {"num_layers": 1, "num_decoder_layers": 1}),
    "a deeper encoder": ("v1_1", {"num_layers": 4, "num_decoder_layers": 1}),
    "gated head tied": ("v1_1_tied", {}),
    "gated relu": ("v1_1", {"feed_forward_proj": "gated-relu"}),
    "exact gelu": ("v1_0", {"feed_forward_proj": "gelu"}),
    "wide MLP": ("mt5", {"d_ff": 120}),
    "many buckets": ("v1_0", {"relative_attention_num_buckets": 32}),
    "buckets that end early": ("v1_1", {"relative_attention_max_distance": 9}),
    "large epsilon": ("v1_0", {"layer_norm_epsilon": 1e-2}),
}


def answers(folder: Path, rows: Sequence[Sequence[int]], beams: int, **model: Any) -> list[Any]:
    """All beams of every row, with the log-probability of each token."""
    decode = {"beams": beams, "n_best": beams, "token_logprobs": True, "max_new_tokens": 30}
    job = generation_job(folder, decode, model={"family": "t5"} | model)
    return generate(job, rows, LIMITS)


def assert_transformers_says_the_same(
    model: Any, rows: Sequence[Sequence[int]], found: Sequence[Generated]
) -> None:
    """Every token's log-probability is that of transformers' logits; and they tell ids apart."""
    for ids, answer in zip(rows, found, strict=True):
        for hypothesis in answer.hypotheses:
            with torch.inference_mode():
                logits = logits_after(model, ids, hypothesis.ids)
            assert logits.std(dim=1).min() > 0.1
            new = torch.tensor(hypothesis.ids).unsqueeze(1)
            wanted = logits.log_softmax(1).gather(1, new).squeeze(1)
            assert hypothesis.logprobs == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-4)
    assert any(len(a.hypotheses[0].ids) > 20 for a in found), "no answer passes the last bucket"
    assert any(h.ids[-1] == END for a in found for h in a.hypotheses)


@pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=SHAPES.keys())
def test_logprobs_equal_transformers(tmp_path: Path, kind: str, shape: dict[str, Any]) -> None:
    model = lively(kind, seed=1, **shape)
    model.save_pretrained(tmp_path)
    rows = rows_for(model, LENGTHS)
    found = answers(tmp_path, rows, beams=3)
    assert_transformers_says_the_same(model, rows, found)


@pytest.mark.parametrize("shard", ["1GB", "9KB"], ids=["one file", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["v1_0", "v1_1"])
def test_stored_form_does_not_change_logprobs(
    tmp_path: Path, kind: str, dtype: torch.dtype, shard: str
) -> None:
    model = lively(kind, seed=1).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "9KB")
    reference = model.float()
    rows = rows_for(model, LENGTHS)
    assert_transformers_says_the_same(reference, rows, answers(tmp_path, rows, beams=2))


@pytest.mark.parametrize("kind", ["v1_1", "mt5"])
def test_transformers_reads_a_head_of_its_own_as_we_do(tmp_path: Path, kind: str) -> None:
    """The files say tie_word_embeddings=true and hold a head; the oracle is the model as read."""
    lively(kind, seed=1).save_pretrained(tmp_path)
    read = type(lively(kind)).from_pretrained(tmp_path).eval()
    assert not torch.equal(read.lm_head.weight, read.shared.weight)
    rows = rows_for(read, LENGTHS)
    assert_transformers_says_the_same(read, rows, answers(tmp_path, rows, beams=2))
