"""Tensor x pipeline x data: every layout gives the answers of one device, over threads and ranks.

Each run also proves that it was cut as asked: every device did rows and holds the bytes that a
formula of this file gives, so an ignored split could not pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import HEADS, HIDDEN, LAYERS, POSITIONS, ROWS, VOCAB, Place, lines, load

from ftjob.__main__ import main

pytestmark = pytest.mark.timeout(120)
Finished = tuple[Path, str, str]
Layout = tuple[int, int, int]

THREADS: list[Layout] = [
    (t, p, d) for t in (1, 2, 4) for p in (1, 2, 4) for d in (1, 2, 4) if t * p * d <= 8
]
# ranks, devices of a node, layout: chosen so that every pair of tensor, pipeline and data comes
# together, and that tensor groups and pipes lie within ranks, across them, and half and half
RANKS: dict[str, tuple[int, str, Layout]] = {
    "a tensor group over four ranks": (4, "1", (4, 1, 1)),
    "stages on two ranks": (2, "2", (2, 2, 1)),
    "tensor groups within and across ranks": (2, "3", (2, 1, 3)),
    "unequal nodes": (2, "[2,1]", (1, 1, 3)),
    "tensor groups and stages across four ranks": (4, "1", (2, 2, 1)),
    "replicas of stages over four ranks": (4, "1", (1, 2, 2)),
}


def settings(layout: Layout, devices: str) -> tuple[str, ...]:
    """The overrides of a layout; the batches differ from the reference's."""
    tensor, pipeline, data = layout
    return (
        f"parallel.tensor={tensor}",
        f"parallel.pipeline={pipeline}",
        f"parallel.data={data}",
        f"cluster.devices_per_node={devices}",
        "batch.max_tokens=150",
    )


def weight_bytes(layout: Layout, tensor: int, stage: int) -> int:
    """Bytes of a GPT-2 part in float32: an even share of the matrices, its layers, its ends.

    A layer holds 4 h^2 for attention and 8 h^2 for the MLP; of its vectors the norms and the two
    biases after a sum are whole on every tensor rank, 6 h, and 7 h are cut.
    """
    ways, stages, _ = layout
    h = HIDDEN
    layers = LAYERS // stages + (stage < LAYERS % stages)
    numbers = layers * (12 * h * h // ways + 7 * h // ways + 6 * h)
    first, last = stage == 0, stage == stages - 1
    rows = -(-VOCAB // ways)
    numbers += first * (rows + POSITIONS) * h + last * 2 * h
    numbers += (last and not first) * rows * h  # the tied head, where the embedding is not
    return 4 * numbers


def check(run: Path, layout: Layout) -> None:
    """Every row was answered once; every device did its part and holds its part."""
    results = load(run / "results.json")
    tensor, pipeline, data = layout
    devices = results["devices"]
    assert len(devices) == tensor * pipeline * data
    assert all(d["rows"] > 0 for d in devices)
    status = load(run / "status.json")
    specs = {(d["rank"], d["device"]): d["spec"] for s in status["ranks"] for d in s["devices"]}
    for device in devices:
        spec = specs[device["rank"], device["device"]]
        assert device["weight_bytes"] == weight_bytes(layout, spec["tensor"], spec["pipeline"])
    each = {(s["tensor"], s["pipeline"], s["data"]) for s in specs.values()}
    assert len(each) == tensor * pipeline * data
    assert results["throughput"]["rows"] == ROWS
    assert results["parallel"] | {"ranks": 0} == {
        **{"tensor": tensor, "pipeline": pipeline, "data": data},
        "ranks": 0,
    }
    samples = lines(run / "samples.jsonl")
    assert [s["index"] for s in samples] == list(range(ROWS))


def test_the_layouts_are_all_there() -> None:
    assert len(THREADS) == 17
    assert HEADS % 4 == 0
    assert (VOCAB % 2, LAYERS % 2) == (1, 1), "they shall not divide evenly"


@pytest.mark.parametrize("layout", THREADS, ids=str)
def test_threads(
    tmp_path: Path, base: tuple[str, ...], finished: Finished, layout: Layout, capsys: Any
) -> None:
    """All devices as threads of this very process."""
    devices = str(layout[0] * layout[1] * layout[2])
    run = tmp_path / "run"
    assert main([*base, *settings(layout, devices), f"run.dir={run}"]) == 0
    check(run, layout)
    capsys.readouterr()
    assert main(["compare", str(run), str(finished[0] / "run")]) == 0
    assert f"{ROWS} rows: the same answers (0 differences" in capsys.readouterr().out


@pytest.mark.parametrize("name", RANKS)
def test_ranks(place: Place, base: tuple[str, ...], finished: Finished, name: str) -> None:
    """Over MPI: the answers of one device, and the very bits of the same devices as threads."""
    ranks, devices, layout = RANKS[name]
    place.ranks(ranks)(*base, *settings(layout, devices), "run.dir=run").expect(0)
    run = place.cwd / "run"
    check(run, layout)
    assert load(run / "results.json")["parallel"]["ranks"] == ranks
    place("compare", "run", str(finished[0] / "run")).expect(0)
    total = str(layout[0] * layout[1] * layout[2])
    threads = place.cwd / "threads"
    assert main([*base, *settings(layout, total), f"run.dir={threads}"]) == 0
    assert (run / "samples.jsonl").read_bytes() == (threads / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("weights", ["model.weights=int8", "model.dtype=bf16"])
def test_other_formats_cross_ranks(place: Place, base: tuple[str, ...], weights: str) -> None:
    """int8 scales are agreed on while loading, half-precision activations travel as they are."""
    layout = settings((2, 2, 1), "2")
    place.ranks(2)(*base, *layout, weights, "run.dir=run").expect(0)
    threads = place.cwd / "threads"
    others = settings((2, 2, 1), "4")
    assert main([*base, *others, weights, f"run.dir={threads}"]) == 0
    ours = (place.cwd / "run" / "samples.jsonl").read_bytes()
    assert ours == (threads / "samples.jsonl").read_bytes()


def test_resume_under_another_layout_and_rank_count(
    place: Place, base: tuple[str, ...], finished: Finished
) -> None:
    """A third by two ranks as stages, a third by four of data, the rest by threads."""
    first = settings((1, 2, 1), "1")
    place.ranks(2)(*base, *first, "dataset.limit=80", "run.dir=run").expect(0)
    second = settings((1, 1, 4), "1")
    done = place.ranks(4)(*base, *second, "dataset.limit=160", "run.dir=run")
    done.expect(0, "80 rows are done")
    place(*base, *settings((2, 2, 1), "4"), "run.dir=run").expect(0, "160 rows are done")
    results = load(place.cwd / "run" / "results.json")
    assert [(a["rows"], a["ranks"]) for a in results["attempts"]] == [(80, 2), (80, 4), (80, 1)]
    journals = sorted(f.name for f in (place.cwd / "run" / "journal").glob("*.jsonl"))
    assert [n.partition(".attempt")[2] for n in journals].count("1.jsonl") == 4
    place("compare", "run", str(finished[0] / "run")).expect(0)


def test_what_is_on_its_way_arrives_though_there_is_nothing_to_do(
    place: Place, base: tuple[str, ...]
) -> None:
    """All rows are done, so rank 0 ends at once, while the stages still wait for what it sent them
    to warm up with."""
    few = (*base, "dataset.limit=8", "run.dir=run", "run.deadline_s=5")
    place(*few).expect(0)
    late = """
import time
from ftjob.comm.mpi import Courier

real = Courier.run


def run(self):
    time.sleep(1.5)
    real(self)


Courier.run = run
"""
    place.driver("late", late).ranks(2)(*few, *settings((1, 2, 1), "1")).expect(0)


def test_a_slow_replica_holds_nobody_back(place: Place, base: tuple[str, ...]) -> None:
    """Chunks go where there is room: the fast replica does most of them."""
    slow = "import os\nimport time\nimport ftjob.device\nreal = ftjob.device.score_chunk\n"
    slow += "def score_chunk(*arguments):\n"
    slow += "    time.sleep(0.4 if os.environ['PMI_RANK'] == '1' else 0.02)\n"
    slow += "    return real(*arguments)\n"
    slow += "ftjob.device.score_chunk = score_chunk\n"
    ranks = place.driver("slow", slow).ranks(2)
    ranks(*base, *settings((1, 1, 2), "1"), "run.dir=run").expect(0)
    fast, late = load(place.cwd / "run" / "results.json")["devices"]
    assert 0 < late["rows"] < fast["rows"] / 2
    assert fast["rows"] + late["rows"] == ROWS


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["parallel.tensor=3"], ["parallel.tensor=3", "4 attention heads"]),
        (["parallel.data=3"], ["parallel.data=3", "2 devices (2 ranks of 1)"]),
        (["cluster.devices_per_node=[2,1]", "parallel.pipeline=3"], ["node 0", "takes 3"]),
    ],
    ids=["heads", "data", "unequal"],
)
def test_refusals_end_all_ranks(
    place: Place, base: tuple[str, ...], overrides: list[str], words: list[str]
) -> None:
    done = place.ranks(2)(*base, *overrides, "run.dir=run").expect(2, *words)
    assert done.err.count("ftjob: ") == 1
    assert not (place.cwd / "run").exists()
