"""The book-keeping of a pool: what is said to fit can enter, also between rows that are there."""

from __future__ import annotations

import torch

from ftjob.batching import Chunk
from ftjob.decode.cohorts import Books
from ftjob.decode.pool import PoolLanes
from ftjob.model.arch import Arch
from ftjob.model.arrays import Arena
from ftjob.plan_generation import Generation
from ftjob.tasks.base import GenerateRequest, Row

ARCH = Arch("any", 1, 1, 2, 4, 4, 9, 64, 1e-5, "relu", True, 0)
ROOM = Generation(8, 1, 8, 24, 1, 0)


def chunk(*sizes: tuple[int, int]) -> Chunk:
    """Rows of so many tokens and new tokens."""
    return Chunk(
        0,
        tuple(
            GenerateRequest(Row(i, i + 1, b"", ""), str(i), [0] * tokens, new)
            for i, (tokens, new) in enumerate(sizes)
        ),
    )


def test_what_fits_can_enter() -> None:
    """Gaps of 8 and 6 cells take rows of 8 and 6 in that order alone; rows enter longest prompt
    first, whatever their order in the chunk."""
    books = Books(ROOM, seq2seq=False)
    lanes = PoolLanes(ARCH, 1, 1, books, ROOM, (torch.float32, torch.device("cpu")))
    assert lanes._extents.take([8, 2, 6, 8]) == [0, 8, 10, 16]
    lanes._extents.give(0, 8)
    lanes._extents.give(10, 6)
    assert not lanes.fits(chunk((4, 4), (5, 1))), "the row of 6 enters first and takes the 8"
    wanted = chunk((4, 2), (5, 3))
    assert lanes.fits(wanted)
    lanes.enter(books.enter(wanted), Arena(torch.device("cpu")))
    assert lanes._extents.take([1]) is None
