"""The kernel of decode steps against plain products in float64, over a pool and a table.

Without a GPU in Triton's interpreter, whose bf16 products are wrong: that dtype is tested where
there is a GPU, by the same command: `python -m pytest tests/kernels`.
"""

from __future__ import annotations

import pytest
import torch

from ftjob.kernels import step_attention as kernel
from ftjob.kernels.step_attention import FIELDS, Scratch, Way, step_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
HEADS = 3
# Of each row: source, prompt, steps made, steps there is room for. The last one is none.
ROWS = [(5, 70, 3, 9), (0, 0, 0, 4), (33, 1, 8, 9), (1, 64, 20, 9), (0, 0, 5, 1)]


class Pool:
    """Rows in any order in a pool of numbers, and a row of the table more than are looked at."""

    def __init__(self, lanes: int, size: int, dtype: torch.dtype, prompts: bool = True) -> None:
        self.rows = [(s, p if prompts else 0, made, most) for s, p, made, most in ROWS]
        made = torch.Generator().manual_seed(size + lanes)
        self.lanes, self.size = lanes, size
        self.bases, end = [0] * len(ROWS), 7
        for at in (3, 0, 4, 2, 1):
            source, prompt, _, most = self.rows[at]
            self.bases[at] = end
            end += source + prompt + lanes * most
        fields = [[base, *row] for base, row in zip(self.bases, self.rows, strict=True)]
        self.table = torch.tensor([*fields, [0] * FIELDS], device=DEVICE)
        self.pool = torch.randn(2, HEADS, end + 3, size, generator=made).to(DEVICE, dtype)
        n, width = len(ROWS) * lanes, HEADS * size
        self.qkv = torch.randn(n, 3 * width, generator=made).to(DEVICE, dtype)
        steps = max(row[3] for row in ROWS)
        shape = (len(ROWS) + 1, lanes, steps)
        self.lineage = torch.randint(lanes, shape, generator=made, dtype=torch.int32).to(DEVICE)
        self.bias = torch.randn(HEADS, 2 * 6 + 1, generator=made).to(DEVICE)
        self.scratch = Scratch.of(lanes, size, DEVICE)

    def looked(self, **more: object) -> torch.Tensor:
        q, new = self.qkv.split([HEADS * self.size, 2 * HEADS * self.size], dim=1)
        lineage = self.lineage if self.lanes > 1 else None
        return step_attention(
            q, self.pool, self.table, len(ROWS), self.scratch, new=new, lineage=lineage, **more
        )  # type: ignore[arg-type]

    def seen(self, at: int, lane: int) -> tuple[list[int], list[int]]:
        """The cells that a lane sees, its new one last, and the step each is of."""
        source, prompt, made, most = self.rows[at]
        first, step = self.bases[at] + source, min(made, most - 1)
        cells, steps = list(range(first, first + prompt)), [-1] * prompt
        for i in range(step):
            beam = int(self.lineage[at, lane, i]) if self.lanes > 1 else 0
            cells.append(first + prompt + i * self.lanes + beam)
            steps.append(i)
        return [*cells, first + prompt + step * self.lanes + lane], [*steps, step]


def attend(
    q: torch.Tensor, kv: torch.Tensor, scale: float, bias: torch.Tensor | None
) -> torch.Tensor:
    """q [heads, size] over kv [2, heads, keys, size] in float64."""
    k, v = kv.double()
    scores = (k @ q.double().unsqueeze(2)).squeeze(2) * scale
    weights = (scores if bias is None else scores + bias.double()).softmax(dim=1)
    return (weights.unsqueeze(1) @ v).flatten()


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lanes", "size"), [(1, 64), (4, 64), (3, 24)])
def test_lanes_see_their_own_cells(
    lanes: int,
    size: int,
    dtype: torch.dtype,
    biased: bool,
    split: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The prompt, the ancestors and the new key, which is put behind them; nothing else is
    touched. A row that has no room left goes on over its last cells. Biases count steps: there are
    no prompts then."""
    monkeypatch.setattr(kernel, "PROGRAMS", 4 * len(ROWS) * HEADS if split else 1)
    pool = Pool(lanes, size, dtype, prompts=not biased)
    before, new = pool.pool.clone(), pool.qkv[:, HEADS * size :]
    for _ in range(2):  # the second finds the scratch as the first left it
        pool.pool.copy_(before)
        found = pool.looked(scale=0.3, bias=pool.bias if biased else None)
        for at in range(len(ROWS)):
            for lane in range(lanes):
                n = at * lanes + lane
                cells, steps = pool.seen(at, lane)
                before[:, :, cells[-1]] = new[n].view(2, HEADS, size)
                bias = None
                if biased:
                    distance = torch.tensor(steps, device=DEVICE) - steps[-1]
                    bias = pool.bias[:, distance.clamp(min=-6) + 6]
                q = pool.qkv[n, : HEADS * size].view(HEADS, size)
                expected = attend(q, before[:, :, cells], 0.3, bias)
                error = (found[n].double() - expected).abs().max()
                assert error < TOLERANCE[dtype] * 4, (at, lane)
        assert torch.equal(pool.pool, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", [Way(32, 1, 1, True), Way(16, 2, 3, False)], ids=str)
def test_a_lane_sees_the_same_by_any_way(way: Way, dtype: torch.dtype) -> None:
    """By products of matrices, of which one row is its own, and by sums; loaded ahead or not."""
    pool = Pool(1, 64, dtype)
    before = pool.pool.clone()
    wanted = pool.looked(scale=0.3)
    pool.pool.copy_(before)
    found = pool.looked(scale=0.3, way=way)
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE[dtype] * 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_see_the_source(lanes: int, dtype: torch.dtype) -> None:
    """All of it and nothing else; where there is none the answer is zero."""
    pool = Pool(lanes, 32, dtype)
    q = pool.qkv[:, : HEADS * 32]
    found = step_attention(q, pool.pool, pool.table, len(ROWS), pool.scratch, scale=1.0)
    for at, (source, *_) in enumerate(ROWS):
        held = pool.pool[:, :, pool.bases[at] : pool.bases[at] + source]
        for n in range(at * lanes, (at + 1) * lanes):
            expected = attend(q[n].view(HEADS, 32), held, 1.0, None)
            assert (found[n].double() - expected).abs().max() < TOLERANCE[dtype] * 4
