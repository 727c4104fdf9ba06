"""The kernel of a row's highest logits and sum against sorted float64 rows.

Without a GPU in Triton's interpreter; bf16 where there is a GPU: `python -m pytest tests/kernels`.
"""

from __future__ import annotations

import pytest
import torch

from ftjob.kernels.token_stats import COLUMNS, row_stats

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])


def check(scores: torch.Tensor, targets: torch.Tensor, true: int) -> None:
    """Against a stable sort: equal values by rising column."""
    at_target, top, second, total, best = row_stats(scores, targets, true)
    exact = scores[:, :true].double()
    values, columns = exact.sort(dim=1, descending=True, stable=True)
    assert best.tolist() == columns[:, 0].tolist()
    assert top.tolist() == values[:, 0].tolist()
    assert second.tolist() == values[:, 1].tolist()
    sums = (exact - values[:, :1]).exp().sum(dim=1)
    torch.testing.assert_close(total.double(), sums, rtol=1e-5, atol=0)
    here = (targets >= 0) & (targets < true)
    wanted = exact.gather(1, targets.where(here, 0).unsqueeze(1)).squeeze(1).where(here, 0.0)
    assert at_target.double().tolist() == wanted.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [2, 61, COLUMNS - 1, COLUMNS, COLUMNS + 1, 2 * COLUMNS + 777])
def test_of_random_rows(dtype: torch.dtype, width: int) -> None:
    """In half precision many values are equal; targets lie in every block, and outside."""
    made = torch.Generator().manual_seed(width)
    scores = (torch.randn(6, width, generator=made) * 4).to(DEVICE, dtype)
    targets = torch.tensor([0, width - 1, width // 2, -1, width, width + 9], device=DEVICE)
    check(scores, targets, width)


def test_padding_is_never_looked_at() -> None:
    wide = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    wide[:, 70:] = 50.0
    wide[1, 75] = torch.nan
    check(wide[:, :90], torch.tensor([69, 70, 89, 3], device=DEVICE), 70)


@pytest.mark.parametrize(
    "tied", [[7, 41, 299], [298, 299], [COLUMNS + 3, 5], [3, COLUMNS + 3], [2 * COLUMNS, COLUMNS]]
)
def test_of_equals_the_lowest_column_wins(tied: list[int]) -> None:
    """In one block, in several, and in one lane of several."""
    scores = torch.zeros(2, 2 * COLUMNS + 10, device=DEVICE)
    scores[0, tied] = 5.0
    scores[1, tied[0]] = 5.0
    check(scores, torch.tensor([0, tied[0]], device=DEVICE), scores.shape[1])
    best = row_stats(scores, torch.zeros(2, dtype=torch.int64, device=DEVICE), scores.shape[1])[4]
    assert best.tolist() == [min(tied), tied[0]]


def test_second_highest_in_the_winners_lane() -> None:
    """Falling and rising in one lane: the second must be kept either way."""
    scores = torch.full((2, 3 * COLUMNS), -9.0, device=DEVICE)
    scores[0, [4, COLUMNS + 4, 2 * COLUMNS + 4]] = torch.tensor([3.0, 2.0, 1.0], device=DEVICE)
    scores[1, [4, COLUMNS + 4, 2 * COLUMNS + 4]] = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)
    check(scores, torch.tensor([4, 4], device=DEVICE), scores.shape[1])


@pytest.mark.parametrize("true", [0, 5])
def test_a_row_of_nothing(true: int) -> None:
    """What a device of a group has whose part of the vocabulary is padding, or all banned."""
    scores = torch.full((1, 9), -torch.inf, device=DEVICE)
    targets = torch.tensor([2], device=DEVICE)
    at_target, top, second, total, best = row_stats(scores, targets, true)
    assert (top.item(), second.item(), total.item(), best.item()) == (
        -torch.inf,
        -torch.inf,
        0.0,
        0,
    )
    assert at_target.item() == (-torch.inf if true else 0.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_numbers_stay_no_numbers(bad: float) -> None:
    """The sum, and with it every log-probability, so that the job refuses the row."""
    scores = torch.zeros(1, COLUMNS + 5, device=DEVICE)
    scores[0, COLUMNS + 2] = bad
    total = row_stats(scores, torch.zeros(1, dtype=torch.int64, device=DEVICE), scores.shape[1])[3]
    assert not torch.isfinite(total).any()
