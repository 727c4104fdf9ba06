"""A tensor as it lies in a file or in several; the header of a safetensors file, which says where.

Nothing a header says is believed before it fits the file: types, sizes and places are checked, so
that `ranged` can read by them. `index` collects what is found. Standard library only.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ftjob.checkpoint.shard import Region, Shape
from ftjob.errors import CheckpointError

# Bits of an element: https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs
BITS = MappingProxyType(
    dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8)
    | dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
    | dict.fromkeys(("U32", "I32", "F32"), 32)
    | dict.fromkeys(("U64", "I64", "F64", "C64"), 64)
    | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
)
# A tensor takes some hundred bytes of header; Python's objects for garbage take 30 times its size.
LARGEST_HEADER = 16 << 20
MOST_AXES = 64


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: shape, safetensors dtype (F32, F16, BF16, ...), and the place of its
    first byte, counted from the file's first. Elements lie densely, the last axis fastest."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The tensor as one piece of itself."""
        whole = tuple(slice(0, n) for n in self.shape)
        return (Piece(self, whole, tuple(range(len(self.shape))), (0,) * len(self.shape)),)


@dataclass(frozen=True)
class Piece:
    """A box of a model's tensor, and where it lies within a stored one.

    `at` is the box in the model's axes. Axis i of `stored` runs along the model's axis axes[i],
    from index start[i] on; where axes[i] is None it stays at start[i].
    """

    stored: StoredTensor
    at: Region
    axes: tuple[int | None, ...]
    start: tuple[int, ...]

    def region(self, box: Region) -> Region:
        """The region of `stored` that holds `box`, which lies within `at`."""
        return tuple(
            slice(begin, begin + 1)
            if axis is None
            else slice(
                begin + box[axis].start - self.at[axis].start,
                begin + box[axis].stop - self.at[axis].start,
            )
            for axis, begin in zip(self.axes, self.start, strict=True)
        )


@dataclass(frozen=True)
class Assembled:
    """A model's tensor whose elements lie in several stored ones, or in another order of axes.
    The pieces cover it, each element once, and have one dtype."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]

    @property
    def dtype(self) -> str:
        """The stored dtype, in safetensors' word."""
        return self.pieces[0].stored.dtype

    @property
    def file(self) -> Path:
        """The first file, for messages."""
        return self.pieces[0].stored.file


Held = StoredTensor | Assembled


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, in the order of their bytes.

    The header is a length (8 bytes, little endian) and JSON: name -> dtype, shape and
    data_offsets, counted from the header's end. The tensors must fill the file without a hole.

    Raises:
        CheckpointError: with the file, its size and what is wrong.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if size < 8:
                raise ValueError("it ends before the header")
            if length > size - 8:
                raise ValueError(f"its header has {length} bytes and ends after the file")
            if length > LARGEST_HEADER:
                raise ValueError(f"its header has {length} bytes, more than {LARGEST_HEADER}")
            text = opened.read(length)
        return list(_tensors(file, text, 8 + length, size))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({size} bytes): {error}"
        ) from None


def _tensors(file: Path, text: bytes, start: int, size: int) -> Iterator[StoredTensor]:
    """The header's entries, in the order of their bytes, checked against the file's `size`."""
    header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_doubles)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    header.pop("__metadata__", None)
    found = sorted((_entry(name, stated) for name, stated in header.items()), key=lambda e: e[3:])
    end = 0
    for name, dtype, shape, begin, stop in found:
        if begin != end:
            raise ValueError(
                f"tensor {shown(name)}: starts at byte {begin} of the data, and what lies before "
                f"ends at {end}"
            )
        if start + stop > size:
            raise ValueError(
                f"tensor {shown(name)}: ends at byte {start + stop}, "
                f"{start + stop - size} after the file"
            )
        yield StoredTensor(file, name, shape, dtype, start + begin)
        end = stop
    if start + end != size:
        raise ValueError(f"{size - start - end} bytes at its end belong to no tensor")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"its header has {shown(name)} twice")
    return values


def _entry(name: str, stated: Any) -> tuple[str, str, tuple[int, ...], int, int]:
    """Name, dtype, shape, begin and end of an entry whose parts agree with each other."""
    name.encode("utf-8")  # half a surrogate pair could be neither logged nor printed
    if not isinstance(stated, dict):
        raise ValueError(f"tensor {shown(name)}: {shown(stated)} instead of a JSON object")
    dtype = stated.get("dtype")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {shown(name)}: dtype {shown(dtype)} is not known")
    shape, places = _sizes(name, stated, "shape"), _sizes(name, stated, "data_offsets")
    if len(places) != 2 or places[0] > places[1]:
        raise ValueError(f"tensor {shown(name)}: data_offsets={list(places)} are not a range")
    bits, held = math.prod(shape) * BITS[dtype], places[1] - places[0]
    if bits != 8 * held:
        raise ValueError(
            f"tensor {shown(name)}: {dtype} {shown(list(shape))} does not take the {held} bytes "
            "of its data_offsets"
        )
    return name, dtype, shape, places[0], places[1]


def _sizes(name: str, stated: dict[str, Any], key: str) -> tuple[int, ...]:
    """A short list of whole numbers that a file could have."""
    value = stated.get(key)
    if isinstance(value, list) and len(value) <= MOST_AXES:
        numbers = tuple(n for n in value if type(n) is int and 0 <= n < 1 << 63)
        if len(numbers) == len(value):
            return numbers
    raise ValueError(f"tensor {shown(name)}: {key}={shown(value)} is not a list of sizes")


def shown(value: Any) -> str:
    """A value in a message: cut where it is long, escaped where it cannot be printed."""
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
