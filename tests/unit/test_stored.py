"""The header of a safetensors file: what a writer writes is found where it lies, and whatever does
not describe the file to the byte is refused with the file's name, before memory is taken for it.
"""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ftjob.checkpoint.stored import LARGEST_HEADER, MOST_AXES, StoredTensor, read_header
from ftjob.errors import CheckpointError

TWO = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def write(path: Path, header: Any, data: int = 32) -> Path:
    """A file with that header, as JSON or as bytes, and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return path


def entry(**changes: Any) -> dict[str, Any]:
    """A file of one tensor of 32 bytes, something of it changed."""
    return {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]} | changes}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        read_header(path)
    message = str(refused.value)
    start = f"{path}: not a whole safetensors file ({path.stat().st_size} bytes): "
    assert message.startswith(start)
    assert message.isprintable()
    assert len(message) < len(start) + 300
    return message.removeprefix(start)


def test_what_was_saved_is_found_where_it_lies(tmp_path: Path) -> None:
    random_numbers = np.random.default_rng(0)
    saved = {
        "w": random_numbers.random((3, 5), np.float32),
        "half": random_numbers.random((7,)).astype(np.float16),
        "one": np.array(2.5),
        "none": np.zeros((0, 4), np.int8),
        "mask": np.ones((2, 2), np.bool_),
    }
    path = tmp_path / "x.safetensors"
    save_file(saved, path, metadata={"format": "pt"})
    whole, names = path.read_bytes(), set()
    for tensor in read_header(path):
        value = load_file(path)[tensor.name]
        assert (tensor.file, tensor.shape) == (path, value.shape)
        assert whole[tensor.offset :][: value.nbytes] == value.tobytes()
        names.add(tensor.name)
    assert names == saved.keys()


def test_places_are_counted_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x", TWO)
    start = path.stat().st_size - 32
    assert read_header(path) == [
        StoredTensor(path, "a", (2, 3), "F32", start),
        StoredTensor(path, "b", (4,), "BF16", start + 24),
    ]


def test_empty_header_is_an_empty_file(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "x", {}, 0)) == []
    assert read_header(write(tmp_path / "x", {"__metadata__": {"a": "b"}}, 0)) == []


HEADERS: dict[str, tuple[Any, int, str]] = {
    "not JSON": (b"\x80abc", 32, "decode"),
    "no JSON object": ([], 32, "not a JSON object"),
    "cut JSON": (b'{"a": ', 32, "line 1"),
    "deep nesting": (b"[" * 500_000, 0, "recursion"),
    "deep nesting in an entry": (b'{"a":' * 200_000, 0, "recursion"),
    "a huge number": (b'{"a": ' + b"9" * 5000 + b"}", 0, "4300"),
    "a name twice": (b'{"a": 1, "a": 2}', 0, "a twice"),
    "half a character": (b'{"\\ud800": {}}', 0, "surrogates"),
    "names and types that cannot be printed": (entry(dtype="\x1b[31m\ud800"), 32, "\\x1b"),
    "an entry that is no object": ({"a": [1]}, 0, "a: [1] instead"),
    "no dtype": (entry(dtype=None), 32, "dtype None is not known"),
    "an unknown dtype": (entry(dtype="F32 "), 32, "dtype F32  is not known"),
    "a dtype without hash": (entry(dtype=["F32"]), 32, "dtype ['F32']"),
    "a long dtype": (entry(dtype="F" * 10**6), 32, "FFF..."),
    "no shape": (entry(shape=None), 32, "shape=None is not a list of sizes"),
    "a shape of text": (entry(shape="8"), 32, "shape=8"),
    "a negative size": (entry(shape=[-8]), 32, "shape=[-8]"),
    "two negative sizes": (entry(shape=[-2, -4]), 32, "shape=[-2, -4]"),
    "a size with a fraction": (entry(shape=[8.0]), 32, "shape=[8.0]"),
    "a size that is true": (entry(shape=[8, True]), 32, "shape=[8, True]"),
    "a size no file has": (entry(shape=[1 << 63, 0]), 32, "is not a list of sizes"),
    "sizes that wrap around": (entry(shape=[1 << 62, 4, 8]), 32, "does not take the 32 bytes"),
    "too many axes": (entry(shape=[1] * MOST_AXES + [8]), 32, "is not a list of sizes"),
    "another shape than the bytes": (entry(shape=[7]), 32, "F32 [7] does not take the 32"),
    "another dtype than the bytes": (entry(dtype="F16"), 32, "F16 [8] does not take the 32"),
    "half a byte too many": (entry(dtype="F4", shape=[65]), 32, "does not take the 32"),
    "no places": (entry(data_offsets=[]), 32, "data_offsets=[] are not a range"),
    "places backwards": (entry(data_offsets=[32, 0]), 32, "[32, 0] are not a range"),
    "places before the data": (entry(data_offsets=[-8, 24]), 32, "data_offsets=[-8, 24] is not"),
    "a tensor after the end": (entry(), 31, "1 after the file"),
    "a tensor far after the end": (
        entry(shape=[1 << 60], data_offsets=[0, 1 << 62]),
        32,
        "after the file",
    ),
    "bytes of nobody at the end": (entry(), 40, "8 bytes at its end belong to no tensor"),
    "a hole": (
        {"a": TWO["a"], "b": TWO["b"] | {"data_offsets": [28, 36]}},
        36,
        "b: starts at byte 28 of the data, and what lies before ends at 24",
    ),
    "an overlap": ({"a": TWO["a"], "b": TWO["b"] | {"data_offsets": [20, 28]}}, 28, "byte 20"),
    "one place for two": ({"a": entry()["a"], "b": entry()["a"]}, 32, "byte 0"),
}


@pytest.mark.parametrize(("header", "data", "words"), HEADERS.values(), ids=HEADERS.keys())
def test_header_that_does_not_fit_is_refused(
    tmp_path: Path, header: Any, data: int, words: str
) -> None:
    assert words in refusal(write(tmp_path / "x", header, data))


@pytest.mark.parametrize("length", [33, 1 << 31, (1 << 63) + 5, (1 << 64) - 1])
def test_length_beyond_the_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(30))
    assert refusal(path) == f"its header has {length} bytes and ends after the file"


def test_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path, length = tmp_path / "x", 8 << 30
    with path.open("wb") as file:  # a hole: the disk holds none of it
        file.write(length.to_bytes(8, "little"))
        file.truncate(length + 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(path) == f"its header has {length} bytes, more than {LARGEST_HEADER}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read: ") as refused:
            read_header(path)
        assert str(path) in str(refused.value)


def test_flipped_bytes_are_read_right_or_refused(tmp_path: Path) -> None:
    """Whatever the damage: either the tensors fit the file, or it is a CheckpointError."""
    path, chance = write(tmp_path / "x", TWO), random.Random(0)
    whole = path.read_bytes()
    refused = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(whole) - 32)] = chance.choice(b'09 "{}[],:\\-.eE\x00\xff')
        path.write_bytes(damaged)
        try:
            found = read_header(path)
        except CheckpointError:
            refused += 1
            continue
        assert all(0 < t.offset <= len(whole) for t in found)
    assert refused > 600
