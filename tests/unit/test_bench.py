"""What `bench` is made of, without a device: the work that a size must do at the least, the sizes
and rows that bench.* ask for, what is refused by name, and figures from given times.
"""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest

from ftjob.bench.ceilings import ASKED
from ftjob.bench.cells import BASE, Cell, Rows, cell_job, sizes_of
from ftjob.bench.devices import LocalDevices
from ftjob.bench.measure import (
    apart,
    captured_s,
    check_length_of,
    planned_bytes,
    predicted,
    summary,
)
from ftjob.bench.roofline import Sizes
from ftjob.commands.bench import main, render
from ftjob.config.compose import compose
from ftjob.errors import CONFIG_REFUSED, ConfigError, DeadlinePassed
from ftjob.job import Job
from ftjob.plan import Machine
from ftjob.rates import Rates, rates_of
from ftjob.tasks.base import Generated, GenerateRequest, Hypothesis, Row, ScoreRequest
from ftjob.telemetry import Phases

MACHINE = Machine((1,), "cpu", 10**10, "test")
DEMO = "model=demo_gpt"
CARD = "NVIDIA H100 80GB HBM3, 580.1, 1980, 2619, 612.40, 51"


def cell_of(*overrides: str, machine: Machine = MACHINE) -> tuple[Job, Cell]:
    """The job and size of overrides that ask for one."""
    config = compose([*BASE, DEMO, *overrides])
    (cell,) = sizes_of(config, 512)
    return cell_job(config, cell, machine)


def test_lists_are_swept() -> None:
    config = compose(
        [*BASE, DEMO, "bench.batch=[1,8]", "bench.input_len=[4,5]", "bench.output_len=[2,3]"]
    )
    found = sizes_of(config, 512)
    wanted = itertools.product([1, 8], [4, 5], [2, 3])
    assert {(c.batch, c.input_len, c.output_len) for c in found} == set(wanted)
    assert len(found) == 8


@pytest.mark.parametrize(("positions", "length"), [(None, 512), (512, 480), (2048, 512)])
def test_auto_length_leaves_room(positions: int | None, length: int) -> None:
    assert sizes_of(compose([*BASE, DEMO]), positions)[0].input_len == length


def test_job_runs_all_rows_at_once_to_their_full_length() -> None:
    job, cell = cell_of("bench.batch=6", "bench.input_len=20", "bench.output_len=5", "decode=beam4")
    room = job.plan.generation
    assert room is not None
    assert (room.slots, room.beams, job.plan.max_tokens) == (6, 4, 120)
    assert room.refill == 6, "all enter at once, and passes are filled up for so many"
    assert room.cells == 6 * (20 + 4 * 5)
    assert job.source.specials.ends == ()
    assert job.config.decode.max_new_tokens == 5
    assert cell.short == 1
    (parts,) = Rows(job, cell).chunks(5)
    (chunk,) = parts
    assert [len(r.ids) for r in chunk.requests] == [20] * 6
    assert {r.max_new_tokens for r in chunk.requests if isinstance(r, GenerateRequest)} == {5}


def test_cache_is_never_too_small_to_warm_up_in() -> None:
    job, _ = cell_of("bench.input_len=1", "bench.output_len=1")
    assert job.plan.generation is not None
    assert job.plan.generation.cells == 10  # a row of 8 and 2 new ones


def test_every_replica_gets_rows_of_its_own() -> None:
    machine = Machine((2,), "cpu", 10**10, "test")
    job, cell = cell_of("bench.batch=6", "bench.input_len=20", machine=machine)
    rows = Rows(job, cell)
    first, second = rows.chunks(3), rows.chunks(3)
    assert [[len(c.requests) for c in parts] for parts in first] == [[6], [6]]
    every = [c for made in (first, second) for parts in made for c in parts]
    assert [c.sequence for c in every] == list(range(4))
    keys = [r.key for c in every for r in c.requests]
    assert len(set(keys)) == len(keys) == 24
    assert len({tuple(r.ids) for c in every for r in c.requests}) == 24
    assert Rows(job, cell).chunks(3) == first


def test_scored_rows_are_cut_as_a_run_cuts_them() -> None:
    job, cell = cell_of(
        *("bench.task=score", "bench.batch=30", "bench.input_len=98", "bench.output_len=2")
    )
    assert job.plan.generation is None
    (parts,) = Rows(job, cell).chunks(2)
    assert [len(c.requests) for c in parts] == [20, 10]  # of 2048 tokens
    request = parts[0].requests[0]
    assert isinstance(request, ScoreRequest)
    assert (len(request.ids), request.scored_from) == (100, 98)


def test_short_runs_make_one_token() -> None:
    def short(*more: str) -> int:
        return cell_of("bench.input_len=20", *more)[1].short

    assert short("bench.output_len=2") == 1
    assert short("bench.output_len=1") == 0
    assert short("bench.task=score") == 0


REFUSED = {
    "a data set": (["dataset=lambada"], ["dataset=lambada", "bench.batch", "bench.task=score"]),
    "a key of a data set": (["dataset.limit=5"], ["dataset.limit=5", "makes its own rows"]),
    "no rows": (["bench.batch=0"], ["bench.batch=0", "from 1 to 65536"]),
    "no rows in a list": (["bench.batch=[4,0]"], ["bench.batch=[4, 0]", "from 1 to 65536"]),
    "a word in a list": (["bench.output_len=[x]"], ["bench.output_len", "int | [int, ...]"]),
    "too long": (
        ["bench.input_len=500", "bench.output_len=50"],
        ["bench.input_len=500 + bench.output_len=50 = 550", "512 positions"],
    ),
    "too long within a list": (["bench.input_len=[5,513]"], ["bench.input_len=513", "512"]),
    "more rows than fit": (
        ["bench.batch=3000", "bench.output_len=400", "bench.input_len=8", "cluster.memory_gb=3"],
        ["bench.batch=3000", "rows of 8 + 1 x 400 tokens fit", "3 GB"],
    ),
    "no room at all": (
        ["bench.batch=3000", "cluster.memory_gb=1"],
        ["bench.batch=3000 bench.input_len=480", "cluster.memory_gb", "workspace"],
    ),
    "no room to score": (
        ["bench.task=score", "cluster.memory_gb=0.01"],
        ["cluster.memory_gb", "0.01 GB"],
    ),
    "another length": (["decode.max_new_tokens=7"], ["max_new_tokens=7", "bench.output_len=32"]),
    "an early end": (["decode.end_id=3"], ["decode.end_id=3", "nothing may end it"]),
    "stop words": (["decode.stop_words=x"], ["decode.stop_words=x", "nothing may end it"]),
    "stages that generate": (
        ["parallel.pipeline=2", "cluster.devices_per_node=2"],
        ["parallel.pipeline=2", "bench.task=generate", "parallel.tensor"],
    ),
    "fewer lanes": (["bench.batch=4", "batch.lanes=2"], ["batch.lanes=2", "4 of 1"]),
    "a smaller batch": (["bench.batch=4", "batch.max_tokens=9"], ["batch.max_tokens=9", "1920"]),
    "beams that score": (["bench.task=score", "decode=beam4"], ["decode.beams=4", "bench.task"]),
    "an encoder that scores": (["model=demo_t5", "bench.task=score"], ["bench.task", "encoder"]),
    "no folder": (["bench.out=/nowhere/a.json"], ["bench.out=/nowhere/a.json", "/nowhere"]),
    "a folder": (["bench.out=/"], ["bench.out=/", "is a folder"]),
}


@pytest.mark.parametrize(("overrides", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        main(overrides, [])
    assert refused.value.code == CONFIG_REFUSED
    for word in words:
        assert word in str(refused.value)


def test_refused_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(
        ConfigError, match=r"bench under mpirun \(PMI\) with 2 ranks: .* one process"
    ):
        main([], [])


def test_summary_of_times() -> None:
    found = summary([0.3, 0.1, 0.2, 0.5, 0.4])
    assert found["mean"] == pytest.approx(0.3)
    assert (found["p50"], found["min"], found["max"]) == (0.3, 0.1, 0.5)
    assert found["p99"] == pytest.approx(0.496)
    assert summary([0.2])["p99"] == 0.2


def test_prefill_and_decode_apart() -> None:
    """Ten milliseconds to the first token and two for each other one."""
    cell = Cell(1, 8, 20, 1)
    whole, short = [0.010 + 19 * 0.002] * 3, [0.010] * 3
    step, first = apart([*whole[:2], 1.0], [*short[:2], 0.5], cell)
    assert step == pytest.approx(0.002)
    assert first == pytest.approx(0.010)
    assert apart([0.02], [], Cell(1, 8, 1)) == (None, 0.02)
    assert apart([0.02], [], Cell(1, 8, 3)) == (None, None)


def test_an_answer_of_another_length_is_a_bug() -> None:
    request = GenerateRequest(Row(0, 1, b"", None), "7", [1], 3)
    answer = Generated([Hypothesis([5, 6], 0.0, 0.0, "length")], [])
    with pytest.raises(RuntimeError, match="row 7: 2 new tokens, not 3"):
        check_length_of(request, answer)


def test_a_silent_device_is_given_up() -> None:
    """Threads that never started give no sign of life."""
    job, cell = cell_of("bench.batch=3", "bench.input_len=5", "run.deadline_s=0.2")
    devices = LocalDevices(job, Phases())
    devices.give(0, Rows(job, cell).chunks(2)[0][0])
    with pytest.raises(DeadlinePassed, match=r"run\.deadline_s=0\.2: .* 0, which hold 3 rows"):
        list(devices.finished())


def test_what_lasts_is_left_alone_while_devices_are_there() -> None:
    """By the garbage collector, as in a run."""
    job, _ = cell_of("bench.batch=1", "bench.input_len=5")
    with LocalDevices(job, Phases()):
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


def test_planned_memory_grows_with_rows_as_the_plan_counts_them() -> None:
    job, cell = cell_of("bench.batch=4", "bench.input_len=20", "bench.output_len=6")
    planned = planned_bytes(job, cell)
    small = Machine((1,), "cpu", planned, "test")
    assert cell_of("bench.batch=4", "bench.input_len=20", "bench.output_len=6", machine=small)
    short = Machine((1,), "cpu", planned - job.plan.devices[0].cache_bytes_per_token * 13, "test")
    with pytest.raises(ConfigError, match=r"bench.batch=4: 3 rows of 20"):
        cell_of("bench.batch=4", "bench.input_len=20", "bench.output_len=6", machine=short)


def test_int8_layers_and_a_head_of_the_dtype() -> None:
    job, _ = cell_of("model.weights=int8", "model.dtype=bf16", "bench.input_len=20")
    made = Sizes.of(job.config.model, job.source.arch)
    assert (made.stored, made.bytes_of) == (1, 2)


def made(task: str) -> dict[str, Any]:
    """The figures of one size."""
    rates = {"bytes_s": 1e12, "flop_s": 5e13, "of_copy": 0.5, "of_product": 0.25}
    one = {"prefill": rates, "decode": None} if task == "generate" else {"score": rates}
    cell = {
        **Cell(8, 512, 16, 1).as_dict(),
        "devices": ["NVIDIA H100 80GB HBM3"],
        "latency": {"mean": 0.0123, "p50": 0.012, "p99": 0.02},
        "prefill_s": 0.004,
        "step_s": None,
        "limit_s": 0.007,
        "tokens_s": 10_406.5,
        "memory": {"peak_bytes": 1_230_000_000, "planned_bytes": 1_200_000_000},
        "phases": {"load": 1.25, "capture": 3.5},
        "late_phases": {},
        **one,
    }
    card = dict(zip(ASKED, CARD.split(", "), strict=True))
    return {
        "model": {
            **{"name": "gpt345m", "family": "gpt2", "parameters": 354_823_168},
            **{"dtype": "bf16", "weights": "int8", "random": True},
        },
        "layout": {"tensor": 1, "pipeline": 1, "data": 1},
        "ceilings": {
            **{"copy_bytes_s": 3.0e12, "product_flop_s": 7.5e14},
            **{"product_side": 8192, "card": card},
        },
        "task": task,
        "runs": 10,
        "cells": [cell],
    }


def test_page_of_generation() -> None:
    text = render(made("generate"))
    assert "gpt345m (gpt2): 354.8 M parameters, bf16, weights int8, random" in text
    assert "1980 MHz and memory 2619 MHz under a product" in text
    assert "copy 3 TB/s, product of 8192 x 8192 750 TFLOP/s" in text
    assert "load 1.25 s, capture 3.50 s" in text
    (line,) = [row for row in text.splitlines() if row.startswith("8 ")]
    cells = line.split()
    assert cells[:8] == ["8", "512", "16", "12.3", "12", "20", "7", "4"]
    assert cells[8:] == ["25.0", "%", "-", "-", "-", "10,406", "1.23", "GB", "1.2", "GB"]


def test_predictions_have_a_column_where_there_are_any() -> None:
    told = made("generate")
    assert "predicted" not in render(told)
    told["cells"][0]["predicted"] = {"seconds": 0.0099, "prefill_s": 0.001, "step_s": 0.0001}
    text = render(told)
    (line,) = [row for row in text.splitlines() if row.startswith("8 ")]
    assert line.split()[6:9] == ["7", "9.9", "4"]
    assert text.endswith("predicted: what `plan` expects at these ceilings.\n")


def test_a_size_is_predicted_where_its_wires_are_known() -> None:
    job, cell = cell_of(
        "parallel.tensor=2", "bench.input_len=20", machine=Machine((2,), "cpu", 10**10, "test")
    )
    speeds = ["plan.copy_tb_s=0.01", "plan.product_tflops=0.1"]
    assert predicted(job, cell, known(speeds)) is None
    found = predicted(job, cell, known([*speeds, "plan.link_us=50", "plan.link_gb_s=1"]))
    assert found is not None
    steps = (cell.output_len - 1) * found["step_s"]
    assert found["seconds"] == pytest.approx(found["prefill_s"] + steps)


def known(overrides: list[str]) -> Rates:
    rates = rates_of(compose([*BASE, DEMO, *overrides]), "cpu")
    assert rates is not None
    return rates


def test_captures_of_several_devices_are_counted_once() -> None:
    """As long as some device captures: those side by side at once, those in turn both."""
    phases = Phases(origin=0.0)
    for device, start, end in ((0, 1.0, 2.0), (1, 1.5, 2.5), (1, 4.0, 4.25), (0, 4.1, 4.2)):
        phases.add("capture", start, end, device)
        phases.add("decode", end, end + 0.1, device)
    assert captured_s(phases) == pytest.approx(1.5 + 0.25)


def test_what_was_captured_within_the_runs_is_told() -> None:
    late = made("generate")
    assert "raise bench.warmup" not in render(late)
    late["cells"][0]["late_phases"] = {"capture": 0.5}
    told = "batch 8, 512 in, 16 out: within the timed runs capture 0.50 s; raise bench.warmup"
    assert told in render(late)


def test_page_of_scoring() -> None:
    (line,) = [row for row in render(made("score")).splitlines() if row.startswith("8 ")]
    assert line.split()[6:] == ["7", "50.0", "%", "25.0", "%", "10,406", "1.23", "GB", "1.2", "GB"]
