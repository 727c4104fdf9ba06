"""The kernel of the highest logits against a sort of all: values, order of equals, log(sum(exp)).

Without a GPU it runs in Triton's interpreter.
"""

from __future__ import annotations

import pytest
import torch

from ftjob.kernels.highest import COLUMNS, highest

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sorted_columns(row: torch.Tensor, k: int) -> list[int]:
    """Columns by falling value, equal ones by rising column."""
    return sorted(range(len(row)), key=lambda i: (-float(row[i]), i))[:k]


@pytest.mark.parametrize("k", [1, 2, 6, 32])
@pytest.mark.parametrize("columns", [33, COLUMNS, 2 * COLUMNS + 5])
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "apart"])
def test_values_columns_and_norm(columns: int, k: int, ties: bool) -> None:
    """Rows are columns of a wider tensor; equal values lie in one part and across parts."""
    made = torch.Generator().manual_seed(columns + k)
    logits = torch.randn(3, columns + 7, generator=made) * 4
    if ties:
        logits = logits.round()
    logits = logits.to(DEVICE)[:, :columns]
    values, places, norms = highest(logits, k)
    for row, value, place, norm in zip(logits, values, places, norms, strict=True):
        assert place.tolist() == sorted_columns(row, k)
        assert torch.equal(value, row[place])
        assert torch.allclose(norm, row.double().logsumexp(0).float(), rtol=1e-6, atol=1e-6)


def test_padding_and_bans_come_last() -> None:
    """What is -inf is no candidate while there is another, nor weighs in the norm; a whole part may
    be padding."""
    logits = torch.full((2, 2 * COLUMNS), -torch.inf, device=DEVICE)
    logits[:, 5], logits[:, 9] = 1.0, 2.0
    logits[1, COLUMNS + 3] = 3.0
    values, places, norms = highest(logits, 4)
    assert values.tolist() == [[2, 1, -torch.inf, -torch.inf], [3, 2, 1, -torch.inf]]
    assert [places[0, :2].tolist(), places[1, :3].tolist()] == [[9, 5], [COLUMNS + 3, 9, 5]]
    assert bool((places < 2 * COLUMNS).all())
    assert torch.allclose(norms, logits.logsumexp(dim=1))
