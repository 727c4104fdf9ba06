"""Runs one size on the job's device threads and makes figures of the times: latency, prefill and
decode apart, rates beside what the device can do, memory, and the phases before.

`cells` made job and rows, `devices` takes them; the figures go to `commands/bench.py` and to eval/.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ftjob import predict
from ftjob.batching import Chunk
from ftjob.bench.ceilings import Ceilings, PeakMemory
from ftjob.bench.cells import Cell, Rows
from ftjob.bench.devices import LocalDevices
from ftjob.bench.roofline import Sizes, Work, decode, prefill, scoring
from ftjob.job import Job
from ftjob.plan import DTYPE_BYTES
from ftjob.plan_memory import workspace_bytes
from ftjob.rates import Rates
from ftjob.stage_times import unknown_wire
from ftjob.tasks.base import Answer, Generated, GenerateRequest, Request
from ftjob.telemetry import Phases

# What a device calls the time in which it serves.
SERVING = ("decode", "score")


def torch_devices(job: Job) -> list[torch.device]:
    """The devices of rank 0 as torch has them."""
    kind = job.plan.machine.device
    return [
        torch.device(kind, s.local) if kind == "cuda" else torch.device(kind)
        for s in job.plan.of_rank(0)
    ]


def run_once(devices: LocalDevices, given: Sequence[Sequence[Chunk]]) -> float:
    """One run: each replica gets its chunks. Seconds from token ids on the host to the last answer
    on the host.

    Raises:
        RuntimeError: where an answer is missing or not as long as asked.
    """
    answers: list[tuple[Request, Answer]] = []
    start = time.perf_counter()
    for replica, parts in enumerate(given):
        for chunk in parts:
            devices.give(replica, chunk)
    for done in devices.finished():
        if done.answers is not None:
            answers += zip(done.chunk.requests, done.answers, strict=True)
    seconds = time.perf_counter() - start
    wanted = sum(len(chunk.requests) for parts in given for chunk in parts)
    if len(answers) != wanted:
        raise RuntimeError(f"{len(answers)} answers to {wanted} rows")
    for request, answer in answers:
        check_length_of(request, answer)
    return seconds


def check_length_of(request: Request, answer: Answer) -> None:
    """Every continuation must be as long as asked, else the time is of something else.

    Raises:
        RuntimeError: with both lengths.
    """
    if isinstance(request, GenerateRequest) and isinstance(answer, Generated):
        for hypothesis in answer.hypotheses:
            if len(hypothesis.ids) != request.max_new_tokens:
                raise RuntimeError(
                    f"row {request.key}: {len(hypothesis.ids)} new tokens, not "
                    f"{request.max_new_tokens}"
                )


def measure(job: Job, cell: Cell, ceilings: Ceilings, rates: Rates | None = None) -> dict[str, Any]:
    """The figures of one size; seconds, bytes and rates a second throughout. With `rates` also what
    the plan predicts from them.

    Raises:
        Stopped, DeadlinePassed: where a device fails or falls silent.
    """
    bench, on = job.config.bench, torch_devices(job)
    phases, peak = Phases(), PeakMemory(on)
    lengths = [cell.output_len, *([cell.short] if cell.short else [])]
    taken: dict[int, list[float]] = {new: [] for new in lengths}
    with LocalDevices(job, phases) as devices:
        loaded, rows = peak.bytes, Rows(job, cell)
        warm = [run_once(devices, rows.chunks(n)) for _ in range(bench.warmup) for n in lengths]
        before = ready_phases(phases)
        gc.collect()
        peak = PeakMemory(on)
        for _ in range(bench.runs):
            for new in lengths:
                taken[new].append(run_once(devices, rows.chunks(new)))
        late = {n: s - before.get(n, 0.0) for n, s in ready_phases(phases).items()}
        used, names = peak.bytes, sorted(set(devices.names.values()))
    gc.collect()
    if on[0].type == "cuda":
        torch.cuda.empty_cache()
    whole = taken[cell.output_len]
    step, first = apart(whole, taken.get(cell.short, []), cell)
    return {
        **cell.as_dict(),
        "devices": names,
        "seconds": whole,
        "short_seconds": taken.get(cell.short, []),
        "warmup_seconds": warm,
        "latency": summary(whole),
        "prefill_s": first,
        "step_s": step,
        "tokens_s": tokens_of(job, cell) / statistics.fmean(whole),
        "memory": {
            "peak_bytes": used,
            "load_peak_bytes": loaded,
            "planned_bytes": planned_bytes(job, cell),
        },
        "phases": before,
        "late_phases": {name: seconds for name, seconds in late.items() if seconds > 0},
        **_rates(job, cell, ceilings, summary(whole)["p50"], first, step),
        **({} if rates is None else {"predicted": predicted(job, cell, rates)}),
    }


def predicted(job: Job, cell: Cell, rates: Rates) -> dict[str, float] | None:
    """What `predict` makes of the size; None where the rates lack a wire that the layout needs."""
    if unknown_wire(job.plan, rates) is not None:
        return None
    size = cell.batch, cell.input_len, cell.output_len
    return predict.cell(job.config, job.source.arch, job.plan, rates, *size)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, median, 99th percentile (between the two neighbours in order, so that of few runs it
    is near the highest), lowest and highest."""
    order = sorted(seconds)
    at = 0.99 * (len(order) - 1)
    low = int(at)
    high = min(low + 1, len(order) - 1)
    return {
        "mean": statistics.fmean(order),
        "p50": statistics.median(order),
        "p99": order[low] + (at - low) * (order[high] - order[low]),
        "min": order[0],
        "max": order[-1],
    }


def apart(
    whole: Sequence[float], short: Sequence[float], cell: Cell
) -> tuple[float | None, float | None]:
    """Seconds of a decode step, and from the prompts to the first new token of each.

    Runs of output_len new tokens and of one alternate. Their difference, pair by pair, is that of
    output_len - 1 steps; the time to the first token is the median of the short ones. Without
    these, a run of one token is all prefill.
    """
    if short:
        steps = cell.output_len - 1
        step = statistics.median(w - s for w, s in zip(whole, short, strict=True)) / steps
        return step, statistics.median(short)
    return None, statistics.median(whole) if cell.output_len == 1 else None


def planned_bytes(job: Job, cell: Cell) -> int:
    """What the plan expects the fullest device to hold; rows that are scored keep no cache. No more
    is read at once than there is, or scored."""
    plan, room = job.plan, job.plan.generation
    about = (job.config, job.source.arch, DTYPE_BYTES[job.config.model.dtype], plan.machine.device)
    if room is None:
        length = cell.input_len + cell.output_len - 1  # a row's last token is not read
        rows = min(cell.batch, max(1, plan.max_tokens // length))
        workspace = workspace_bytes(*about, rows * length, 0, rows * cell.output_len)
        return replace(plan, workspace_bytes=workspace).bytes_taken(cell.batch, 0)
    read = min(plan.max_tokens, cell.batch * cell.input_len)
    workspace = workspace_bytes(*about, read, cell.batch * room.beams)
    tokens = plan.row_tokens(cell.input_len, cell.output_len)
    return replace(plan, workspace_bytes=workspace).bytes_taken(cell.batch, tokens)


def tokens_of(job: Job, cell: Cell) -> int:
    """Tokens of a run over all replicas: new ones, of every answer that is given; or all of the
    scored rows."""
    rows = cell.batch * job.plan.data
    if job.plan.generation is None:
        return rows * (cell.input_len + cell.output_len)
    return rows * cell.output_len * job.config.decode.num_return_sequences


def ready_phases(phases: Phases) -> dict[str, float]:
    """Seconds of the first device's phases, but for those in which it serves: load, warm-up, and
    whatever it makes ready once, such as captured graphs."""
    found: dict[str, float] = {}
    for phase in phases.as_list():
        if phase["device"] == 0 and phase["name"] not in SERVING:
            name = phase["name"]
            found[name] = found.get(name, 0.0) + phase["end_s"] - phase["start_s"]
    return {name: round(seconds, 4) for name, seconds in found.items()}


def captured_s(phases: Phases) -> float:
    """Seconds in which some device captured its work: the others wait for what it hands on."""
    found = [p for p in phases.as_list() if p["name"] == "capture"]
    total = end = 0.0
    for phase in sorted(found, key=lambda p: float(p["start_s"])):
        total += max(0.0, phase["end_s"] - max(end, phase["start_s"]))
        end = max(end, phase["end_s"])
    return total


def _rates(
    job: Job,
    cell: Cell,
    ceilings: Ceilings,
    p50: float,
    first: float | None,
    step: float | None,
) -> dict[str, Any]:
    """Rates of one device of a replica and their shares of the ceilings, and `limit_s`: the least
    time of a run at the ceilings, prefill and decode added (see `roofline`)."""
    ways = job.plan.tensor * job.plan.pipeline
    copy, product = ceilings.copy_bytes_s * ways, ceilings.product_flop_s * ways

    def rate(work: Work, seconds: float | None) -> dict[str, float] | None:
        if seconds is None or seconds <= 0:  # differences of noisy runs can be anything
            return None
        return {
            "bytes_s": work.bytes / seconds / ways,
            "flop_s": work.flop / seconds / ways,
            "of_copy": work.bytes / seconds / copy,
            "of_product": work.flop / seconds / product,
        }

    every = None if step is None else step * (cell.output_len - 1)
    taken = {"score": p50, "prefill": first, "decode": every}
    work = works(job, cell)
    rates: dict[str, Any] = {name: rate(part, taken[name]) for name, part in work.items()}
    return rates | {"limit_s": sum(part.seconds(copy, product) for part in work.values())}


def works(job: Job, cell: Cell) -> dict[str, Work]:
    """The work of a replica's run by part: prefill and decode, or score."""
    sizes, room = Sizes.of(job.config.model, job.source.arch), job.plan.generation
    rows = cell.batch
    if room is None:
        return {"score": scoring(sizes, [(cell.input_len, cell.output_len)] * rows)}
    return {
        "prefill": prefill(sizes, rows, cell.input_len),
        "decode": decode(sizes, rows, room.beams, cell.input_len, cell.output_len),
    }
