"""The one-shot kernels between ranks whose memory is one process's. In the interpreter a rank runs
after the other, so the first finds nothing yet: all send in one round and are answered in a second.

`tests/gpu` runs them between GPUs, where they wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch

from ftjob.comm.peer import Post, mailbox
from ftjob.kernels.add_norm import add_norm
from ftjob.kernels.one_shot import Mailbox, gather_rows, sum_and_norm, sum_rows

T = TypeVar("T")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])


def group(ways: int, rows: int = 4, words: int = 16) -> list[Mailbox]:
    """The mailboxes of all ranks."""
    posts = [Post.of(ways, rows, words, DEVICE) for _ in range(ways)]
    return [mailbox(posts, rank, DEVICE, tries=1) for rank in range(ways)]


def together(boxes: list[Mailbox], call: Callable[[Mailbox, int], T]) -> list[T]:
    """The collective call of every rank, as if all had run at once."""
    for rank, box in enumerate(boxes):
        before = box.epochs.clone()
        call(box, rank)
        box.epochs.copy_(before)
        box.failed.zero_()
    found = [call(box, rank) for rank, box in enumerate(boxes)]
    assert not any(box.failed.item() for box in boxes)
    return found


@TYPES
@pytest.mark.parametrize("ways", [2, 3])
def test_every_rank_gets_the_same_sums(ways: int, dtype: torch.dtype) -> None:
    boxes, made = group(ways, words=20), torch.Generator().manual_seed(ways)
    for turn in range(5):
        xs = [torch.randn(1 + turn % 4, 20, generator=made) for _ in range(ways)]
        xs = [x.to(DEVICE, dtype) for x in xs]
        wanted = sum(x.float() for x in xs)
        for found in together(boxes, lambda box, rank, xs=xs: sum_rows(box, xs[rank])):
            assert torch.equal(found, wanted.to(dtype))


@TYPES
@pytest.mark.parametrize("centred", [True, False])
def test_sums_are_normed_as_they_are_elsewhere(dtype: torch.dtype, centred: bool) -> None:
    made = torch.Generator().manual_seed(7)
    residual, *xs = (torch.randn(3, 24, generator=made).to(DEVICE, dtype) for _ in range(3))
    weight, bias, added = (torch.randn(24, generator=made).to(DEVICE, dtype) for _ in range(3))
    given = (added, weight, bias, 1e-5) if centred else (None, weight, None, 1e-5)
    found = together(
        group(2, words=24),
        lambda box, rank: sum_and_norm(box, residual, xs[rank], *given, centred=centred),
    )
    total = residual.float() + xs[0].float() + xs[1].float()
    total += added.float() if centred else 0
    wanted = add_norm(total.to(dtype), None, None, *given[1:], centred=centred)
    for mine, other, want in zip(*found, wanted, strict=True):
        assert torch.equal(mine, other)
        close = 1e-5 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(mine, want, rtol=0, atol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_everybodys_words_in_order(dtype: torch.dtype) -> None:
    boxes = group(3)
    for first in (0, 7):
        xs = [
            (torch.arange(25).view(5, 5) + first + 100 * rank).to(DEVICE, dtype)
            for rank in range(3)
        ]
        for found in together(boxes, lambda box, rank, xs=xs: gather_rows(box, xs[rank])):
            assert torch.equal(found, torch.stack(xs))


def test_a_peer_that_stays_away_is_told_and_never_waited_for_again() -> None:
    box, other = group(2)
    sum_rows(box, torch.ones(1, 16, device=DEVICE))
    assert (box.failed.item(), box.kept[-1].item(), other.failed.item()) == (1, 1, 0)
    sum_rows(replace(box, tries=10**9), torch.ones(1, 16, device=DEVICE))  # would wait for ever


def test_words_of_another_epoch_are_not_taken() -> None:
    box, other = group(2)
    for epoch in range(4):
        sum_rows(other, torch.full((1, 16), float(epoch), device=DEVICE))
        other.failed.zero_()
    sum_rows(
        box, torch.zeros(1, 16, device=DEVICE)
    )  # of epoch 1: its memory has the words of 3 by now
    assert box.failed.item() == 1
