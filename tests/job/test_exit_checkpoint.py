"""Exit 3: a checkpoint or tokenizer that is absent, damaged or of another shape, named exactly.

Each message holds the file, the tensor, what was expected and what was found; nothing is left
behind, because all of it shows before the run folder is made.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from harness import HIDDEN, LAYERS, Place, gpt2_tensors, write_gpt2
from safetensors.torch import save_file

pytestmark = pytest.mark.timeout(20)


def refused(place: Place, folder: Path, *words: str, code: int = 3) -> None:
    """The run of a checkpoint folder ends so, with one message and no run folder."""
    done = place("model=gpt2", f"model.checkpoint={folder}", "run.dir=run").expect(code, *words)
    assert "Traceback" not in done.err
    assert not (place.cwd / "run").exists()


@pytest.fixture
def folder(place: Place) -> Path:
    """A sound checkpoint, to be damaged."""
    return write_gpt2(place.cwd / "model")


def test_missing_weights(place: Place, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(place, folder, str(folder), "model.safetensors")


def test_other_formats_are_named(place: Place, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(place, folder, "pytorch_model.bin")


def test_short_weights(place: Place, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4096])
    refused(place, folder, str(file), "not a whole safetensors file", str(file.stat().st_size))


def test_empty_weights(place: Place, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    refused(place, folder, "model.safetensors", "0 bytes")


def test_corrupt_header(place: Place, folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[9:40] = b"\xff" * 31
    file.write_bytes(bytes(data))
    refused(place, folder, str(file), "not a whole safetensors file")


def test_missing_tensor(place: Place) -> None:
    tensors = gpt2_tensors()
    del tensors["h.1.mlp.c_fc.bias"]
    folder = write_gpt2(place.cwd / "model", tensors)
    refused(place, folder, str(folder), "h.1.mlp.c_fc.bias", f"[{4 * HIDDEN}]", "missing")


def test_extra_tensor(place: Place) -> None:
    tensors = gpt2_tensors() | {"h.0.attn.rotary.weight": torch.zeros(3, 5)}
    folder = write_gpt2(place.cwd / "model", tensors)
    refused(place, folder, "model.safetensors", "h.0.attn.rotary.weight", "[3, 5]")


def test_extra_layer(place: Place) -> None:
    """A layer the config does not count must not be dropped in silence."""
    tensors = gpt2_tensors()
    first = [n for n in tensors if n.startswith("h.0.")]
    tensors |= {n.replace("h.0.", f"h.{LAYERS}."): tensors[n].clone() for n in first}
    folder = write_gpt2(place.cwd / "model", tensors)
    refused(place, folder, f"h.{LAYERS}.", "belongs to no part of the model")


def test_wrong_shape(place: Place) -> None:
    tensors = gpt2_tensors() | {"h.0.attn.c_attn.weight": torch.zeros(3 * HIDDEN, HIDDEN)}
    folder = write_gpt2(place.cwd / "model", tensors)
    expected, found = str([HIDDEN, 3 * HIDDEN]), str([3 * HIDDEN, HIDDEN])
    refused(
        place,
        folder,
        "model.safetensors",
        "h.0.attn.c_attn.weight",
        f"expected shape {expected}, found {found}",
    )


def test_wrong_kind_of_numbers(place: Place) -> None:
    tensors = gpt2_tensors()
    tensors["ln_f.weight"] = torch.ones(HIDDEN, dtype=torch.int32)
    folder = write_gpt2(place.cwd / "model", tensors)
    refused(place, folder, "ln_f.weight", "expected a float dtype, found I32")


def test_config_missing_and_damaged(place: Place, folder: Path) -> None:
    config = folder / "config.json"
    stated = json.loads(config.read_text(encoding="utf-8"))
    config.write_text("{", encoding="utf-8")
    refused(place, folder, str(config), "is not JSON")
    del stated["n_head"]
    config.write_text(json.dumps(stated), encoding="utf-8")
    refused(place, folder, str(config), "n_head")
    config.unlink()
    refused(place, folder, "config.json")


def test_index_that_names_an_absent_file(place: Place, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = dict.fromkeys(gpt2_tensors(), "model-00001-of-00002.safetensors")
    places["wte.weight"] = "model-00002-of-00002.safetensors"
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    refused(place, folder, str(index), "model-00002-of-00002.safetensors")


def test_same_tensor_in_two_files(place: Place, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    tensors = gpt2_tensors()
    save_file(tensors, folder / "a.safetensors")
    save_file({"transformer.ln_f.bias": tensors["ln_f.bias"]}, folder / "b.safetensors")
    places = dict.fromkeys(tensors, "a.safetensors") | {"transformer.ln_f.bias": "b.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    refused(place, folder, "b.safetensors", "transformer.ln_f.bias", "a.safetensors")


def test_missing_tokenizer(place: Place, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    refused(place, folder, str(folder), "tokenizer.json", "model.tokenizer=PATH")


def test_damaged_tokenizer(place: Place, folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}', encoding="utf-8")
    refused(place, folder, str(folder / "tokenizer.json"), "is not a tokenizer")


def test_tokenizer_too_large_for_the_model(place: Place, folder: Path) -> None:
    model = ("model=gpt2", f"model.checkpoint={folder}", "model.tokenizer=builtin:gpt2")
    place(*model, "run.dir=run").expect(3, "ids up to 50256", "8193", "model.tokenizer=PATH")


def test_checkpoint_that_is_nothing(place: Place) -> None:
    done = place("model=gpt2", "model.checkpoint=/no/such/folder")
    done.expect(3, "model.checkpoint=/no/such/folder", "is not a folder")
    place("model=gpt2", "model.checkpoint=builtin:demo_gtp").expect(3, "Did you mean demo_gpt?")


def test_offline_hub_names_three_ways(place: Place) -> None:
    """HF_HOME is empty and HF_HUB_OFFLINE=1, as tests/conftest.py sets for all tests."""
    done = place("model=gpt345m").expect(
        3,
        "model.checkpoint=openai-community/gpt2-medium",
        "download openai-community/gpt2-medium",
        "model.checkpoint=PATH",
        "model.checkpoint=random",
    )
    assert done.err.count("ftjob: ") == 1
    assert not list(place.cwd.iterdir())
