"""The packed attention kernel against plain products in float64, row by row.

Without a GPU in Triton's interpreter, whose bf16 products are wrong: that dtype is tested where
there is a GPU, by the same command: `python -m pytest tests/kernels`.
"""

from __future__ import annotations

import pytest
import torch

from ftjob.kernels.packed_attention import packed_attention
from ftjob.model.packing import QUERIES, Blocks, block_table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def plain(
    q: torch.Tensor,
    kv: torch.Tensor,
    queries: list[int],
    keys: list[int],
    heads: int,
    causal: bool,
    scale: float,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """[M, heads * size] in float64."""
    found = []
    q, kv = q.double(), kv.double()
    for own, held in zip(q.split(queries), kv.split(keys), strict=True):
        places = torch.arange(len(held) - len(own), len(held), device=q.device)
        distance = torch.arange(len(held), device=q.device) - places.unsqueeze(1)
        qs = own.view(len(own), heads, -1).transpose(0, 1)
        k, v = held.view(len(held), 2, heads, -1).permute(1, 2, 0, 3)
        scores = qs @ k.transpose(1, 2) * scale  # [heads, queries, keys]
        if bias is not None:
            reach = bias.shape[1] // 2
            scores = scores + bias.double()[:, distance.clamp(-reach, reach) + reach]
        if causal:
            scores = scores.masked_fill(distance > 0, -torch.inf)
        found.append((scores.softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
    return torch.cat(found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize("size", [16, 24, 64])
def test_rows_by_themselves(dtype: torch.dtype, causal: bool, biased: bool, size: int) -> None:
    """Rows shorter and longer than a block, q and kv as columns of one product; the bias reaches
    less far than the longest row."""
    heads, lengths = 3, [131, 65, 64, 32, 1]
    made = torch.Generator().manual_seed(size)
    width = heads * size
    qkv = torch.randn(sum(lengths), 3 * width, generator=made).to(DEVICE, dtype)
    q, kv = qkv[:, :width], qkv[:, width:]
    bias = torch.randn(heads, 2 * 40 + 1, generator=made).to(DEVICE) if biased else None
    found = packed_attention(
        q,
        kv,
        Blocks.of(lengths, lengths, DEVICE),
        heads,
        causal=causal,
        scale=size**-0.5,
        bias=bias,
    )
    wanted = plain(q, kv, lengths, lengths, heads, causal, size**-0.5, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_last_positions_alone(dtype: torch.dtype) -> None:
    heads, size = 2, 16
    lengths, wanted = [150, 70, 40, 9], [70, 1, 40, 3]
    made = torch.Generator().manual_seed(0)
    kv = torch.randn(sum(lengths), 2 * heads * size, generator=made).to(DEVICE, dtype)
    q = torch.randn(sum(wanted), heads * size, generator=made).to(DEVICE, dtype)
    blocks = Blocks.of(wanted, lengths, DEVICE)
    found = packed_attention(q, kv, blocks, heads, causal=True, scale=0.3)
    expected = plain(q, kv, wanted, lengths, heads, True, 0.3, None)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_queries_that_fill_up_get_zeros(causal: bool) -> None:
    """They see no key, and are in nobody's way; what lies behind the rows may be anything."""
    heads, size, lengths, total = 2, 16, [70, 5], 160
    made = torch.Generator().manual_seed(0)
    qkv = torch.randn(total, 3 * heads * size, generator=made).to(DEVICE)
    qkv[75:] = torch.nan
    q, kv = qkv[:, : heads * size], qkv[:, heads * size :]
    blocks = Blocks(torch.from_numpy(block_table(lengths, lengths, total)).to(DEVICE), total)
    found = packed_attention(q, kv, blocks, heads, causal=causal, scale=0.3)
    wanted = plain(q[:75], kv[:75], lengths, lengths, heads, causal, 0.3, None)
    torch.testing.assert_close(found[:75].double(), wanted, rtol=0, atol=2e-6)
    assert bool((found[75:] == 0).all())


def test_blocks() -> None:
    """Each query is in one block, of one row, at its own place."""
    assert QUERIES == 64
    table = Blocks.of([70, 1, 33], [80, 9, 33], torch.device("cpu")).table.tolist()
    assert table == [
        [0, 64, 10, 0, 80],
        [64, 6, 74, 0, 80],
        [70, 1, 8, 80, 9],
        [71, 33, 0, 89, 33],
    ]


def test_blocks_that_fill_up() -> None:
    assert block_table([3], [5], 70).tolist() == [
        [0, 3, 2, 0, 5],
        [3, 64, 0, 5, 0],
        [67, 3, 0, 5, 0],
    ]
    assert block_table([3], [5], 3).tolist() == [[0, 3, 2, 0, 5]]
