"""The kernel of the highest logits against a sort of all: values, order of equals, log(sum(exp)).

Without a GPU it runs in Triton's interpreter.
"""

from __future__ import annotations

import pytest
import torch

from ftjob.kernels.highest import COLUMNS, MOST, highest, merge

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


@pytest.mark.parametrize("k", [1, 5, MOST])
def test_equals_of_many_parts_come_by_column(k: int) -> None:
    """A few values lie in each of five parts, of which the last has but three columns."""
    columns = 4 * COLUMNS + 3
    logits = torch.full((2, columns), -3.0)
    for part in range(5):
        logits[0, part * COLUMNS + 2] = 1.0
        logits[0, part * COLUMNS : part * COLUMNS + 2] = 2.0
        logits[1, part * COLUMNS + part % 3] = float(part % 2)
    values, places, norms = highest(logits.to(DEVICE), k)
    for row, value, place in zip(logits, values, places, strict=True):
        assert place.tolist() == sorted_columns(row, k)
        assert torch.equal(value.cpu(), row[place.cpu()])
    assert torch.allclose(norms.cpu(), logits.double().logsumexp(1).float(), rtol=1e-6)


@pytest.mark.parametrize(("columns", "k"), [(COLUMNS + 1, 4), (7, 7)])
def test_nothing_but_padding(columns: int, k: int) -> None:
    """A rank of a tensor group may hold no true column: its columns come in order, and its norm is
    -inf, so that it weighs nothing."""
    values, places, norms = highest(torch.full((2, columns), -torch.inf, device=DEVICE), k)
    assert bool((values == -torch.inf).all())
    assert places.tolist() == [list(range(k))] * 2
    assert norms.tolist() == [-torch.inf] * 2


@pytest.mark.parametrize(("ways", "columns", "k"), [(2, 33, 2), (4, 9, 9), (4, 9, 20), (8, 40, 32)])
def test_ranks_are_merged(ways: int, columns: int, k: int) -> None:
    """Of what ranks have found in their columns, as of the whole row; the last holds padding."""
    made = torch.Generator().manual_seed(ways)
    logits = (torch.randn(3, ways * columns, generator=made) * 3).round()
    logits[:, -columns:] = -torch.inf
    logits[2] = 0.0
    parts, held = [], min(k, columns)
    for rank, own in enumerate(logits.to(DEVICE).split(columns, dim=1)):
        values, places, norms = highest(own, held)
        bits = (places + rank * columns).to(torch.int32).view(torch.float32)
        parts.append(torch.cat((values, bits, norms.unsqueeze(1)), dim=1))
    values, places, norms = merge(torch.stack(parts), k)
    assert places.tolist() == [sorted_columns(row, k) for row in logits]
    assert torch.equal(values.cpu(), logits.gather(1, places.cpu()))
    assert torch.allclose(norms.cpu(), logits.double().logsumexp(1).float(), rtol=1e-6)
