"""`bench` end to end on the CPU with the demo models: what it prints and writes, for decoders and
encoder-decoders, greedy, drawn and beams, scoring, and layouts of several devices.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from harness import Place, ended, gpt2_tensors, load, write_gpt2

SMALL = ("bench.input_len=12", "bench.output_len=5", "bench.runs=3", "bench.warmup=1")


def figures(place: Place, *overrides: str) -> dict[str, Any]:
    """What a bench wrote that had to go well."""
    out = place.cwd / "bench.json"
    done = place("bench", *SMALL, *overrides, f"bench.out={out}").expect(0)
    written: dict[str, Any] = load(out)
    for cell in written["cells"]:
        assert f"{cell['batch']} " in done.out
    return written


def test_sweep_writes_every_size(place: Place) -> None:
    made = figures(place, "bench.batch=[1,3]", "bench.output_len=[1,5]")
    cells = made["cells"]
    assert [(c["batch"], c["output_len"]) for c in cells] == [(1, 1), (1, 5), (3, 1), (3, 5)]
    for cell in cells:
        assert len(cell["seconds"]) == 3
        assert cell["latency"]["min"] <= cell["latency"]["p50"] <= cell["latency"]["p99"]
        assert cell["tokens_s"] == pytest.approx(
            cell["batch"] * cell["output_len"] / cell["latency"]["mean"]
        )
        assert cell["prefill_s"] is not None
        assert set(cell["phases"]) >= {"load", "warm-up"}
        assert cell["memory"]["peak_bytes"] > cell["memory"]["planned_bytes"] / 10
        assert 0 < cell["limit_s"] < 1
        assert (cell["step_s"] is None) == (cell["output_len"] == 1)
    assert len(cells[1]["short_seconds"]) == 3
    assert made["ceilings"]["copy_bytes_s"] > 1e8
    assert made["ceilings"]["product_flop_s"] > 1e8
    assert made["runs"] == 3
    assert "bench.batch=[1,3]" in made["overrides"]
    assert [f.name for f in place.cwd.iterdir()] == ["bench.json"]


WAYS = {
    "beams behind an encoder": ("model=demo_t5", "decode=beam4", "bench.batch=2"),
    "drawn answers": ("decode.top_p=0.9", "decode.num_return_sequences=2", "bench.batch=2"),
    "int8": ("model.weights=int8",),
    "random weights": ("model=demo_t5", "model.checkpoint=random"),
    "tensor ranks and replicas": ("parallel.tensor=2", "cluster.devices_per_node=4"),
    "looks every four steps": ("batch.stop_every=4",),
}


@pytest.mark.parametrize("overrides", WAYS.values(), ids=WAYS.keys())
def test_ways_to_generate(place: Place, overrides: tuple[str, ...]) -> None:
    (cell,) = figures(place, *overrides)["cells"]
    answers = 2 if "decode.num_return_sequences=2" in overrides else 1
    rows = cell["batch"] * (2 if "cluster.devices_per_node=4" in overrides else 1)
    assert cell["tokens_s"] == pytest.approx(rows * 5 * answers / cell["latency"]["mean"])


def test_scoring(place: Place) -> None:
    made = figures(place, "bench.task=score", "bench.batch=200", "parallel.pipeline=2",
                   "cluster.devices_per_node=4")  # fmt: skip
    (cell,) = made["cells"]
    assert cell["tokens_s"] == pytest.approx(2 * 200 * 17 / cell["latency"]["mean"])
    assert cell["score"]["of_product"] > 0
    assert cell["step_s"] is None


def test_a_device_that_fails_gives_its_exit_code(place: Place, tmp_path: Path) -> None:
    """Weights that make no numbers: the device refuses the scores; bench ends as a run would."""
    tensors = gpt2_tensors()
    tensors["ln_f.weight"].fill_(float("nan"))
    model = write_gpt2(tmp_path / "model", tensors)
    own = ("model=gpt2", f"model.checkpoint={model}", "bench.task=score")
    done = place("bench", *SMALL, *own).expect(2, "model.dtype=f32", "infinite or not numbers")
    assert "Traceback" not in done.err
    assert not done.out


def test_interrupted_it_shows_what_is_done(place: Place) -> None:
    """The sizes before the interrupted one are printed and in the file."""
    out = place.cwd / "bench.json"
    sizes = ("bench.batch=[1,2]", "bench.input_len=12", f"bench.out={out}")
    process = place.start("bench", *sizes, "bench.output_len=20", "bench.runs=40")
    assert process.stderr is not None
    begun = 0
    while begun < 2:
        begun += "runs" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    done = ended(process).expect(128 + signal.SIGINT, "interrupted at batch 2, 12 in, 20 out")
    assert [cell["batch"] for cell in load(out)["cells"]] == [1]
    assert [line.split()[0] for line in done.out.splitlines() if line[:1].isdigit()] == ["1", "40"]


def test_sweep_by_hydra(place: Place) -> None:
    done = place("bench", "-m", *SMALL, "bench.batch=1,2").expect(0)
    assert done.out.count("ceilings   copy") == 2


def test_only_one_process(place: Place) -> None:
    place.ranks(2)("bench", *SMALL).expect(2, "bench under mpirun", "one process")
