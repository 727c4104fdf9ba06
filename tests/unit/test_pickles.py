"""Pickles as plain data: the same values as the standard library's, whatever the protocol; nothing
named in a file is called, imported or made; and damage is an error with the byte, never a crash.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import enum
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from ftjob.checkpoint.pickles import Name, Stub, read_pickle


def read(data: bytes, **calls: Any) -> Any:
    value, length = read_pickle(data, {"collections.OrderedDict": lambda *a: dict(*a)}, repr)
    assert length == len(data)
    return value


class Colour(enum.Enum):
    RED = 1


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


PLAIN: list[Any] = [
    *(None, True, False, 0, 255, 256, 65536, -1, -70000, 1 << 40, -(1 << 70), 2.5, float("inf")),
    *("", "text", "ä" * 300, "\ud800", b"bytes", b"x" * 300, bytearray(b"array"), (), (1,)),
    *((1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], list(range(2000)), {}, {"a": {"b": [1, (2,)]}}),
    *({i: str(i) for i in range(2000)}, {("a", 1): 2, None: 3, 2.5: 4}),
]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(protocol: int) -> None:
    for value in PLAIN:
        if (protocol < 3 and isinstance(value, bytes)) or (
            protocol < 5 and isinstance(value, bytearray)
        ):
            continue  # written as a call
        found = read(pickle.dumps(value, protocol))
        assert found == value
        assert type(found) is (bytes if type(value) is bytearray else type(value))


def test_shared_and_circular_objects_are_one() -> None:
    shared = [1]
    first, second = read(pickle.dumps([shared, shared]))
    assert first is second
    circle: list[Any] = []
    circle.append(circle)
    found = read(pickle.dumps(circle))
    assert found[0] is found


def test_pickles_behind_each_other() -> None:
    data = pickle.dumps(1, 2) + pickle.dumps("two", 2)
    value, length = read_pickle(data, {}, repr)
    assert (value, read_pickle(data[length:], {}, repr)[0]) == (1, "two")


class ByName:
    """An enum's member as Python 3.11.0 to 3.11.3 write it."""

    def __reduce__(self) -> tuple[Any, tuple[Any, str]]:
        return getattr, (Colour, "RED")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_member_is_told_by_its_class(protocol: int) -> None:
    held = read(pickle.dumps(ByName(), protocol))
    assert isinstance(held, Stub)
    assert held.name.endswith(".Colour")
    assert held.arguments == ("RED",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_are_inert_stubs(protocol: int) -> None:
    held = read(pickle.dumps(argparse.Namespace(a=1, b=Colour.RED), protocol))
    assert isinstance(held, Stub)
    assert held.name == "argparse.Namespace"
    assert held.state["a"] == 1
    assert held.state["b"].name.endswith(".Colour")
    assert held.state["b"].arguments in ((1,), ("RED",))  # Python 3.11 first wrote the name
    assert read(pickle.dumps(collections.OrderedDict(a=1), protocol)) == {"a": 1}
    assert read(pickle.dumps(os.path.join, protocol)).full == "posixpath.join"
    assert read(pickle.dumps({1, 2}, 4)) == [1, 2]
    assert read(pickle.dumps(frozenset([1]), 4)) == [1]


def test_nothing_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "executed"
    data = pickle.dumps({"model": Hostile(path), "x": 1}, 2)
    pickle.loads(data)  # noqa: S301
    assert path.exists(), "the attack itself must work"
    path.unlink()
    found = read(data)
    assert not path.exists()
    assert found["model"].name == "posix.system"
    assert found["model"].arguments == (f"touch {path}",)


def test_no_module_is_imported() -> None:
    module = "ftjob_test_module_that_is_absent"
    found = read(b"\x80\x02c" + module.encode() + b"\nname\n.")
    assert isinstance(found, Name)
    assert found.full == f"{module}.name"
    assert read(b"\x80\x02cxmlrpc.server\nrun\n)R.").name == "xmlrpc.server.run"
    assert "xmlrpc.server" not in sys.modules


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends early"),
    "no end": (b"\x80\x02K\x01", "ends early"),
    "empty stack": (b"\x80\x02.", "stack is empty"),
    "no mark": (b"\x80\x02]e.", "no mark"),
    "a protocol of the future": (b"\x80\x09N.", "protocol 9"),
    "a protocol of the past": (b"\x80\x02I1\n.", "opcode b'I' is not known"),
    "text that is none": (b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "decode"),
    "a length of nearly 4 GB": (b"\x80\x02X\xff\xff\xff\xff.", "ends early"),
    "a length below 0": (b"\x80\x02T\xff\xff\xff\xff.", "ends early"),
    "a length of 2 ** 64": (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "ends early"),
    "a whole number of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "2147483647 bytes"),
    "a memory that is empty": (b"\x80\x02h\x07.", "operands are missing"),
    "remembers nothing": (b"\x80\x02q\x07.", "operands are missing"),
    "a list as a key": (b"\x80\x02}]K\x01s.", "a list as a key"),
    "a tuple of lists as a key": (b"\x80\x02}]\x85K\x01s.", "a tuple as a key"),
    "items for a number": (b"\x80\x02K\x01K\x02a.", "no list"),
    "keys for a list": (b"\x80\x02]K\x01K\x02s.", "no dictionary"),
    "a call of a number": (b"\x80\x02K\x01)R.", "calls what is no name"),
    "a call with a list": (b"\x80\x02ca\nb\n]R.", "calls what is no name"),
    "a state for a number": (b"\x80\x02K\x01}b.", "state for what has none"),
    "half a name": (b"\x80\x02cbuiltins\n", "no end"),
    "a name of numbers": (b"\x80\x04K\x01K\x02\x93.", "a name is no text"),
    "an instance of old": (b"\x80\x02(ios\nsystem\n.", "opcode b'i' is not known"),
    "an extension": (b"\x80\x02\x82\x01.", "opcode b'\\x82' is not known"),
}


@pytest.mark.parametrize(("data", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_damage_is_an_error(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match="its pickle breaks at byte") as refused:
        read_pickle(data, {}, repr)
    assert words in str(refused.value)


def test_depth_does_not_exhaust_the_stack() -> None:
    deep = b"\x80\x02" + b")" + b"\x85" * 300_000 + b"."
    value, _ = read_pickle(deep, {}, repr)
    assert isinstance(value, tuple)
    with pytest.raises(ValueError, match="a tuple as a key"):
        read_pickle(deep[:-1].replace(b"\x80\x02", b"\x80\x02}", 1) + b"Ns.", {}, repr)


def test_large_numbers_of_memory_places_cost_nothing() -> None:
    value, _ = read_pickle(b"\x80\x02Nr\xff\xff\xff\x7f.", {}, repr)
    assert value is None


def test_any_change_of_a_pickle_is_an_error_or_a_value() -> None:
    whole = pickle.dumps({"model": {"w": collections.OrderedDict(a=(1, 2.5))}, "x": [None] * 5}, 2)
    chance = random.Random(0)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(ValueError):
            read_pickle(bytes(data[: chance.randint(1, len(data))]), {}, repr)
