"""`python -m ftjob convert` as a command: what it prints, what it refuses, that a killed conversion
leaves nothing that loads, and that a run finds every change of what it wrote.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from harness import DEMO, Place, lines, tree

from ftjob.checkpoint.manifest import MANIFEST_NAME

pytestmark = pytest.mark.timeout(110)
GPT, T5 = DEMO / "demo_gpt", DEMO / "demo_t5"
LAMBADA = ("model=gpt2", "dataset.limit=30")


def test_there_and_back(place: Place) -> None:
    """Megatron from Hugging Face, FasterTransformer from that, Hugging Face again: the file of
    weights is the first one's, and each answers the same."""
    chain = [
        (str(GPT), "megatron", "m", ("convert.tensor=4", "convert.pipeline=2")),
        ("m", "fastertransformer", "ft", ("convert.tensor=2",)),
        ("ft/2-gpu", "hf", "back", ()),
    ]
    for source, to, out, more in chain:
        done = place(
            *("convert", f"model.checkpoint={source}", f"convert.to={to}", f"convert.out={out}"),
            *more,
        ).expect(0)
        assert "tensors read back, all equal" in done.out
        assert f"model=gpt2 model.checkpoint={place.cwd / out}" in done.out
    place(*LAMBADA, "model.checkpoint=builtin:demo_gpt", "run.dir=hf").expect(0)
    for folder in ("m", "ft", "back"):
        place(*LAMBADA, f"model.checkpoint={folder}", f"run.dir=run-{folder}").expect(0)
        assert "the same answers" in place("compare", "hf", f"run-{folder}").expect(0).out
    rows = [lines(place.cwd / run / "samples.jsonl") for run in ("hf", "run-back")]
    assert [r["logprob"] for r in rows[0]] == [r["logprob"] for r in rows[1]]


def test_t5_of_the_default_models_command(place: Place) -> None:
    """The family is the checkpoint's, whatever model is the default."""
    done = place(
        *("convert", f"model.checkpoint={T5}", "convert.to=fastertransformer"),
        *("convert.out=ft", "convert.tensor=4", "convert.dtype=f32", "run.progress_s=0.0001"),
    ).expect(0, "convert: write", "convert: compare")
    assert "model=t5 model.checkpoint=" in done.out
    place(
        *("model=t5", "model.checkpoint=ft", "dataset=demo_en_de", "dataset.limit=5"),
        *("cluster.devices_per_node=2", "parallel.tensor=2", "run.dir=run"),
    ).expect(0)


def test_a_folder_without_a_tokenizer_runs_on_ids(place: Place) -> None:
    out = "convert.out=bare"
    place("convert", f"model.checkpoint={GPT}", "convert.to=fastertransformer", out).expect(0)
    (place.cwd / "ids.jsonl").write_text('{"prompt_ids": [5, 9, 20]}\n')
    ids = ("dataset=prompts", "dataset.path=ids.jsonl", "decode.max_new_tokens=4")
    model = ("model=gpt2", "model.checkpoint=bare", "model.tokenizer=none")
    place(*model, *ids, "run.dir=a").expect(0)
    place("model=demo_gpt", *ids, "run.dir=b").expect(0)
    bare, whole = (lines(place.cwd / run / "samples.jsonl")[0]["output_ids"] for run in "ab")
    assert bare == whole


def test_a_tokenizer_that_is_named_goes_along(place: Place) -> None:
    """Of a source without one: what is written answers by itself, whatever the tokenizer's form."""
    place("convert", f"model.checkpoint={GPT}", "convert.to=megatron", "convert.out=m").expect(0)
    for name in ("tokenizer.json", "tokenizer_config.json", MANIFEST_NAME):
        (place.cwd / "m" / name).unlink()
    (place.cwd / "own.json").write_bytes((GPT / "tokenizer.json").read_bytes())
    place(*LAMBADA, "model.checkpoint=m").expect(3, "no tokenizer.json")
    convert = ("convert", "model.checkpoint=m", "convert.to=hf")
    for n, spec in enumerate(("builtin:demo_gpt", "own.json", str(GPT))):
        place(*convert, f"model.tokenizer={spec}", f"convert.out={n}").expect(0)
        place(*LAMBADA, f"model.checkpoint={n}").expect(0)
    place(*convert, "model.tokenizer=builtin:gpt2", "convert.out=x").expect(3, "up to 50256")
    place(*convert, "model.tokenizer=absent", "convert.out=x").expect(
        3, "model.tokenizer=absent: is no file"
    )
    place(*convert, "convert.out=bare").expect(0)
    assert not (place.cwd / "bare" / "tokenizer.json").exists()


def test_refusals(place: Place, tmp_path: Path) -> None:
    source = f"model.checkpoint={GPT}"
    place("convert", source).expect(2, "convert needs model.checkpoint=SRC convert.to=")
    place("convert", source, "convert.to=gguf").expect(2, "convert.to=gguf", "fastertransformer")
    place("convert", "model.checkpoint=random", "convert.to=hf", "convert.out=x").expect(
        2, "model.checkpoint=random"
    )
    (place.cwd / "there").mkdir()
    place("convert", source, "convert.to=hf", "convert.out=there").expect(2, "there: exists")
    place("convert", source, "convert.to=hf", f"convert.out={GPT}").expect(2, "exists")
    place("convert", "model.checkpoint=there", "convert.to=hf", "convert.out=x").expect(
        3, "is no checkpoint"
    )
    place("convert", f"model.checkpoint={T5}", "convert.to=megatron", "convert.out=x").expect(
        2, "Legal for T5"
    )
    assert sorted(f.name for f in place.cwd.iterdir()) == ["there"]


KILL = """
import os, signal
from ftjob.checkpoint import convert
real = convert.{name}
def stop(*a, **k):
    {before}os.kill(os.getpid(), signal.SIGKILL)
convert.{name} = stop
"""


@pytest.mark.parametrize(
    ("name", "before", "to"),
    [
        ("_write_generation", "", "fastertransformer"),
        ("_compare", "", "megatron"),
        ("_to_disk", "real(*a, **k); ", "hf"),
    ],
)
def test_killed_conversion_leaves_nothing_that_loads(
    place: Place, name: str, before: str, to: str
) -> None:
    killed = place.driver("killed", KILL.format(name=name, before=before))
    arguments = (f"model.checkpoint={GPT}", f"convert.to={to}", "convert.out=out")
    assert killed("convert", *arguments).code == -signal.SIGKILL
    assert not (place.cwd / "out").exists()
    (left,) = place.cwd.glob(".out.partial-*")
    for folder in (left, *left.glob("*-gpu")):
        place(*LAMBADA, f"model.checkpoint={folder}").expect(3, "ended before it was whole")
    assert f"left over  {left}: remove it" in place("convert", *arguments).expect(0).out
    place(*LAMBADA, "model.checkpoint=out").expect(0)


def test_a_run_finds_every_changed_bit(place: Place) -> None:
    place(
        *("convert", f"model.checkpoint={GPT}", "convert.to=fastertransformer"),
        *("convert.out=ft", "convert.tensor=2"),
    ).expect(0)
    folder = place.cwd / "ft" / "2-gpu"
    run = (*LAMBADA, f"model.checkpoint={folder}")
    place(*run).expect(0)
    path = folder / "model.layers.5.mlp.dense_h_to_4h.weight.1.bin"
    data = bytearray(path.read_bytes())
    data[12345] ^= 4
    path.write_bytes(data)
    ended = place(*run).expect(3, f"{path}: its bytes have changed", MANIFEST_NAME)
    assert "Traceback" not in ended.err
    place("convert", f"model.checkpoint={folder}", "convert.to=hf", "convert.out=x").expect(
        3, "its bytes have changed"
    )
    place(*run, "model.verify=false").expect(0)
    place(
        *("convert", f"model.checkpoint={folder}", "convert.to=hf", "convert.out=x"),
        "model.verify=false",
    ).expect(0)
    assert MANIFEST_NAME in tree(folder)


def test_settings_are_printed_without_a_checkpoint(place: Place) -> None:
    (place.cwd / "config.pbtxt").write_text(
        'parameters { key: "tensor_para_size" value: { string_value: "4" } }'
    )
    done = place("convert", "convert.settings=config.pbtxt").expect(0)
    assert done.out.splitlines()[0] == "python -m ftjob model=gpt2 parallel.tensor=4"
    place("convert", "convert.settings=absent.pbtxt").expect(3, "absent.pbtxt: cannot be read")
