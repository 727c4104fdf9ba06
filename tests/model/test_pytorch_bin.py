"""pytorch_model.bin, single and sharded, in both of torch's formats: every device gets the bits
that it gets from safetensors of the same weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt2_oracle import random_gpt2, write_gpt2
from loaded import SPLITS, Parts, assert_same, config_of, opened, parts
from safetensors.torch import load_file
from t5_files import write_t5

from ftjob.errors import CheckpointError


def to_bin(source: Path, target: Path, shards: int, zipped: bool) -> None:
    """Write the folder's tensors as transformers of old did."""
    target.mkdir()
    shutil.copy(source / "config.json", target)
    held = load_file(source / "model.safetensors")
    names = sorted(held)
    if shards == 1:
        torch.save(held, target / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {n: held[n] for n in names[number::shards]}
        torch.save(part, target / file, _use_new_zipfile_serialization=zipped)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_devices_get_the_same_bits(tmp_path: Path, family: str, shards: int, zipped: bool) -> None:
    safe = tmp_path / "safe"
    if family == "gpt2":
        write_gpt2(safe, random_gpt2(), dtype=torch.float16)
    else:
        write_t5(safe, "v1_1")
    to_bin(safe, tmp_path / "old", shards, zipped)
    source = opened(tmp_path / "old", family)
    assert source.index is not None
    assert source.index.format == "Hugging Face pytorch_model.bin"
    for split in SPLITS:
        found: list[Parts] = [
            parts(config_of(folder, family), *split) for folder in (safe, tmp_path / "old")
        ]
        assert_same(*found)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([torch.ones(2)], "holds no dictionary of tensors"),
        ({"epoch": 3}, "epoch is no tensor"),
        ({"n": torch.nn.Linear(2, 2)}, "n is an object of torch.nn.modules.linear.Linear"),
        ({"wte.weight": torch.ones(3, 4).T}, "save it contiguous"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, value: Any, words: str) -> None:
    write_gpt2(tmp_path, random_gpt2())
    (tmp_path / "model.safetensors").unlink()
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as refused:
        opened(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/pytorch_model.bin: ")
    assert words in str(refused.value)
