"""Our GPT-2 against transformers': the same logits to 1e-4 at every position and the same argmax,
for many shapes and ways of storing the files, whatever rows share a batch. And `token_stats`, which
turns logits into answers, against torch's own log-softmax.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpt2_oracle import (
    CPU,
    job_config,
    open_stage,
    packed_logits,
    random_gpt2,
    random_rows,
    reference_logits,
    write_gpt2,
)
from safetensors.torch import load_file, save_file

from ftjob.batching import Chunk
from ftjob.comm import Solo
from ftjob.decode import scoring
from ftjob.decode.scoring import score_chunk, token_stats
from ftjob.model.packing import Packing
from ftjob.tasks.base import Row, ScoreRequest

LENGTHS = [1, 17, 40, 2, 16, 33, 1, 9, 40, 10]
SHAPES: dict[str, dict[str, Any]] = {
    "usual": {},
    "one head": {"n_head": 1, "n_embd": 10, "n_layer": 1},
    "three heads, odd vocabulary": {"n_head": 3, "n_embd": 12, "vocab_size": 97},
    "wide MLP": {"n_inner": 120},
    "narrow MLP": {"n_inner": 8, "n_layer": 3},
    "exact gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "tanh gelu by its other name": {"activation_function": "gelu_pytorch_tanh"},
    "large epsilon": {"layer_norm_epsilon": 1e-3},
}


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Logits within 1e-4, and the same most likely ids; the logits must tell ids apart."""
    assert ours.dtype == torch.float32
    assert theirs.std(dim=1).min() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-4)
    assert ours.argmax(dim=1).tolist() == theirs.argmax(dim=1).tolist()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_of_ragged_batch_equal_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    reference = write_gpt2(tmp_path, random_gpt2(**shape))
    stage = open_stage(job_config(tmp_path))
    rows = random_rows(LENGTHS, reference.config.vocab_size)
    for ids, ours in zip(rows, packed_logits(stage, rows, [0] * len(rows)), strict=True):
        assert_same(ours, reference_logits(reference, ids))


@pytest.mark.parametrize("prefix", [True, False], ids=["transformer.", "bare names"])
@pytest.mark.parametrize("shard", ["1GB", "9KB"], ids=["one file", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_stored_form_does_not_change_logits(
    tmp_path: Path, dtype: torch.dtype, shard: str, prefix: bool
) -> None:
    reference = write_gpt2(tmp_path, random_gpt2(), dtype=dtype, prefix=prefix, shard=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "9KB")
    (ids,) = random_rows([40], 61)
    (ours,) = packed_logits(open_stage(job_config(tmp_path)), [ids], [0])
    assert_same(ours, reference_logits(reference, ids))


def test_old_masks_and_doubled_head_are_ignored(tmp_path: Path) -> None:
    reference = write_gpt2(tmp_path, random_gpt2())
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.attn.bias"] = torch.ones(1, 1, 40, 40).tril()
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, path)
    (ids,) = random_rows([12], 61)
    (ours,) = packed_logits(open_stage(job_config(tmp_path)), [ids], [0])
    assert_same(ours, reference_logits(reference, ids))


@pytest.mark.parametrize(
    "lengths",
    [[1], [2], [40], [1, 1, 1], [40, 40], [40, 1], [3, 2, 1], [20, 19, 18, 17, 16, 15, 4]],
    ids=str,
)
def test_wanted_positions_do_not_depend_on_the_batch(tmp_path: Path, lengths: list[int]) -> None:
    reference = write_gpt2(tmp_path, random_gpt2(n_head=3))
    stage = open_stage(job_config(tmp_path))
    rows = random_rows(lengths, 61, seed=len(lengths))
    for wanted_from in ([n - 1 for n in lengths], [n // 2 for n in lengths]):
        together = packed_logits(stage, rows, wanted_from)
        for ids, start, ours in zip(rows, wanted_from, together, strict=True):
            assert_same(ours, reference_logits(reference, ids)[start:])


def test_stages_of_a_pipeline_make_the_whole(tmp_path: Path) -> None:
    reference = write_gpt2(tmp_path, random_gpt2(n_layer=3))
    config = job_config(tmp_path)
    stages = [open_stage(config, pipeline=3, at=i) for i in range(3)]
    lengths = [9, 5, 1]
    rows = random_rows(lengths, 61)
    packing = Packing.of(lengths, [0, 0, 0], CPU)
    with torch.inference_mode():
        x = torch.tensor([t for ids in rows for t in ids])
        for stage in stages:
            x = stage(x, packing, lambda: None)
        logits = stages[-1].logits(x).split(lengths)
    for ids, ours in zip(rows, logits, strict=True):
        assert_same(ours, reference_logits(reference, ids))


def request(ids: list[int], scored_from: int) -> ScoreRequest:
    return ScoreRequest(Row(0, 1, b"", ""), "", ids, scored_from, scored_from)


@pytest.mark.parametrize("logit_bytes", [1 << 28, 1], ids=["at once", "a position at a time"])
def test_score_chunk_answers_in_the_chunks_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logit_bytes: int
) -> None:
    monkeypatch.setattr(scoring, "LOGIT_BYTES", logit_bytes)
    reference = write_gpt2(tmp_path, random_gpt2())
    stage = open_stage(job_config(tmp_path))
    rows = random_rows([2, 41, 7, 20, 7, 2], 61)
    requests = [request(ids, max(1, len(ids) - 3)) for ids in rows]
    launched = score_chunk(stage, Chunk(0, tuple(requests)), CPU, lambda: None)
    assert launched.done
    answers = launched.answers(lambda: None)
    for asked, scored in zip(requests, answers, strict=True):
        logits = reference_logits(reference, asked.ids[:-1])[asked.scored_from - 1 :]
        targets = torch.tensor(asked.ids[asked.scored_from :])
        wanted = logits.log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
        assert scored.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
        assert scored.best == logits.argmax(1).tolist()
        top = logits.topk(2, dim=1).values
        assert scored.gaps == pytest.approx((top[:, 0] - top[:, 1]).tolist(), abs=1e-4)


def test_token_stats_equal_log_softmax() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(50, 97, generator=generator) * 4
    logits[7] += 80.0  # exp would overflow without the maximum taken off
    logits[8] -= 200.0
    targets = torch.randint(97, (50,), generator=generator)
    logprobs, best, gaps = token_stats(logits.clone(), targets, Solo())
    wanted = logits.double().log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logprobs.double(), wanted, rtol=0.0, atol=1e-5)
    top = logits.topk(2, dim=1)
    assert best.tolist() == top.indices[:, 0].tolist()
    torch.testing.assert_close(gaps, top.values[:, 0] - top.values[:, 1])


def test_of_equal_logits_the_lowest_id_wins() -> None:
    logits = torch.zeros(3, 300)
    logits[0, [41, 7, 299]] = 5.0
    logits[1, [299, 298]] = 5.0
    _, best, gaps = token_stats(logits, torch.tensor([41, 0, 0]), Solo())
    assert best.tolist() == [7, 298, 0]
    assert gaps.tolist() == [0.0, 0.0, 0.0]


def test_packing_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="longest first"):
        Packing.of([3, 4], [0, 0], CPU)
    with pytest.raises(ValueError, match="at least one"):
        Packing.of([4, 3], [0, 3], CPU)
