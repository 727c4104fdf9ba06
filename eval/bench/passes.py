"""Whole data sets in one pass, by ftjob and by transformers in turn: LAMBADA scored, newstest2017
translated to given lengths. `h200` asks for them; sizes of one batch are `peer`'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from eval.bench import hf
from eval.bench.contender import Outcome, Runner
from eval.bench.devices import Devices
from eval.bench.newstest import Pair, random_ids, read_pairs
from eval.bench.scoring import lambada_job
from eval.bench.workloads import PEERS, Workload
from ftjob.batching import Chunk, chunks
from ftjob.bench.ceilings import Ceilings
from ftjob.bench.cells import BASE, endless
from ftjob.bench.measure import captured_s, check_length_of, ready_phases, torch_devices
from ftjob.bench.roofline import Sizes, scoring
from ftjob.config.compose import compose
from ftjob.device import DTYPES
from ftjob.job import Job, prepare
from ftjob.launch.world import World, make_machine
from ftjob.tasks.base import GenerateRequest, Request, Row, ScoreRequest


def lambada(
    workload: Workload, ceilings: Ceilings, rounds: int, peer_rounds: int
) -> dict[str, Any]:
    """LAMBADA's rows scored, chunks formed within the time as rank 0 forms them."""
    job, requests = lambada_job(workload.overrides, os.environ)
    devices = Devices(job)
    tokens = sum(len(r.ids) for r in requests)

    def theirs() -> Callable[[], Any]:
        model = _model(job)
        return lambda: hf.score(model, requests, workload.batch)

    sizes = Sizes.of(job.config.model, job.source.arch)
    work = scoring(sizes, [(r.scored_from, len(r.ids) - r.scored_from) for r in requests])
    limit = work.seconds(ceilings.copy_bytes_s, ceilings.product_flop_s)
    try:
        found = in_turn(
            scored(devices, requests), theirs if workload.peers else None, rounds, peer_rounds
        )
        phases = ready_phases(devices.phases)
    finally:
        devices.stop()
    return {"contenders": found, "phases": phases, "limit_s": limit, "tokens": tokens}


def newstest(workload: Workload, rounds: int, peer_rounds: int) -> dict[str, Any]:
    """Sources of newstest2017's lengths continued to its references' lengths."""
    pairs = read_pairs()
    job = translation_job(workload.overrides, pairs)
    ids = random_ids(pairs, job.source.arch.vocab)
    devices = Devices(job)

    def theirs() -> Callable[[], Any]:
        model = _model(job)
        return lambda: hf.translate(model, pairs, ids, workload.batch)

    try:
        found = in_turn(
            continued(devices, pairs, ids), theirs if workload.peers else None, rounds, peer_rounds
        )
        phases = ready_phases(devices.phases)
    finally:
        devices.stop()
    tokens = sum(pair.target for pair in pairs)
    return {"contenders": found, "phases": phases, "limit_s": None, "tokens": tokens}


def scored(devices: Devices, requests: Sequence[ScoreRequest]) -> Runner:
    """A pass over rows to be scored."""
    tokens = sum(len(r.ids) for r in requests)

    def run() -> int:
        answers = devices.answers(formed(devices.job, requests))
        return sum(s.best == r.ids[r.target_from :] for r, s in answers)

    return Runner(run, lambda right: Outcome(tokens, None), devices.start)


def continued(devices: Devices, pairs: Sequence[Pair], ids: Sequence[list[int]]) -> Runner:
    """A pass over rows of such ids, each continued to the length of its pair. The threads are made
    anew for each pass, outside of its time: they end with their rows. So each captures its steps,
    which is outside of its time too."""
    requests = [
        GenerateRequest(Row(i, i + 1, str(i).encode(), None), str(i), source, pair.target)
        for i, (source, pair) in enumerate(zip(ids, pairs, strict=True))
    ]

    def judge(answers: list[Any]) -> Outcome:
        if len(answers) != len(requests):
            raise RuntimeError(f"{len(answers)} answers to {len(requests)} rows")
        for request, answer in answers:
            check_length_of(request, answer)
        return Outcome(sum(pair.target for pair in pairs), None)

    return Runner(
        lambda: list(devices.answers(formed(devices.job, requests))),
        judge,
        devices.start,
        lambda: captured_s(devices.phases),
    )


def formed(job: Job, requests: Sequence[Request]) -> Iterator[Chunk]:
    """The chunks of a pass, as rank 0 forms them."""
    batch = job.config.batch
    return chunks(
        requests,
        window=batch.window,
        max_tokens=job.plan.max_tokens,
        by_length=batch.order == "length",
        generation=job.plan.generation,
    )


def translation_job(overrides: Sequence[str], pairs: Sequence[Pair]) -> Job:
    """The job of one rank that continues such rows, which nothing ends before their length."""
    longest = max(pair.target for pair in pairs)
    config = compose([*BASE, *overrides, f"decode.max_new_tokens={longest}"])
    job = prepare(config, make_machine(config.cluster, World(0, 1, "none"), os.environ))
    assert job.plan.generation is not None
    rows = job.plan.generation.slots
    return endless(job, rows, max(pair.source for pair in pairs), longest)


def in_turn(
    ours: Runner,
    make_peer: Callable[[], Callable[[], Any]] | None,
    rounds: int,
    peer_rounds: int,
) -> list[dict[str, Any]]:
    """Seconds of passes, ftjob's and transformers' in turn after one of each that does not count.
    What the peer fails with is recorded."""
    own: dict[str, Any] = nothing("ftjob")
    found = [own]
    own["first_s"] = one_pass(ours)
    peer: Runner | None = None
    if make_peer is not None and peer_rounds:
        other = nothing(PEERS["eager"])
        found.append(other)
        try:
            peer = Runner(make_peer(), lambda _: Outcome(0, None))
            other["first_s"] = one_pass(peer)
        except Exception as error:
            peer, other["error"] = None, hf.told(error)
    for number in range(rounds):
        own["seconds"].append(one_pass(ours))
        if peer is None or number >= peer_rounds:
            continue
        try:
            other["seconds"].append(one_pass(peer))
        except Exception as error:
            peer, other["error"] = None, hf.told(error)
    return found


def one_pass(runner: Runner) -> float:
    """Seconds of a pass, whose answers are judged after it."""
    runner.ready()
    before, start = runner.apart(), time.perf_counter()
    answers = runner.run()
    seconds = time.perf_counter() - start - (runner.apart() - before)
    runner.judge(answers)
    return seconds


def nothing(name: str) -> dict[str, Any]:
    """A contender's record as `peer` has it, before it ran."""
    times: dict[str, Any] = {"seconds": [], "short_seconds": [], "first_s": None, "step_s": None}
    return {"name": name, **times, "prefill_s": None, "error": None}


def _model(job: Job) -> Any:
    return hf.build_model(job, torch_devices(job)[0], DTYPES[job.config.model.dtype])
