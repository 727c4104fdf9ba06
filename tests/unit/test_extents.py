"""Extents of a pool: what is said to fit is what can be taken, and cells are nobody's twice."""

from __future__ import annotations

import random

import pytest

from ftjob.decode.extents import Extents

SIZE = 40


def free_of(extents: Extents) -> list[int]:
    """Every free cell, by taking them one by one."""
    found: list[int] = []
    while (starts := extents.take([1])) is not None:
        found += starts
    for cell in found:
        extents.give(cell, 1)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_what_fits_can_be_taken_and_what_does_not_cannot(seed: int) -> None:
    """In a pool that is full of holes, and also where one gap is wide enough for all."""
    made, extents = random.Random(seed), Extents(SIZE)
    held: list[tuple[int, int]] = []
    answers: set[bool] = set()
    for _ in range(200):
        sizes = [made.randint(1, 12) for _ in range(made.randint(1, 4))]
        before = free_of(extents)
        fits = extents.fits(sizes)
        assert free_of(extents) == before  # nothing is taken by asking
        starts = extents.take(sizes)
        assert fits == (starts is not None)
        answers.add(fits)
        held += zip(starts or [], sizes, strict=starts is not None)
        cells = [cell for start, size in held for cell in range(start, start + size)]
        assert len(set(cells)) == len(cells)
        assert sorted([*cells, *free_of(extents)]) == list(range(SIZE))
        made.shuffle(held)
        for start, size in held[len(held) // 2 :]:
            extents.give(start, size)
        del held[len(held) // 2 :]
    assert answers == {True, False}


def test_what_fits_depends_on_the_order() -> None:
    """Gaps of 4 and 6 cells: whether ten cells fit depends on the order that is asked for."""
    extents = Extents(12)
    assert extents.take([4, 1, 6, 1]) == [0, 4, 5, 11]
    extents.give(0, 4)
    extents.give(5, 6)
    assert extents.fits([6, 4])
    assert extents.fits([4, 6])
    assert extents.fits([4, 5, 1])
    assert not extents.fits([1, 4, 5])
    assert extents.fits([5, 3, 1])
    assert not extents.fits([3, 5, 2])
    assert not extents.fits([7])
