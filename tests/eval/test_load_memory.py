"""Loading holds no second copy of the weights and reads no byte too many: a smaller model now, each
case in a fresh process, and the committed figures of gpt345m.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.bench.load_memory import CASES, FORMATS, WHOLE, convert_copy, measure, save_copy
from eval.record import read_raw
from eval.render import load_ratios

# 134 MB in float32: a quarter embedding, the rest layers
SMALL = (
    "model=gpt345m",
    "model.tokenizer=builtin:demo_gpt",
    *("model.arch.layers=8", "model.arch.heads=8", "model.arch.hidden=512"),
    *("model.arch.vocab=16384", "model.arch.positions=512"),
)
LAYOUTS = {
    "one device": (0, 1, ()),
    "two tensor ranks": (0, 1, ("parallel.tensor=2",)),
    "the last of two stages": (1, 2, ("parallel.pipeline=2",)),
    "bf16": (0, 1, ("model.dtype=bf16",)),
    "int8": (0, 1, ("model.weights=int8",)),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    save_copy(folder, SMALL)
    return folder


@pytest.mark.parametrize(("rank", "nodes", "overrides"), LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("weights", ["random", "saved"])
def test_load_holds_no_second_copy(
    copy: Path, weights: str, rank: int, nodes: int, overrides: tuple[str, ...]
) -> None:
    checkpoint = "random" if weights == "random" else copy
    made = measure(rank, nodes, [*SMALL, f"model.checkpoint={checkpoint}", *overrides])
    assert made["held_bytes"] == made["weight_bytes"] > 30e6
    # Beside the weights: a few megabytes a device for the tensor in hand, and what malloc keeps.
    devices = 2 if "parallel.tensor=2" in overrides else 1
    assert made["peak_bytes"] - made["before_bytes"] <= made["weight_bytes"] + devices * 20e6
    if weights == "saved":
        assert made["slice_bytes"] <= made["bytes_read"] <= 1.05 * made["slice_bytes"]


@pytest.mark.parametrize("overrides", [(), ("parallel.tensor=2", "parallel.pipeline=2")], ids=str)
@pytest.mark.parametrize("form", FORMATS)
def test_other_formats_too(
    copy: Path, tmp_path: Path, form: str, overrides: tuple[str, ...]
) -> None:
    """Another split than the stored one, both ways, and axes that are turned on the way."""
    convert_copy(copy, tmp_path / "out", FORMATS[form])
    made = measure(0, 1, [*SMALL, f"model.checkpoint={tmp_path / 'out'}", *overrides])
    assert made["held_bytes"] == made["weight_bytes"] > 130e6
    devices = 4 if overrides else 1
    assert made["peak_bytes"] - made["before_bytes"] <= made["weight_bytes"] + devices * 20e6
    assert made["slice_bytes"] <= made["bytes_read"] <= 1.05 * made["slice_bytes"]


def test_committed_figures_keep_the_bounds() -> None:
    cases = read_raw("load_memory")["cases"]
    wanted = 2 * [name for name, *_ in CASES] + len(FORMATS) * [name for name, *_ in WHOLE]
    assert [c["name"] for c in cases] == wanted
    for case in cases:
        counted = load_ratios(case)[2]
        assert counted <= 1.2, case
        assert case["held_bytes"] == case["weight_bytes"]
        if case["weights"] != "random":
            assert case["bytes_read"] <= 1.05 * case["slice_bytes"], case
    # every node that holds the whole model in float32 keeps it with the interpreter included
    nodes = [c for c in cases if c["weight_bytes"] > 1.4e9]
    assert len(nodes) == 8 + len(FORMATS) * len(WHOLE)
    assert all(load_ratios(c)[0] <= 1.2 for c in nodes)
