"""The plan's part of generation: slots and their refusal, what attention takes beside the cache,
and room for rows that go on until they are looked at. The books of the slots themselves are run to
see that no mixture of rows outgrows the memory.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
from test_plan import ARCH, command, config, plan
from test_plan_t5 import t5

from ftjob.batching import chunks
from ftjob.config import JobConfig
from ftjob.decode.cohorts import Books
from ftjob.errors import CONFIG_REFUSED, ConfigError
from ftjob.model.arch import Arch
from ftjob.plan import Machine, Plan
from ftjob.plan_generation import Generation
from ftjob.plan_memory import LIBRARY_BYTES, workspace_bytes
from ftjob.tasks.base import GenerateRequest, Row


def generating(
    tensor: int = 1,
    pipeline: int = 1,
    *,
    beams: int = 1,
    dtype: str = "f32",
    **batch: Any,
) -> JobConfig:
    """A job that continues rows."""
    groups: dict[str, Any] = {
        "model": {"checkpoint": "PATH", "dtype": dtype},
        "dataset": {"mode": "generate"},
        "decode": {"beams": beams},
        "batch": batch,
    }
    return config(tensor, pipeline, **groups)


def planned(
    wanted: JobConfig, memory: int = 10**9, device: str = "cpu", arch: Arch = ARCH
) -> tuple[Plan, Generation]:
    devices = wanted.parallel.tensor * wanted.parallel.pipeline
    made = plan(wanted, Machine((devices,), device, memory, "test"), arch)
    assert made.generation is not None
    return made, made.generation


def columns(made: Plan) -> int:
    """Columns of cache that the fullest device has memory for, a step's scores beside them."""
    room = made.generation
    assert room is not None
    return min(
        (made.machine.memory_bytes - d.weight_bytes - made.workspace_bytes)
        // (d.cache_bytes_per_token * made.pipeline + room.score_bytes)
        for d in made.devices
    )


@pytest.mark.parametrize(
    ("beams", "pipeline", "lanes", "slots"),
    [(1, 1, 1, 1), (4, 2, 8, 1), (4, 2, 23, 2), (4, 2, 24, 3), (3, 1, 256, 85)],
)
def test_lanes_are_shared_out_to_stages_and_beams(
    beams: int, pipeline: int, lanes: int, slots: int
) -> None:
    _, room = planned(generating(1, pipeline, beams=beams, lanes=lanes))
    assert (room.slots, room.beams) == (slots, beams)
    assert room.slots * beams * pipeline <= lanes


def test_automatic_lanes_are_at_least_a_row_a_stage() -> None:
    for device, lanes in (("cpu", 512), ("cuda", 1024)):
        assert planned(generating(beams=5), device=device)[1].slots == lanes // 5
        assert planned(generating(1, 2, beams=64), device=device)[1].slots == lanes // 128
        assert planned(generating(1, 9, beams=64), device=device)[1].slots == 1


@pytest.mark.parametrize(("beams", "pipeline", "lanes"), [(4, 1, 3), (4, 2, 7), (1, 3, 2)])
def test_fewer_lanes_than_a_row_a_stage_are_refused(beams: int, pipeline: int, lanes: int) -> None:
    with pytest.raises(ConfigError) as refused:
        planned(generating(1, pipeline, beams=beams, lanes=lanes))
    least = beams * pipeline
    assert str(refused.value) == (
        f"batch.lanes={lanes}: a row in each stage takes decode.beams={beams} x "
        f"parallel.pipeline={pipeline} = {least} lanes. Legal: {least} or more, or auto."
    )
    assert refused.value.code == CONFIG_REFUSED


def test_lanes_do_not_matter_where_rows_are_scored() -> None:
    assert plan(config(1, 2, batch={"lanes": 1}), Machine((2,), "cpu", 10**9, "")).data == 1


@pytest.mark.parametrize(
    ("arch", "tensor", "beams", "dtype", "expected"),
    [
        (ARCH, 1, 1, "f32", 12 * 8),  # scores and their softmax for each of 12 heads
        (ARCH, 1, 4, "f32", 12 * 4 * 8),
        (ARCH, 3, 4, "f32", 4 * 4 * 8),
        (ARCH, 1, 4, "bf16", 12 * 4 * 10),  # and the weights rounded
        (t5(), 1, 4, "f32", 6 * 4 * 12),  # and the mask with the biases of positions
        (t5(), 2, 1, "f16", 3 * 14),
    ],
)
def test_score_bytes_by_hand(
    arch: Arch, tensor: int, beams: int, dtype: str, expected: int
) -> None:
    made, room = planned(generating(tensor, beams=beams, dtype=dtype), arch=arch)
    assert room.score_bytes == expected
    (cache,) = {d.cache_bytes_per_token for d in made.devices}
    worst = max(d.weight_bytes for d in made.devices)
    free = 10**9 - worst - made.workspace_bytes
    assert room.cells == columns(made) == free // (cache + expected)
    assert made.rows_that_fit(32) == free // ((cache + expected) * 32)


def test_one_micro_batch_at_a_time_has_scores() -> None:
    made, room = planned(generating(1, 2, beams=2))
    cells = [
        (10**9 - d.weight_bytes - made.workspace_bytes)
        // (2 * d.cache_bytes_per_token + room.score_bytes)
        for d in made.devices
    ]
    assert len(set(cells)) == 2
    assert room.cells == min(cells)
    assert 2 * room.cells // 16 - 2 <= made.rows_that_fit(16) <= 2 * (room.cells + 1) // 16


@pytest.mark.parametrize(("device", "every"), [("cpu", 1), ("cuda", 4)])
def test_what_unseen_ends_take_is_kept_free(device: str, every: int) -> None:
    for wanted, k in (("auto", every), (1, 1), (7, 7)):
        made, room = planned(generating(beams=3, lanes=30, stop_every=wanted), device=device)
        assert (room.stop_every, room.overrun) == (k, 3 * (k - 1))
        assert room.cells == columns(made) - 10 * 3 * (k - 1)


def test_memory_without_a_column_for_the_overrun_is_refused() -> None:
    wanted = generating(beams=3, lanes=30, stop_every=7, max_tokens=8)
    made, room = planned(wanted)
    spare = room.cells * (made.devices[0].cache_bytes_per_token + room.score_bytes)
    assert planned(wanted, 10**9 - spare + 10**4)[1].cells < 10
    with pytest.raises(ConfigError, match=r"cache of 10 rows at once.*batch\.stop_every\."):
        planned(wanted, 10**9 - spare - 10**4)


@pytest.mark.parametrize("arch", [ARCH, t5()], ids=["gpt2", "t5"])
@pytest.mark.parametrize("seed", range(12))
def test_rows_of_any_mixture_stay_within_the_memory(arch: Arch, seed: int) -> None:
    """Chunks as they are formed, cohorts as a device keeps them, looks every few steps: they never
    take more columns than there is memory for, and no row more than its cohort's."""
    made = random.Random(seed)
    beams, every = made.choice([1, 2, 4]), made.choice([2, 3, 8])
    slots, seq2seq = made.randint(2, 6), arch.seq2seq
    wanted = generating(beams=beams, lanes=slots * beams, stop_every=every, max_tokens=64)
    whole, room = planned(wanted, arch=arch)
    # memory for a few rows: what binds is then the cache, not the slots
    few = 10**9 - (room.cells - made.randint(90, 200)) * (
        whole.devices[0].cache_bytes_per_token + room.score_bytes
    )
    whole, room = planned(wanted, few, arch=arch)
    assert 0 < room.cells <= 200
    rows = [
        GenerateRequest(Row(i, i + 1, b"", ""), f"k{i}", [0] * tokens, new)
        for i in range(200)
        for tokens, new in [(made.randint(1, 20), made.randint(1, 9))]
        if tokens + beams * new <= room.cells
    ]
    assert len(rows) > 100
    waiting = deque(
        chunks(rows, window=64, max_tokens=64, by_length=bool(seed % 2), generation=room)
    )
    books = Books(room, seq2seq)
    left = step = 0
    fullest = 0.0
    while left < len(rows):
        if waiting and books.fits(waiting[0]):
            books.enter(waiting.popleft())
            books.activate()
        taken = sum(c.entered * c.cells for c in books.cohorts)
        assert all(c.source + c.keys <= c.cells for c in books.cohorts)
        fullest = max(fullest, taken / columns(whole))
        assert taken <= columns(whole)
        books.advance(len(books.cohorts))
        step += 1
        if step % every == 0:
            done = [c.steps >= r.max_new_tokens for c in books.cohorts for r in c.rows]
            left += len(books.leave(done).rows)
    assert fullest > 0.25


def test_the_page_counts_scores_and_overrun() -> None:
    beams = ["model=t5_base", "dataset=demo_en_de", "decode=beam4", "plan.input_len=100"]
    done = command(*beams, "cluster.device=cpu", "batch.stop_every=1")
    assert done.returncode == 0, done.stderr
    # 12 layers of 768 columns, keys and values; 12 heads of 4 lanes
    assert f"  {2 * 12 * 768 * 4 * 228 / 1e6:.3g} MB\n" in done.stdout
    assert f"a step's attention takes {12 * 4 * 12 * 228 / 1e3:.3g} kB a row\n" in done.stdout
    seldom = command(*beams, "cluster.device=cpu", "batch.stop_every=26")
    tokens = 100 + 4 * 32 + 4 * 25
    assert f"a step's attention takes {12 * 4 * 12 * tokens / 1e3:.3g} kB a row\n" in seldom.stdout
    assert f"  {2 * 12 * 768 * 4 * tokens / 1e6:.3g} MB\n" in seldom.stdout
    refused = command(*beams, "batch.lanes=3")
    assert refused.returncode == CONFIG_REFUSED
    assert "Legal: 4 or more, or auto." in refused.stderr


def test_a_gpu_keeps_no_scores_and_reads_prompts_without_logits() -> None:
    """GPT of 10 layers: by hand, 32 tokens on their way, 8 lanes' logits and softmax, cuBLAS."""
    wanted = generating(lanes=8, max_tokens=32, dtype="bf16")
    made, room = planned(wanted, device="cuda")
    assert room.score_bytes == 0
    through = 32 * 2 * (8 * ARCH.hidden + ARCH.ffn)
    assert made.workspace_bytes == through + 8 * 8 * ARCH.vocab + LIBRARY_BYTES
    exact, _ = planned(generating(lanes=8, max_tokens=32), device="cuda")  # f32: activated apart
    more = 32 * 4 * (8 * ARCH.hidden + 2 * ARCH.ffn) - through
    assert exact.workspace_bytes == made.workspace_bytes + more


@pytest.mark.parametrize(("tensor", "tokens"), [(1, 4095), (1, 4096), (1, 16384), (2, 4096)])
def test_products_in_place_take_no_room(tensor: int, tokens: int) -> None:
    """Where they are: the stream, both norms, q/k/v and the inner columns, but no less than the
    longest pass takes where they are not."""
    wanted = generating(tensor, lanes=8, max_tokens=tokens, dtype="bf16")
    made, _ = planned(wanted, 10**10, "cuda")
    apart = min(tokens, 4095 if tensor == 1 else tokens) * (8 * ARCH.hidden + ARCH.ffn // tensor)
    inside = tokens * (6 * ARCH.hidden + ARCH.ffn) if tensor == 1 and tokens >= 4096 else 0
    chosen = 8 * 8 * -(-ARCH.vocab // tensor)
    assert made.workspace_bytes == 2 * max(apart, inside) + chosen + LIBRARY_BYTES


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("kind", ["gpt", "t5"])
def test_more_tokens_never_take_less(kind: str, stages: int) -> None:
    arch = ARCH if kind == "gpt" else t5()
    taken = []
    for tokens in (4000, 4095, 4096, 5000, 6000, 8000, 16384):
        wanted = generating(1, stages, lanes=8, max_tokens=tokens, dtype="bf16")
        taken.append(planned(wanted, 10**10, "cuda", arch)[0].workspace_bytes)
    assert taken == sorted(taken)
    assert taken[-1] > taken[0]


def test_a_later_stage_has_what_came_to_it_besides() -> None:
    """Once as it came, and where each micro-batch's captured passes look for it."""
    one, two, five = (
        planned(generating(1, n, lanes=n, max_tokens=8192, dtype="bf16"), 10**10, "cuda")[0]
        for n in (1, 2, 5)
    )
    stream = 2 * 8192 * ARCH.hidden
    assert two.workspace_bytes - one.workspace_bytes == 3 * stream
    assert five.workspace_bytes - one.workspace_bytes == 6 * stream


def through(arch: Arch, **model: str) -> int:
    """Elements of half precision that a token of 16384 takes on its way, above choosing."""
    wanted = config(1, 1, model={"checkpoint": "PATH", **model}, dataset={"mode": "generate"},
                    batch={"max_tokens": 16384, "lanes": 8})  # fmt: skip
    made, _ = planned(wanted, 10**10, "cuda", arch)
    return (made.workspace_bytes - LIBRARY_BYTES - 8 * 8 * arch.vocab) // (2 * 16384)


def test_what_cublas_does_not_activate_is_there_twice() -> None:
    """int8 weights; and f32 inner columns and stream of T5 in f16, with what they were made of."""
    width, inner = ARCH.hidden, ARCH.ffn
    assert through(ARCH, dtype="bf16") == 6 * width + inner
    assert through(ARCH, dtype="bf16", weights="int8") == 6 * width + 2 * inner
    small = t5(ffn=900)
    assert through(small, dtype="bf16") == 3 * small.hidden + 3 * small.width + 900
    assert through(small, dtype="f16") == 4 * small.hidden + 3 * small.width + 3 * 900


def test_gates_meet_on_a_gpu() -> None:
    """Activated and linear columns, the former activated, and their product."""
    arch = t5(variant="v1_1", ffn=90)
    made, _ = planned(generating(lanes=8, max_tokens=32, dtype="bf16"), device="cuda", arch=arch)
    through = 32 * 2 * (8 * arch.hidden + 4 * arch.ffn)
    assert made.workspace_bytes == through + 8 * 8 * arch.vocab + LIBRARY_BYTES


def test_scores_of_a_gpu_are_the_products_own() -> None:
    """Of one position in sixteen, in the model's dtype, a slice at a time; where the inner columns
    were as far as they fit."""

    def taken(vocab: int, **about: int) -> int:
        scoring = config(1, 1, model={"checkpoint": "PATH", "dtype": "bf16"})
        arch = replace(ARCH, vocab=vocab)
        through = 32 * 2 * (8 * ARCH.hidden + ARCH.ffn)
        made = workspace_bytes(scoring, arch, 2, "cuda", 32, 0, **about)
        return made - through - LIBRARY_BYTES

    most = 32 * ARCH.ffn // 3  # ids whose logits of three positions are as wide
    assert taken(most) == 0
    assert taken(most + 1) == 2 * 3 * (most + 1)
    assert taken(most + 1, scored=2) == 0
    assert taken(most + 1, scored=32) == 2 * 32 * (most + 1)
    # 2 ** 27 bytes of f32 are two positions of so many ids
    assert taken(2**24) == 2 * 2 * 2**24
    assert taken(2**27) == 2 * 2**27
