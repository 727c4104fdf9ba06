"""A pickle read as plain data: an interpreter of its opcodes that calls, imports and makes nothing.

What torch writes is numbers, strings, containers and calls by name. Calls that the reader was told
of become its values, all others inert `Stub`s. `torchfile` reads .pt and .bin files with it.
Opcodes: protocols 2 to 5, as in the standard library's pickletools. Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# name -> what a call of it with these arguments is worth
Calls = Mapping[str, Callable[..., Any]]
_GETATTR = ("builtins.getattr", "__builtin__.getattr")
# Real files hold no longer whole numbers than a hash or a seed.
_LONGEST_INT = 256


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function that the pickle names."""

    full: str

    def __str__(self) -> str:
        return f"the class {self.full}"


@dataclass(eq=False, repr=False)
class Stub:
    """An object that is not made: the name of its class or function, its arguments and state."""

    name: str
    arguments: Any
    state: Any = None

    def __repr__(self) -> str:
        return f"an object of {self.name}"


def read_pickle(
    data: bytes | memoryview, calls: Calls, persistent: Callable[[Any], Any]
) -> tuple[Any, int]:
    """The value of the pickle that `data` begins with, and its length in bytes.

    `persistent` gives the value of a persistent id, a storage in torch's files.

    Raises:
        ValueError: saying at which byte what is wrong.
    """
    machine = _Machine(data, calls, persistent)
    try:
        while not machine.ended:
            machine.step()
        return machine.pop(), machine.at
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        reason = str(error) if isinstance(error, ValueError) else "its operands are missing"
        raise ValueError(f"its pickle breaks at byte {machine.at}: {reason}") from None


class _Machine:
    """Stack, marks and memo; `step` takes one opcode from the data."""

    def __init__(
        self, data: bytes | memoryview, calls: Calls, persistent: Callable[[Any], Any]
    ) -> None:
        self.data, self.calls, self.persistent = data, calls, persistent
        self.at, self.ended = 0, False
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count < 0 or self.at + count > len(self.data):
            raise ValueError("it ends early")
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, layout: str) -> Any:
        """The next number of that struct layout."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """The next line of text, a part of a name."""
        text = bytes(self.data[self.at : self.at + 256])
        found, newline, _ = text.partition(b"\n")
        if not newline:
            raise ValueError("a name has no end")
        self.at += len(found) + 1
        return found.decode("utf-8")

    def pop(self) -> Any:
        """The top of the stack."""
        if not self.stack:
            raise ValueError("its stack is empty")
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        """What lies above the last mark."""
        if not self.below:
            raise ValueError("there is no mark")
        found, self.stack = self.stack, self.below.pop()
        return found

    def step(self) -> None:
        """Do the next opcode."""
        code = self.take(1)
        if code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code])
        elif code in _NUMBERS:
            self.stack.append(self.number(_NUMBERS[code]))
        elif code in _TEXTS:
            layout, encoding = _TEXTS[code]
            text = self.take(self.number(layout))
            self.stack.append(text.decode(encoding, "surrogatepass") if encoding else text)
        elif code in _TUPLES:
            count = _TUPLES[code]
            if len(self.stack) < count:
                raise ValueError("its stack is empty")
            self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]
        elif code in _ACTIONS:
            _ACTIONS[code](self)
        else:
            raise ValueError(f"opcode {code!r} is not known")

    def long(self, layout: str) -> None:
        """A whole number of a stated length."""
        length = self.number(layout)
        if length > _LONGEST_INT:
            raise ValueError(f"a whole number has {length} bytes")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    def proto(self) -> None:
        """The protocol's number."""
        protocol = self.number("<B")
        if not 2 <= protocol <= 5:
            raise ValueError(f"protocol {protocol} is not known")

    def stop(self) -> None:
        """The end."""
        self.ended = True

    def mark(self) -> None:
        """Lay the stack aside."""
        self.below.append(self.stack)
        self.stack = []

    def put(self, key: int) -> None:
        """Remember the top."""
        self.memo[key] = self.stack[-1]

    def get(self, key: int) -> None:
        """Recall what was remembered."""
        self.stack.append(self.memo[key])

    def append(self, items: list[Any]) -> None:
        """Items for the list, set or stub on top."""
        target = self.stack[-1]
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Stub):
            raise ValueError("items for what is no list")

    def set_items(self, items: list[Any]) -> None:
        """Keys and values, in turn, for the dictionary on top. A stub's are dropped."""
        target = self.stack[-1]
        if isinstance(target, Stub):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items for what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    def pair(self) -> list[Any]:
        """The two values on top."""
        value = self.pop()
        return [self.pop(), value]

    def stack_name(self) -> None:
        """A name whose parts are on the stack."""
        module, name = self.pair()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name is no text")
        self.stack.append(Name(f"{module}.{name}"))

    def call(self, arguments: Any) -> None:
        """Replace the named function or class on top by what calling it is worth."""
        function = self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no name")
        known = self.calls.get(function.full)
        if known:
            self.stack.append(known(*arguments))
        elif function.full in _GETATTR and arguments and isinstance(arguments[0], Name):
            # an enum's member, as Python 3.11 wrote it at first: what matters is whose it is
            self.stack.append(Stub(arguments[0].full, arguments[1:]))
        else:
            self.stack.append(Stub(function.full, arguments))

    def new_with_keywords(self) -> None:
        """An object made with positional and named arguments."""
        named = self.pop()
        self.call((*self.pop(), named))

    def build(self) -> None:
        """A state for the object below. An ordered dictionary's is torch's table of versions."""
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Stub):
            target.state = state
        elif not isinstance(target, dict):
            raise ValueError("a state for what has none")

    def collect(self, kind: Callable[[list[Any]], Any]) -> None:
        """A list or tuple of what lies above the mark."""
        items = self.pop_marked()
        self.stack.append(kind(items))

    def dictionary(self) -> None:
        """A dictionary of what lies above the mark."""
        items = self.pop_marked()
        self.stack.append({})
        self.set_items(items)

    def drop_marked(self) -> None:
        """Forget what lies above the mark."""
        self.pop_marked()


def plain_key(key: Any) -> Any:
    """A key that can be hashed at once: hashing deep tuples could exhaust the stack."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(part is None or isinstance(part, (str, bytes, int, float)) for part in parts):
        named = next((p for p in parts if isinstance(p, (Name, Stub))), None)
        raise ValueError(f"{named or f'a {type(key).__name__}'} as a key")
    return key


_CONSTANTS: Mapping[bytes, Any] = MappingProxyType(
    {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
)
_NUMBERS = MappingProxyType({b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"})
# length's layout, encoding: Python 2's strings are bytes, of which latin-1 loses none
_TEXTS = MappingProxyType(
    {
        **{b"X": ("<I", "utf-8"), b"\x8c": ("<B", "utf-8"), b"\x8d": ("<Q", "utf-8")},
        **{b"T": ("<i", "latin-1"), b"U": ("<B", "latin-1")},
        **{b"B": ("<I", ""), b"C": ("<B", ""), b"\x8e": ("<Q", ""), b"\x96": ("<Q", "")},
    }
)
_TUPLES = MappingProxyType({b"\x85": 1, b"\x86": 2, b"\x87": 3})
_ACTIONS: Mapping[bytes, Callable[[_Machine], object]] = MappingProxyType(
    {
        b"\x80": _Machine.proto,
        b"\x95": lambda m: m.take(8),  # FRAME
        b".": _Machine.stop,
        b"(": _Machine.mark,
        b"0": _Machine.pop,
        b"1": _Machine.drop_marked,
        b"2": lambda m: m.stack.append(m.stack[-1]),
        b"\x8a": lambda m: m.long("<B"),
        b"\x8b": lambda m: m.long("<I"),
        b"]": lambda m: m.stack.append([]),
        b"\x8f": lambda m: m.stack.append([]),  # sets, as lists
        b"\x91": lambda m: m.collect(list),
        b"l": lambda m: m.collect(list),
        b"a": lambda m: m.append([m.pop()]),
        b"e": lambda m: m.append(m.pop_marked()),
        b"\x90": lambda m: m.append(m.pop_marked()),
        b"t": lambda m: m.collect(tuple),
        b"}": lambda m: m.stack.append({}),
        b"d": _Machine.dictionary,
        b"s": lambda m: m.set_items(m.pair()),
        b"u": lambda m: m.set_items(m.pop_marked()),
        b"c": lambda m: m.stack.append(Name(f"{m.line()}.{m.line()}")),
        b"\x93": _Machine.stack_name,
        b"R": lambda m: m.call(m.pop()),
        b"\x81": lambda m: m.call(m.pop()),
        b"\x92": _Machine.new_with_keywords,
        b"b": _Machine.build,
        b"Q": lambda m: m.stack.append(m.persistent(m.pop())),
        b"q": lambda m: m.put(m.number("<B")),
        b"r": lambda m: m.put(m.number("<I")),
        b"\x94": lambda m: m.put(len(m.memo)),
        b"h": lambda m: m.get(m.number("<B")),
        b"j": lambda m: m.get(m.number("<I")),
    }
)
