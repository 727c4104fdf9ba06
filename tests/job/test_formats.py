"""The demo models in every format, run as jobs: the answers are those of the Hugging Face folder,
row by row, however the files are cut and whatever the layout; the report says the format.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign import hf_weights, write_ft_gpt, write_ft_t5, write_megatron
from harness import DEMO, Place, lines, load

pytestmark = pytest.mark.timeout(110)
GPT, T5 = DEMO / "demo_gpt", DEMO / "demo_t5"
LAMBADA = ("model=gpt2", "model.tokenizer=builtin:demo_gpt", "dataset.limit=40")
CAPTIONS = ("model=t5", "model.tokenizer=builtin:demo_t5", "dataset=demo_en_de", "dataset.limit=12")
SPLIT = ("cluster.devices_per_node=4", "parallel.tensor=2", "parallel.pipeline=2")


def bins(folder: Path) -> Path:
    """The demo GPT as pytorch_model.bin, in the older format."""
    folder.mkdir()
    (folder / "config.json").write_bytes((GPT / "config.json").read_bytes())
    torch.save(
        hf_weights(GPT)[1], folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    return folder


def run(place: Place, name: str, folder: Path | str, *more: str) -> dict[str, object]:
    """The job over that checkpoint; the facts of the model that it reports."""
    place(*more, f"model.checkpoint={folder}", f"run.dir={name}").expect(0)
    facts: dict[str, object] = load(place.cwd / name / "plan.json")["model"]
    return facts


def test_gpt_answers_the_same_in_every_format(tmp_path: Path) -> None:
    place = Place(tmp_path / "runs")
    run(place, "hf", "builtin:demo_gpt", *LAMBADA)
    megatron = write_megatron(GPT, tmp_path / "m", ways=4, stages=2, version=2.0, padding=128)
    folders = {
        "megatron": (megatron, "Megatron-LM, version 2, 4 tensor x 2 pipeline"),
        "ft": (write_ft_gpt(GPT, tmp_path / "ft", 2), "FasterTransformer, 2-gpu, fp32"),
        "bin": (bins(tmp_path / "bin"), "Hugging Face pytorch_model.bin"),
    }
    for name, (folder, stated) in folders.items():
        facts = run(place, name, folder, *LAMBADA, *SPLIT)
        assert facts["format"] == stated
        assert facts["layernorm_eps"] == 1e-5
        done = place("compare", "hf", name).expect(0)
        assert "40 rows: the same answers (0 differences" in done.out
        assert stated in (place.cwd / name / "report.md").read_text().replace("\\", "")
        if name == "megatron":
            assert facts["padding of the vocabulary"] == "128 rows, never emitted"


def test_padded_rows_are_never_emitted(tmp_path: Path) -> None:
    """The padding's rows are larger than any word's: were they scored, they would be emitted."""
    place = Place(tmp_path / "runs")
    megatron = write_megatron(GPT, tmp_path / "m", ways=2, padding=128)
    settings = (*LAMBADA, "dataset.mode=generate", "decode.max_new_tokens=8", *SPLIT)
    run(place, "hf", "builtin:demo_gpt", *settings)
    run(place, "megatron", megatron, *settings)
    rows = [lines(place.cwd / n / "samples.jsonl") for n in ("hf", "megatron")]
    assert [r["output_ids"] for r in rows[0]] == [r["output_ids"] for r in rows[1]]


def test_t5_answers_the_same(tmp_path: Path) -> None:
    place = Place(tmp_path / "runs")
    run(place, "hf", "builtin:demo_t5", *CAPTIONS)
    folder = write_ft_t5(T5, tmp_path / "ft", 4, "fp16")
    assert run(place, "ft", folder, *CAPTIONS, *SPLIT)["format"] == "FasterTransformer, 4-gpu, fp16"
    assert "12 rows: the same answers (0 differences" in place("compare", "hf", "ft").expect(0).out


def test_folder_without_a_tokenizer_asks_for_one(tmp_path: Path) -> None:
    folder = write_ft_gpt(GPT, tmp_path / "ft", 1)
    place = Place(tmp_path / "runs")
    place("model=gpt2", f"model.checkpoint={folder}").expect(3, "model.tokenizer=PATH")


def test_refusals_leave_with_3(tmp_path: Path) -> None:
    folder = write_ft_gpt(GPT, tmp_path / "ft", 2)
    place = Place(tmp_path / "runs")
    lost = folder / "model.layers.3.mlp.dense_h_to_4h.weight.1.bin"
    lost.unlink()
    ended = place(*LAMBADA, f"model.checkpoint={folder}").expect(3, f"{lost}: is missing")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err
    place(*LAMBADA, f"model.checkpoint={tmp_path}").expect(3, "is no checkpoint")
