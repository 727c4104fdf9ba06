"""Sets of many keys in few bytes do what Python's own do."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections import Counter

from ftjob.keyset import KeySet, Occurrences


def test_keys_are_taken_once() -> None:
    found = KeySet(f"k{i}" for i in range(1000))
    assert (len(found), found.left) == (1000, 1000)
    assert "k7" in found
    assert "x" not in found
    assert not found.take("x")
    assert found.take("k7")
    assert not found.take("k7")
    assert "k7" in found
    assert found.left == 999
    assert [i for i in range(1000) if not found.take(f"k{i}")] == [7]
    assert found.left == 0
    assert len(KeySet()) == 0
    assert "a" not in KeySet()


def test_occurrences_are_counted_as_by_a_dictionary() -> None:
    made = random.Random(5)
    found, wanted = Occurrences(), Counter[bytes]()
    for _ in range(20_000):
        digest = hashlib.sha256(str(made.randint(0, 9000)).encode()).digest()
        assert found.count(digest) == wanted[digest]
        wanted[digest] += 1
    assert found.count(bytes(8)) == 0
    assert found.count(bytes(8)) == 1


def test_memory_of_many_keys() -> None:
    tracemalloc.start()
    found = Occurrences()
    for i in range(100_000):
        found.count(i.to_bytes(8, "big")[::-1] * 2)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 30 * 100_000
