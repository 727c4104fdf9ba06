"""T5 in half precision: an overflow of f16 that would turn every answer is kept out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from generate_job import generate, generation_job
from gpt2_oracle import random_rows
from safetensors.torch import load_file, save_file
from t5_files import write_t5

ROWS = random_rows([7, 3, 12, 5], 40, seed=3)


@pytest.fixture(params=["v1_0", "v1_1"])
def loud(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny T5 whose MLPs give more than f16 holds: the last product of each is far above 65504,
    as T5's own are from T5-base on. Norms after them make it harmless in f32."""
    write_t5(tmp_path, request.param)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith(".wo.weight"):
            tensors[name] = tensor * 3e4
    save_file(tensors, file)
    return tmp_path


def test_f16_answers_as_f32_where_its_products_overflow(loud: Path) -> None:
    answers = {}
    for dtype in ("f32", "f16"):
        model = {"family": "t5", "dtype": dtype}
        answers[dtype] = generate(generation_job(loud, {"max_new_tokens": 8}, model=model), ROWS)
    for whole, half in zip(answers["f32"], answers["f16"], strict=True):
        a, b = whole.hypotheses[0], half.hypotheses[0]
        assert torch.isfinite(torch.tensor(b.cum_logprob))
        same = next((i for i, (p, q) in enumerate(zip(a.ids, b.ids, strict=False)) if p != q), 99)
        assert same >= 2, "f16 rounds, but its first answers are f32's"


def test_the_overflow_is_real(loud: Path) -> None:
    """What the engine must not do: the same products in f16 are infinite."""
    tensors = load_file(loud / "model.safetensors")
    weight = next(t for n, t in tensors.items() if n.endswith(".wo.weight"))
    inner = torch.ones(1, weight.shape[1], dtype=torch.float16)
    largest = (inner.float() @ weight.float().T.abs()).amax()
    assert largest > 65504
    assert not torch.isfinite((inner @ weight.abs().T.half()).amax())
