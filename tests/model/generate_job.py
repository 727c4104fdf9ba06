"""Rows of ids through a replica's device threads, as a rank runs them: the generate loop as it is,
without files, ranks or tasks around it. The parity tests compare what comes back with transformers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftjob.batching import chunks
from ftjob.comm import Pulse
from ftjob.comm.groups import Wiring
from ftjob.config import build
from ftjob.config.options import RowOptions
from ftjob.device import DeviceThread
from ftjob.job import Job, open_model, prepare
from ftjob.news import Answered, Failed, Message
from ftjob.plan import Machine, make_plan
from ftjob.tasks.base import Generated, GenerateRequest, Row
from ftjob.telemetry import Phases
from ftjob.tokenizer import open_tokenizer


def generation_job(
    folder: Path | str,
    decode: Mapping[str, Any],
    *,
    tensor: int = 1,
    pipeline: int = 1,
    model: Mapping[str, Any] | None = None,
    device: str = "cpu",
    **batch: Any,
) -> Job:
    """A job that continues rows with the checkpoint in `folder` on devices of a kind; its tokenizer
    is never asked."""
    given = {"checkpoint": str(folder), "family": "gpt2", **(model or {})}
    rows: dict[str, Any] = {"mode": "generate"}
    if given["family"] == "t5":
        rows = {"task": "translation", "path": "builtin:captions_en_de", "column": "source"}
    config = build({
        "model": given,
        "decode": dict(decode),
        "batch": batch,
        "dataset": rows,
        "parallel": {"tensor": tensor, "pipeline": pipeline, "data": 1},
    })  # fmt: skip
    machine = Machine((tensor * pipeline,), device, 1 << 33, "test")
    if (Path(folder) / "tokenizer.json").exists() or str(folder).startswith("builtin:"):
        return prepare(config, machine)
    source = open_model(config)
    plan = make_plan(config, source.arch, source.rules, machine)
    return Job(config, source, open_tokenizer("builtin:gpt2", None), plan)


def generate(
    job: Job, rows: Sequence[Sequence[int]], limits: Sequence[int] | None = None
) -> list[Generated]:
    """The answers to rows of ids, in their order; `limits` are the rows' own max_new_tokens."""
    most = limits or [job.config.decode.max_new_tokens] * len(rows)
    return run_requests(job, requests_of(rows, most, [job.config.decode] * len(rows)))


def requests_of(
    rows: Sequence[Sequence[int]], limits: Sequence[int], options: Sequence[RowOptions]
) -> list[GenerateRequest]:
    """Rows of ids, each with its own limit and options."""
    each = zip(rows, limits, options, strict=True)
    return [
        GenerateRequest(Row(i, i + 1, b"", ""), str(i), list(ids), limit, options=own)
        for i, (ids, limit, own) in enumerate(each)
    ]


def run_requests(job: Job, requests: Sequence[GenerateRequest]) -> list[Generated]:
    """The answers to requests that are numbered by their rows."""
    halt: threading.Event = threading.Event()
    outbox: queue.Queue[Message] = queue.Queue()
    specs = job.plan.of_rank(0)
    pulses = {s.local: Pulse(halt) for s in specs}
    wires = Wiring(job.plan, 0, pulses, None, Pulse(halt)).wires
    threads = [
        DeviceThread(job, s, wires[s.local], pulses[s.local], outbox, Phases()) for s in specs
    ]
    for chunk in chunks(
        requests,
        window=job.config.batch.window,
        max_tokens=job.plan.max_tokens,
        by_length=job.config.batch.order == "length",
        generation=job.plan.generation,
    ):
        for thread in threads:
            thread.inbox.put(chunk)
    for thread in threads:
        thread.inbox.put(None)
        thread.start()
    found: dict[int, Generated] = {}
    while len(found) < len(requests):
        message = outbox.get(timeout=60)
        if isinstance(message, Failed):
            halt.set()
            raise RuntimeError(message.cause.traceback or str(message.cause))
        if isinstance(message, Answered) and message.answers is not None:
            for request, answer in zip(message.chunk.requests, message.answers, strict=True):
                assert isinstance(answer, Generated)
                assert request.row.index not in found, "a row was answered twice"
                found[request.row.index] = answer
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return [found[i] for i in range(len(requests))]
