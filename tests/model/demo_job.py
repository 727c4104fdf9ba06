"""The shipped demo model run as a job runs it: `prepare`, then a `DeviceThread` serving chunks.

The parity and int8 tests score shipped LAMBADA rows with it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

from ftjob.batching import chunks
from ftjob.checkpoint.resolve import demo_file
from ftjob.comm import Pulse, Solo
from ftjob.comm.groups import Wires
from ftjob.config import build
from ftjob.device import DeviceThread
from ftjob.job import Job, prepare
from ftjob.news import Answered, Message, Ready
from ftjob.plan import Machine
from ftjob.tasks import make_task
from ftjob.tasks.base import Scored, ScoreRequest
from ftjob.tasks.rows import RowSource
from ftjob.telemetry import Phases

DEMO = demo_file("demo_gpt")
PATIENCE_S = 60.0


def demo_job(**model: Any) -> Job:
    """The demo model over the shipped LAMBADA rows."""
    config = build({"model": {"name": "demo_gpt", "checkpoint": "builtin:demo_gpt"} | model})
    return prepare(config, Machine((1,), "cpu", 1 << 34, "test"))


def lambada_requests(job: Job, rows: int, longest: int = 512) -> list[ScoreRequest]:
    """Requests of the first `rows` shipped rows of at most `longest` tokens."""
    source = list(RowSource(job.config.dataset).rows())[: 6 * rows]
    keys = [str(row.index) for row in source]
    prepared = make_task(job.config).prepare(source, keys, job.tokenizer, job.limits())
    fitting = [p for p in prepared if isinstance(p, ScoreRequest) and len(p.ids) <= longest]
    return fitting[:rows]


def score(job: Job, requests: Sequence[ScoreRequest], max_tokens: int) -> list[Scored]:
    """The device thread's answers, in the order of the requests."""
    outbox: queue.Queue[Message] = queue.Queue()
    (spec,) = job.plan.devices
    wires, pulse = Wires(Solo(), None, None), Pulse(threading.Event())
    thread = DeviceThread(job, spec, wires, pulse, outbox, Phases())
    thread.start()
    ready = outbox.get(timeout=PATIENCE_S)
    assert isinstance(ready, Ready), ready
    assert ready.weight_bytes == spec.weight_bytes
    sent = list(chunks(requests, window=1 << 14, max_tokens=max_tokens, by_length=True))
    for chunk in sent:
        thread.inbox.put(chunk)
    thread.inbox.put(None)
    answers: dict[str, Scored] = {}
    for _ in sent:
        message = outbox.get(timeout=PATIENCE_S)
        assert isinstance(message, Answered), message
        assert message.answers is not None
        answers |= {r.key: s for r, s in zip(message.chunk.requests, message.answers, strict=True)}
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    return [answers[r.key] for r in requests]
