"""Generation in every layout: the answers of one device, over threads and ranks, greedy and beams.

Few lanes, so that slots are refilled while others work, and in each layout other batches. As in
`test_layouts` each run proves that it was cut as asked: every device did rows and holds the bytes
that a formula of this file gives.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Place, lines, load

from ftjob.__main__ import main

pytestmark = pytest.mark.timeout(120)
Layout = tuple[int, int, int]
Threads = Callable[[str, Layout], Path]

ROWS, TOKENS = 62, 24
CAPTIONS = ("model=demo_t5", "dataset=demo_en_de", f"decode.max_new_tokens={TOKENS}")
GREEDY = ("decode.token_logprobs=true",)
BEAMS = ("decode=beam4", "decode.n_best=4")
DECODE = {"greedy": (*GREEDY, "batch.lanes=12"), "beams": (*BEAMS, "batch.lanes=48")}

# The layouts of four devices and fewer, and one of eight, each with batches of its own.
GREEDY_LAYOUTS: dict[Layout, tuple[str, ...]] = {
    (2, 1, 1): ("batch.stop_every=3",),
    (4, 1, 1): ("batch.order=dataset",),
    (1, 2, 1): ("batch.stop_every=3", "batch.order=dataset"),
    (1, 4, 1): ("batch.max_tokens=20",),
    (1, 1, 2): ("batch.window=7",),
    (1, 1, 4): ("batch.stop_every=3", "batch.max_tokens=30"),
    (2, 2, 1): ("batch.stop_every=3", "batch.window=9"),
    (2, 1, 2): ("batch.max_tokens=40", "batch.order=dataset"),
    (1, 2, 2): ("batch.max_tokens=20", "batch.stop_every=3"),
    (2, 2, 2): ("batch.order=dataset",),
}
BEAM_LAYOUTS: dict[Layout, tuple[str, ...]] = {
    (1, 4, 1): ("batch.stop_every=3", "batch.order=dataset"),
    (1, 1, 4): ("batch.window=7", "batch.max_tokens=20"),
    (2, 2, 1): ("batch.order=dataset",),
    (4, 1, 1): ("batch.stop_every=3",),
    (1, 2, 2): (),
}
LAYOUTS = {"greedy": GREEDY_LAYOUTS, "beams": BEAM_LAYOUTS}
CASES = [(decode, layout) for decode, layouts in LAYOUTS.items() for layout in layouts]
# ranks, devices of each, decode, layout; those without replicas take the same turns as threads
RANKS: dict[str, tuple[int, int, str, Layout]] = {
    "stages over four ranks": (4, 1, "beams", (1, 4, 1)),
    "tensor groups and stages over four ranks": (4, 1, "beams", (2, 2, 1)),
    "a tensor group over two ranks": (2, 1, "greedy", (2, 1, 1)),
    "tensor groups within two ranks of stages": (2, 2, "greedy", (2, 2, 1)),
    "replicas of stages over four ranks": (4, 1, "greedy", (1, 2, 2)),
}


def settings(decode: str, layout: Layout, devices: int) -> tuple[str, ...]:
    """The overrides of a run."""
    return (*CAPTIONS, *DECODE[decode], *LAYOUTS[decode][layout], *cut(layout, devices))


def cut(layout: Layout, devices: int) -> tuple[str, ...]:
    tensor, pipeline, data = layout
    return (
        f"parallel.tensor={tensor}",
        f"parallel.pipeline={pipeline}",
        f"parallel.data={data}",
        f"cluster.devices_per_node={devices}",
    )


def weight_bytes(spec: dict[str, Any], ways: int) -> int:
    """Bytes of a T5 part in float32: matrices and tables cut, norms whole, its layers, its ends.

    Self-attention, and in the decoder cross-attention, hold 4 h^2, the MLP 8 h^2, each with a norm.
    """
    h, vocab, tables = 256, 8000, 2 * 32 * 4
    encoder = spec["last_encoder"] - spec["first_encoder"]
    decoder = spec["last_layer"] - spec["first_layer"]
    numbers = encoder * (12 * h * h // ways + 2 * h) + decoder * (16 * h * h // ways + 3 * h)
    numbers += tables // ways + spec["last"] * 2 * h
    numbers += (spec["first"] or spec["last"]) * vocab // ways * h
    return 4 * numbers


def check(run: Path, layout: Layout, rows: int = ROWS) -> list[dict[str, Any]]:
    """Every row was answered once and every device did its part; gives the devices' specs."""
    tensor, pipeline, data = layout
    results = load(run / "results.json")
    devices = results["devices"]
    assert len(devices) == tensor * pipeline * data
    assert all(d["rows"] > 0 for d in devices)
    assert sum(d["rows"] for d in devices) == rows * tensor * pipeline
    status = load(run / "status.json")
    specs = [d["spec"] | {"held": d["weight_bytes"]} for s in status["ranks"] for d in s["devices"]]
    each = {(s["tensor"], s["pipeline"], s["data"]) for s in specs}
    assert len(each) == tensor * pipeline * data
    samples = lines(run / "samples.jsonl")
    assert [s["index"] for s in samples] == list(range(rows))
    assert results["throughput"]["rows"] == rows
    told = [s.get("output_tokens", len(s["output_ids"])) for s in samples]
    assert results["throughput"]["tokens"] == sum(told)
    return specs


def check_t5(run: Path, layout: Layout) -> None:
    specs = check(run, layout)
    for spec in specs:
        assert spec["held"] == weight_bytes(spec, layout[0])
        assert spec["last_encoder"] > spec["first_encoder"] or layout[1] > 1
    for first, last in (("first_layer", "last_layer"), ("first_encoder", "last_encoder")):
        stages = sorted({(s["pipeline"], s[first], s[last]) for s in specs})
        assert len(stages) == layout[1]
        assert [i for _, a, b in stages for i in range(a, b)] == [0, 1, 2, 3]


def same(run: Path, other: Path, capsys: Any, rows: int = ROWS) -> None:
    capsys.readouterr()
    assert main(["compare", str(run), str(other)]) == 0
    assert f"{rows} rows: the same answers (0 differences" in capsys.readouterr().out


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of one device, with lanes for all rows at once."""
    found = {name: tmp_path_factory.mktemp(name) / "run" for name in DECODE}
    for name, shape in (("greedy", GREEDY), ("beams", BEAMS)):
        assert main([*CAPTIONS, *shape, f"run.dir={found[name]}"]) == 0
    return found


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Threads:
    """The run of a layout with all devices as threads of this very process; each is made once."""
    made: dict[tuple[str, Layout], Path] = {}

    def run(decode: str, layout: Layout) -> Path:
        if (decode, layout) not in made:
            folder = tmp_path_factory.mktemp("threads") / "run"
            devices = layout[0] * layout[1] * layout[2]
            assert main([*settings(decode, layout, devices), f"run.dir={folder}"]) == 0
            made[decode, layout] = folder
        return made[decode, layout]

    return run


def test_the_layouts_are_all_there(references: dict[str, Path]) -> None:
    """And the rows are such that slots fall free one by one: answers of many lengths."""
    small = {(t, p, d) for t in (1, 2, 4) for p in (1, 2, 4) for d in (1, 2, 4) if t * p * d <= 4}
    assert small - {(1, 1, 1)} <= set(GREEDY_LAYOUTS)
    for run in references.values():
        samples = lines(run / "samples.jsonl")
        lengths = [s["output_tokens"] for s in samples]
        assert len(set(lengths)) > 8
        assert max(lengths) == TOKENS
        assert {s["finish_reason"] for s in samples} == {"eos", "length"}


@pytest.mark.parametrize(("decode", "layout"), CASES, ids=str)
def test_threads(
    references: dict[str, Path], threads: Threads, decode: str, layout: Layout, capsys: Any
) -> None:
    run = threads(decode, layout)
    check_t5(run, layout)
    same(run, references[decode], capsys)


@pytest.mark.parametrize("name", RANKS)
def test_ranks(
    place: Place, references: dict[str, Path], threads: Threads, name: str, capsys: Any
) -> None:
    """Over MPI: the answers of one device, and the very bits of the same devices as threads."""
    ranks, devices, decode, layout = RANKS[name]
    place.ranks(ranks)(*settings(decode, layout, devices), "run.dir=run").expect(0)
    run = place.cwd / "run"
    check_t5(run, layout)
    assert load(run / "results.json")["parallel"]["ranks"] == ranks
    same(run, references[decode], capsys)
    if layout[2] == 1:  # else who does what depends on who is first
        ours = (run / "samples.jsonl").read_bytes()
        assert ours == (threads(decode, layout) / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("beams", [1, 3])
def test_a_decoder_alone(place: Place, base: tuple[str, ...], beams: int, capsys: Any) -> None:
    """GPT: prompts in the cache in place of sources; 2 x 2 x 1 and 1 x 2 x 2, and over two ranks
    with the bits of the threads."""
    rows = 60
    shape = (*base, "dataset.mode=generate", f"decode.beams={beams}", f"dataset.limit={rows}")
    batches = (f"batch.lanes={beams * 8}", "batch.max_tokens=150", "batch.stop_every=2")
    one = place.cwd / "one"
    assert main([*shape, f"run.dir={one}"]) == 0
    right = {s["index"] for s in lines(one / "samples.jsonl") if s["correct"]}
    assert right >= set(range(0, rows, 3)), "rows that end in the same word twice"
    layouts: list[Layout] = [(2, 2, 1), (1, 2, 2)] if beams == 1 else [(1, 4, 1)]
    for layout in layouts:
        run = place.cwd / "-".join(map(str, layout))
        assert main([*shape, *batches, *cut(layout, 4), f"run.dir={run}"]) == 0
        check(run, layout, rows)
        same(run, one, capsys, rows)
    layout = layouts[0]
    place.ranks(2)(*shape, *batches, *cut(layout, 2), "run.dir=ranks").expect(0)
    check(place.cwd / "ranks", layout, rows)
    threads = place.cwd / "-".join(map(str, layout))
    ours = (place.cwd / "ranks" / "samples.jsonl").read_bytes()
    assert ours == (threads / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("weights", ["model.weights=int8", "model.dtype=bf16"])
def test_other_formats_cross_ranks(place: Place, weights: str) -> None:
    """Half-precision activations and int8 scales: ranks and threads agree to the bit."""
    shape = (*CAPTIONS, *DECODE["greedy"], "dataset.limit=16", weights)
    place.ranks(2)(*shape, *cut((2, 2, 1), 2), "run.dir=run").expect(0)
    threads = place.cwd / "threads"
    assert main([*shape, *cut((2, 2, 1), 4), f"run.dir={threads}"]) == 0
    ours = (place.cwd / "run" / "samples.jsonl").read_bytes()
    assert ours == (threads / "samples.jsonl").read_bytes()
