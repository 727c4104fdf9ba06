"""Contents are counted as a dictionary would, in few bytes; keys are numbers."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from array import array
from collections import Counter

import pytest

from ftjob.keyset import Occurrences, content_number, key_number


def test_a_key_is_the_number_of_its_last_half() -> None:
    assert key_number("f" * 16 + "0" * 15 + "a") == 10
    assert key_number("f" * 32) == (1 << 64) - 1
    with pytest.raises(ValueError, match="invalid literal"):
        key_number("k7")


def test_occurrences_are_counted_as_by_a_dictionary() -> None:
    made = random.Random(5)
    found, wanted = Occurrences(), Counter[int]()
    for _ in range(20_000):
        number = content_number(hashlib.sha256(str(made.randint(0, 9000)).encode()).digest())
        assert found.count(number) == wanted[number]
        wanted[number] += 1
    assert content_number(bytes(8)) == 1


def test_occurrences_go_on_with_what_came_before() -> None:
    found = Occurrences(array("Q", [3, 7, 9]), {7: 4})
    assert [found.count(n) for n in (7, 3, 8, 7, 3, 9, 8, 2)] == [4, 1, 0, 5, 2, 1, 1, 0]


def test_memory_of_many_contents() -> None:
    tracemalloc.start()
    found = Occurrences()
    for i in range(100_000):
        found.count(content_number(i.to_bytes(8, "little") * 2))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 30 * 100_000
