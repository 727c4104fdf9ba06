"""What Megatron-LM's files hold besides the model: rows that pad the vocabulary, which are never
emitted, and objects of the optimizers of its first versions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from foreign import args_of, hf_weights, write_megatron
from gpt2_oracle import random_gpt2, write_gpt2
from loaded import opened

from ftjob.errors import CheckpointError


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    write_gpt2(tmp_path / "hf", random_gpt2(n_layer=4))
    return tmp_path / "hf"


@pytest.mark.parametrize(("args", "zipped"), [(False, False), (True, True)])
def test_padding_that_nothing_tells_from_words_is_refused(
    hf: Path, tmp_path: Path, args: bool, zipped: bool
) -> None:
    """Rows that pad would be emitted like any token, so somebody must say which they are; where
    Megatron cannot have padded, all stand for tokens."""
    folder = write_megatron(hf, tmp_path / "m", padding=67, with_args=args, zipped=zipped)
    with pytest.raises(CheckpointError) as refused:
        opened(folder, arch={"heads": 4})
    assert (
        "model_optim_rng.pt: the vocabulary's 128 rows are padded to a multiple of 128, and "
        "nothing says how many stand for tokens; give model.arch.vocab=N"
    ) in str(refused.value)
    source = opened(folder, arch={"heads": 4, "vocab": 61})
    assert source.index is not None
    assert source.index.remarks["padding of the vocabulary"] == "67 rows, never emitted"
    assert opened(folder, arch={"heads": 4, "vocab": 128}).arch.vocab == 128
    if args:
        stated = args_of(hf_weights(hf)[0], 1, 1, 128) | {"make_vocab_size_divisible_by": 1}
        file = folder / "release" / "mp_rank_00" / "model_optim_rng.pt"
        root = torch.load(file, weights_only=False)
        torch.save(root | {"args": argparse.Namespace(**stated)}, file)
        assert opened(folder).arch.vocab == 128


def test_args_of_another_class_are_refused_by_its_name(hf: Path, tmp_path: Path) -> None:
    """With the number of heads configured too: such a file is no release without args."""
    folder = write_megatron(hf, tmp_path / "m", extra={"args": Path("x")})
    with pytest.raises(CheckpointError, match=r"args=an object of pathlib\S* are no named values"):
        opened(folder, arch={"heads": 4, "vocab": 61})


@pytest.mark.parametrize("module", ["fp16", "megatron.fp16", "megatron.fp16_deprecated"])
def test_loss_scaler_of_old_optimizers_is_inert(
    hf: Path, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron's first versions saved an object under optimizer; another class there is refused."""
    for name, read in (("DynamicLossScaler", True), ("SomeScaler", False)):
        full = f"{module}.loss_scaler"
        kind = type(name, (), {"__module__": full})
        for place in (full, module, module.partition(".")[0]):
            monkeypatch.setitem(sys.modules, place, SimpleNamespace(**{name: kind}))
        scaler = kind()
        scaler.cur_scale = 65536.0
        extra = {"optimizer": {"loss_scaler": scaler, "overflow": False}}
        folder = write_megatron(
            hf, tmp_path / name, version=0, zipped=False, with_args=False, extra=extra
        )
        if read:
            assert opened(folder, arch={"heads": 4}).arch.heads == 4
        else:
            with pytest.raises(CheckpointError) as refused:
                opened(folder, arch={"heads": 4})
            assert f"optimizer.loss_scaler is an object of {full}.SomeScaler" in str(refused.value)
