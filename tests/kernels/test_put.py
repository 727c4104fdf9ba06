"""The kernel that fills the pool against plain indexing; in Triton's interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch

from ftjob.kernels.put import put

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("heads", "size"), [(3, 24), (4, 16), (1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_each_token_goes_to_its_cell(heads: int, size: int, dtype: torch.dtype) -> None:
    """Columns of a wider tensor, cells in any order, all others untouched."""
    width = heads * size
    wide = torch.randn(5, 3 * width).to(DEVICE, dtype)
    pool = torch.randn(2, heads, 11, size).to(DEVICE, dtype)
    cells = torch.tensor([4, 10, 0, 5, 3], device=DEVICE)
    expected = pool.clone()
    kv = wide[:, width:]
    expected[:, :, cells] = kv.reshape(5, 2, heads, size).permute(1, 2, 0, 3)
    put(pool, cells, kv)
    assert torch.equal(pool, expected)
    put(pool, cells[:0], kv[:0])
    assert torch.equal(pool, expected)
