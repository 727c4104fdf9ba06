"""The .pt and .bin files that torch.save writes, zip archives and the older plain ones: a tree of
plain data, and for each tensor in it the place of its bytes in the file.

Nothing of a file is executed and no tensor is read: `pickles` gives the tree, `ranged` later reads
slices of tensors where they lie. `huggingface` and `megatron` look for their tensors in the tree.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from ftjob.checkpoint.pickles import Name, Stub, plain_key, read_pickle
from ftjob.checkpoint.stored import BITS, StoredTensor, shown
from ftjob.errors import CheckpointError

# torch's classes of storages, and the dtypes named where a storage has none, in safetensors' words.
_DTYPES = MappingProxyType(
    {
        **{"torch.DoubleStorage": "F64", "torch.FloatStorage": "F32", "torch.HalfStorage": "F16"},
        **{"torch.BFloat16Storage": "BF16", "torch.LongStorage": "I64", "torch.IntStorage": "I32"},
        **{"torch.ShortStorage": "I16", "torch.CharStorage": "I8", "torch.ByteStorage": "U8"},
        **{"torch.BoolStorage": "BOOL", "torch.storage.UntypedStorage": "U8"},
        **{"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16"},
        **{"torch.bfloat16": "BF16", "torch.int64": "I64", "torch.int32": "I32"},
        **{"torch.int16": "I16", "torch.int8": "I8", "torch.uint8": "U8", "torch.bool": "BOOL"},
    }
)
# A pickle of a real file has some hundred bytes a tensor; Python's objects take many times that.
_LARGEST_PICKLE, _USUAL_PICKLE = 16 << 20, 1 << 20
# torch.serialization: what a file older than the zip format begins with, pickled by itself.
_MAGIC, _MAGIC_START = 0x1950A86A20F9469CFC6C, b"\x80\x02\x8a\x0a"


@dataclass(frozen=True, eq=False)
class Storage:
    """A row of numbers that tensors are views of."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True, eq=False)
class View:
    """A tensor: elements of a storage from `offset` on, all four counted in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class TorchFile:
    """A file's tree, whose tensors are `View`s, and the place of each storage: its first byte."""

    file: Path
    root: Any
    places: dict[str, int]

    def tensor(self, name: str, view: View) -> StoredTensor:
        """Where the tensor at `name` in the tree lies.

        Raises:
            CheckpointError: for one that does not lie densely within its storage.
        """
        held = view.storage.count * BITS[view.storage.dtype] // BITS[view.dtype]
        steps = [math.prod(view.shape[a + 1 :]) for a in range(len(view.shape))]
        dense = all(
            s == t or n == 1 for n, s, t in zip(view.shape, view.strides, steps, strict=True)
        )
        if not dense:
            raise CheckpointError(
                f"{self.file}: tensor {shown(name)} {list(view.shape)}: expected steps of {steps} "
                f"elements, found {list(view.strides)}; save it contiguous"
            )
        if view.offset + math.prod(view.shape) > held:
            raise CheckpointError(
                f"{self.file}: tensor {shown(name)} {list(view.shape)} from element {view.offset} "
                f"on ends after its storage of {held}"
            )
        offset = self.places[view.storage.key] + view.offset * BITS[view.dtype] // 8
        return StoredTensor(self.file, name, view.shape, view.dtype, offset)

    def refuse_stubs(
        self, inert: Callable[[str], bool] = lambda _: False, known: Collection[str] = ()
    ) -> None:
        """Refuse objects of classes other than torch's own, but for those named in `known`, and
        where `inert` says that the key of the root they lie under is never looked at.

        Raises:
            CheckpointError: with the class and the place in the tree.
        """
        for path, value in _walk(self.root, inert):
            if isinstance(value, (Stub, Name)):
                full = value.name if isinstance(value, Stub) else value.full
                if full in known and isinstance(value, Stub):
                    continue
                raise CheckpointError(
                    f"{self.file}: {shown(path)} is an object of {shown(full)}: only tensors, "
                    "numbers, text and containers are read, and nothing is executed; a copy saved "
                    "without it can be read"
                )


def _walk(root: Any, inert: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """Everything below the root with its place, each object once: a file may hold circles."""
    waiting: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path or "the whole file", value
        if isinstance(value, dict):
            for key, held in value.items():
                below = f"{path}.{key}" if path else str(key)
                if path or not (isinstance(key, str) and inert(key)):
                    waiting.append((below[:200], held))
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{path}[{i}]"[:200], held) for i, held in enumerate(value)]


def read_torch_file(file: Path) -> TorchFile:
    """The tree of a file; no byte of its tensors is read.

    Raises:
        CheckpointError: with the file, its size and what is wrong.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            start = opened.read(4)
            opened.seek(0)
            if start == b"PK\x03\x04":
                return _read_zip(file, opened, size)
            if start == _MAGIC_START:
                return _read_plain(file, opened, size)
            raise ValueError("it is neither of the two formats that torch.save writes")
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (
        *(ValueError, KeyError, IndexError, struct.error, OverflowError, EOFError),
        *(zipfile.BadZipFile, NotImplementedError, RuntimeError),
    ) as error:
        size = file.stat().st_size
        # zipfile's words for an archive cut short, which this one began as
        cut = str(error) == "File is not a zip file"
        reason = "the archive's table, which is its end, is missing" if cut else error
        raise CheckpointError(f"{file}: not a whole torch file ({size} bytes): {reason}") from None


def _read_zip(file: Path, opened: BinaryIO, size: int) -> TorchFile:
    """An archive of data.pkl and a file for each storage, none compressed."""
    with zipfile.ZipFile(opened) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        begins = sorted({*(i.header_offset for i in entries.values()), archive.start_dir})
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} files data.pkl")
    folder = pickles[0].removesuffix("data.pkl")

    def place(name: str) -> tuple[int, int]:
        """First byte and length of a file of the archive."""
        info = entries[f"{folder}{name}"]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"{shown(info.filename)} is compressed or encrypted; torch.save's are")
        opened.seek(info.header_offset)
        head = opened.read(30)
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            raise ValueError(f"{shown(info.filename)} is not where the archive's table says")
        first = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        end = first + info.file_size
        follows = begins[bisect_right(begins, info.header_offset)]
        # behind the bytes may come their length and checksum again, in three forms
        if follows - end not in ((16, 24, 12) if info.flag_bits & 8 else (0,)):
            raise ValueError(
                f"{shown(info.filename)} ends at byte {end}, but what follows begins at {follows}"
            )
        return first, info.file_size

    if f"{folder}byteorder" in entries:
        first, length = place("byteorder")
        opened.seek(first)
        if (order := opened.read(min(length, 16))) != b"little":
            raise ValueError(f"its byte order is {shown(order)}, not little")
    first, length = place("data.pkl")
    if length > _LARGEST_PICKLE:
        raise ValueError(f"its pickle has {length} bytes, more than {_LARGEST_PICKLE}")
    opened.seek(first)
    storages: dict[str, Storage] = {}
    root, end = read_pickle(opened.read(length), _calls(), _storages(storages))
    if end != length:
        raise ValueError(f"{length - end} bytes follow its pickle")
    places: dict[str, int] = {}
    for key, storage in storages.items():
        if f"{folder}data/{key}" not in entries:
            raise ValueError(f"the storage {shown(key)} is missing")
        places[key], held = place(f"data/{key}")
        if 8 * held != storage.count * BITS[storage.dtype]:
            raise ValueError(
                f"the storage {shown(key)}: expected {storage.count} elements of {storage.dtype}, "
                f"found {held} bytes"
            )
    return TorchFile(file, root, places)


def _read_plain(file: Path, opened: BinaryIO, size: int) -> TorchFile:
    """Five pickles (magic number, version, machine, tree, keys), then each storage: its count of
    elements (8 bytes) and its bytes."""
    storages: dict[str, Storage] = {}
    try:  # few trees are larger than this, and what follows are weights
        found, at = _five_pickles(opened.read(_USUAL_PICKLE), storages)
    except ValueError:
        storages.clear()
        opened.seek(0)
        found, at = _five_pickles(opened.read(_LARGEST_PICKLE), storages)
    magic, version, machine, root, keys = found
    if magic != _MAGIC or version != 1001:
        raise ValueError(f"version {shown(version)} of the format is not known")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    if not isinstance(keys, list) or {*map(str, keys)} != storages.keys():
        raise ValueError("its list of storages is not that of its tensors")
    places: dict[str, int] = {}
    for key in map(str, keys):
        storage = storages[key]
        opened.seek(at)
        count = int.from_bytes(opened.read(8), "little")
        if count != storage.count:
            raise ValueError(
                f"the storage {shown(key)}: expected {storage.count} elements, found {count}"
            )
        places[key] = at + 8
        at += 8 + count * BITS[storage.dtype] // 8
        if at > size:
            raise ValueError(f"the storage {shown(key)} ends {at - size} bytes after the file")
    if at != size:
        raise ValueError(f"{size - at} bytes at its end belong to no tensor")
    return TorchFile(file, root, places)


def _five_pickles(data: bytes, storages: dict[str, Storage]) -> tuple[list[Any], int]:
    """The five values that a plain file begins with, and where they end."""
    view, at, found = memoryview(data), 0, []
    for _ in range(5):
        value, length = read_pickle(view[at:], _calls(), _storages(storages))
        found.append(value)
        at += length
    return found, at


def _storages(found: dict[str, Storage]) -> Callable[[Any], Storage]:
    """What persistent ids are worth; the storages are collected in `found`."""

    def storage(value: Any) -> Storage:
        if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
            raise ValueError(f"a persistent id {shown(type(value).__name__)} is no storage")
        _, kind, key, _, count = value[:5]
        if not isinstance(kind, Name) or kind.full not in _DTYPES:
            full = kind.full if isinstance(kind, Name) else type(kind).__name__
            raise ValueError(f"a storage of {shown(full)} is not known")
        if value[5:] not in ((), (None,)):
            raise ValueError("a storage within another, as torch 0.3 wrote, is not read")
        if not isinstance(key, str) or type(count) is not int or not 0 <= count < 1 << 60:
            raise ValueError(f"a storage of {shown(count)} elements")
        made = Storage(_DTYPES[kind.full], key, count)
        before = found.setdefault(key, made)
        if (before.dtype, before.count) != (made.dtype, made.count):
            raise ValueError(f"the storage {shown(key)} has two sizes")
        return before

    return storage


def _calls() -> dict[str, Callable[..., Any]]:
    """The calls that torch.save writes for tensors and the dictionaries that hold them."""
    return {
        "collections.OrderedDict": lambda pairs=(): {plain_key(k): v for k, v in pairs},
        "torch._utils._rebuild_tensor": _view,
        "torch._utils._rebuild_tensor_v2": lambda s, o, n, t, *_: _view(s, o, n, t),
        "torch._utils._rebuild_tensor_v3": lambda s, o, n, t, _r, _h, d, *_: _view(s, o, n, t, d),
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.Size": lambda sizes: tuple(sizes),
    }


def _view(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None) -> View:
    """A tensor from the arguments of its rebuilding."""
    whole = isinstance(storage, Storage) and type(offset) is int and 0 <= offset < 1 << 60
    for sizes in (shape, strides):
        whole = whole and isinstance(sizes, tuple) and len(sizes) <= 64
        whole = whole and all(type(n) is int and 0 <= n < 1 << 60 for n in sizes)
    if not whole or len(shape) != len(strides):
        raise ValueError("a tensor of impossible sizes")
    if dtype is not None and not (isinstance(dtype, Name) and dtype.full in _DTYPES):
        raise ValueError("a tensor of a dtype that is not known")
    return View(storage, offset, shape, strides, _DTYPES[dtype.full] if dtype else storage.dtype)
