"""Token and position vectors in one launch, against plain lookups."""

from __future__ import annotations

import pytest
import torch

from ftjob.kernels.embed import embed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("placed", [True, False])
def test_parts_of_a_vocabulary_add_up_to_the_whole(dtype: torch.dtype, placed: bool) -> None:
    made = torch.Generator().manual_seed(3)
    tokens, table = (torch.randn(n, 20, generator=made).to(dtype).to(DEVICE) for n in (31, 12))
    ids = torch.tensor([0, 30, 16, 15, 7, 7], device=DEVICE)
    places = torch.tensor([0, 11, 3, 0, 1, 2], device=DEVICE)
    wanted = tokens[ids].float() + (table[places].float() if placed else 0)
    given = (places, table) if placed else (None, None)
    assert torch.equal(embed(ids, tokens, 0, *given, dtype), wanted.to(dtype))
    first = embed(ids, tokens[:16], 0, *given, dtype)
    second = embed(ids, tokens[16:], 16, None, None, dtype)
    assert torch.equal((first.float() + second.float()).to(dtype), wanted.to(dtype))


def test_one_position_for_several_ids() -> None:
    """A view that repeats one number, as for the lanes of a row alone."""
    tokens, table = torch.zeros(3, 8, device=DEVICE), torch.arange(24.0, device=DEVICE).view(3, 8)
    ids = torch.tensor([0, 1, 2], device=DEVICE)
    places = torch.tensor([2], device=DEVICE).unsqueeze(1).expand(1, 3).flatten()
    assert places.stride() == (0,)
    assert torch.equal(embed(ids, tokens, 0, places, table, torch.float32), table[places])


def test_nothing_and_another_dtype() -> None:
    tokens = torch.ones(3, 8, dtype=torch.float16, device=DEVICE)
    empty = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert embed(empty, tokens, 0, None, None, torch.float32).shape == (0, 8)
    assert (
        embed(empty.new_ones(2), tokens, 0, None, None, torch.float32).tolist() == [[1.0] * 8] * 2
    )
