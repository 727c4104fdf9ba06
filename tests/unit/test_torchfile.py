"""Files that torch.save wrote, in both its formats: every tensor is found where its bytes lie, no
class of a stranger is made, and a file that is not whole is refused with its name.
"""

from __future__ import annotations

import os
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftjob.checkpoint.pickles import Stub
from ftjob.checkpoint.torchfile import TorchFile, View, read_torch_file
from ftjob.errors import CheckpointError

FORMAT = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.int8, torch.uint8, torch.bool]


def save(path: Path, value: Any, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def bytes_of(opened: TorchFile, name: str, view: View) -> bytes:
    stored = opened.tensor(name, view)
    count = torch.Size(view.shape).numel()
    size = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}.get(view.dtype, 2)
    return stored.file.read_bytes()[stored.offset :][: count * size]


@FORMAT
def test_tensors_are_found_where_they_lie(tmp_path: Path, zipped: bool) -> None:
    made = {str(d): (torch.arange(24) % 5).to(d).reshape(2, 3, 4) for d in DTYPES}
    long = torch.arange(100.0)
    made |= {"view": long[10:40].view(5, 6), "tied": long, "one": torch.tensor(2.5)}
    made |= {"none": torch.zeros(0, 4), "wide": torch.ones(1, 7), "p": torch.nn.Parameter(long)}
    opened = read_torch_file(save(tmp_path / "x.pt", {"m": OrderedDict(made)}, zipped))
    opened.refuse_stubs()
    assert opened.root["m"].keys() == made.keys()
    for name, tensor in made.items():
        view = opened.root["m"][name]
        assert view.shape == tuple(tensor.shape)
        plain = tensor.detach().contiguous()
        assert (
            bytes_of(opened, name, view) == plain.view(torch.uint8).numpy().tobytes()
            if (plain.dim())
            else plain.numpy().tobytes()
        )


@FORMAT
def test_a_module_state_is_read(tmp_path: Path, zipped: bool) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).state_dict()
    opened = read_torch_file(save(tmp_path / "x.pt", state, zipped))
    opened.refuse_stubs()
    assert list(opened.root) == list(state)


@FORMAT
def test_strangers_are_stubs_where_they_may_be(tmp_path: Path, zipped: bool) -> None:
    rng = np.random.RandomState(0).get_state()
    file = save(tmp_path / "x.pt", {"rng_state": [{"np": rng}], "n": np.float64(1.0)}, zipped)
    opened = read_torch_file(file)
    assert isinstance(opened.root["rng_state"][0]["np"][1], Stub)
    with pytest.raises(CheckpointError, match=rf"{file}: n is an object of numpy\._?core\.") as no:
        opened.refuse_stubs(lambda key: "rng" in key)
    assert "nothing is executed" in str(no.value)
    opened.root.pop("n")
    opened.refuse_stubs(lambda key: "rng" in key)
    with pytest.raises(CheckpointError, match=r"rng_state\[0\]\.np\[1\] is an object of numpy"):
        opened.refuse_stubs()


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@FORMAT
def test_hostile_file_executes_nothing(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "executed"
    file = save(tmp_path / "x.bin", {"w": torch.ones(2), "z": Hostile(mark)}, zipped)
    torch.load(file, weights_only=False)
    assert mark.exists(), "the attack itself must work"
    mark.unlink()
    with pytest.raises(CheckpointError, match=r"z is an object of posix\.system"):
        read_torch_file(file).refuse_stubs()
    assert not mark.exists()


def test_tensors_that_do_not_lie_densely_are_refused(tmp_path: Path) -> None:
    opened = read_torch_file(save(tmp_path / "x.pt", {"t": torch.ones(3, 4).T}))
    with pytest.raises(CheckpointError, match=r"tensor t \[4, 3\]: expected steps of \[3, 1\]"):
        opened.tensor("t", opened.root["t"])
    view = opened.root["t"]
    far = View(view.storage, 1, (12,), (1,), view.dtype)
    with pytest.raises(CheckpointError, match=r"from element 1 on ends after its storage of 12"):
        opened.tensor("t", far)


def test_archive_cut_short_is_told_by_its_table(tmp_path: Path) -> None:
    file = save(tmp_path / "x.pt", {"t": torch.ones(300)}, True)
    file.write_bytes(file.read_bytes()[:-10])
    assert refusal(file).endswith("the archive's table, which is its end, is missing")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        read_torch_file(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: not a whole torch file ({path.stat().st_size} bytes): ")
    assert message.isprintable()
    return message


def repacked(path: Path, **changes: Any) -> Path:
    """The archive with files changed, left out (None), or compressed."""
    compress = changes.pop("compress", zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as old:
        held = {i.filename.partition("/")[2]: old.read(i) for i in old.infolist()}
    held |= {name.replace("__", "/"): data for name, data in changes.items()}
    target = path.with_name("changed.pt")
    with zipfile.ZipFile(target, "w", compress) as new:
        for name, data in held.items():
            if data is not None:
                new.writestr(f"x/{name}", data)
    return target


def test_archives_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "x.pt", {"w": torch.ones(4)})
    assert read_torch_file(repacked(file)).root["w"].shape == (4,)
    for changes, words in (
        ({"data__0": None}, "the storage 0 is missing"),
        ({"data__0": b"123"}, "the storage 0: expected 4 elements of F32, found 3 bytes"),
        ({"data.pkl": None}, "it has 0 files data.pkl"),
        ({"y__data.pkl": b""}, "it has 2 files data.pkl"),
        ({"byteorder": b"big"}, "byte order"),
        ({"compress": zipfile.ZIP_DEFLATED}, "is compressed or encrypted"),
        ({"data.pkl": b"\x80\x02N.N."}, "2 bytes follow its pickle"),
        ({"data.pkl": b"\x80\x02N." + bytes(17 << 20)}, "more than 16777216"),
    ):
        assert words in refusal(repacked(file, **changes))


def test_plain_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "x.pt", {"w": torch.ones(4), "v": torch.zeros(3)}, zipped=False)
    whole = file.read_bytes()
    file.write_bytes(whole + b"12345")
    assert "5 bytes at its end belong to no tensor" in refusal(file)
    file.write_bytes(whole[:-1])
    assert "ends 1 bytes after the file" in refusal(file)
    count = whole.rindex((4).to_bytes(8, "little"))
    file.write_bytes(whole[:count] + (5).to_bytes(8, "little") + whole[count + 8 :])
    assert "expected 4 elements, found 5" in refusal(file)
    file.write_bytes(b"something else altogether")
    assert "neither of the two formats" in refusal(file)
    file.write_bytes(b"")
    assert "neither of the two formats" in refusal(file)


@FORMAT
def test_any_change_of_a_file_is_refused_or_read(tmp_path: Path, zipped: bool) -> None:
    made = {"model": OrderedDict(w=torch.ones(4, 3), b=torch.zeros(3).half()), "n": [1, (2.5,)]}
    path = save(tmp_path / "x.pt", made, zipped)
    whole, chance, refused = path.read_bytes(), random.Random(1), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            opened = read_torch_file(path)
            opened.refuse_stubs()
            for name, value in opened.root["model"].items() if opened.root else ():
                opened.tensor(str(name), value)
        except (CheckpointError, AttributeError, KeyError, TypeError):
            refused += 1  # the tree's shape is for the caller to check
    assert 200 < refused < 400


def test_plain_file_of_a_large_tree(tmp_path: Path) -> None:
    """More than a megabyte of names before the first weight."""
    made = {f"{'x' * 1000}{i}": torch.full((2,), float(i)) for i in range(1500)}
    opened = read_torch_file(save(tmp_path / "x.pt", made, zipped=False))
    for name, view in list(opened.root.items())[::100]:
        assert bytes_of(opened, name, view) == made[name].numpy().tobytes()
