"""The contenders of the CPU benchmark: each scores the same LAMBADA rows from token ids.

A contender is a function that makes its model ready and gives a function that does one pass and
returns the number of rows whose last word is right. `cpu_worker` times the passes.
"""

from __future__ import annotations

import queue
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ftjob.batching import chunks
from ftjob.comm import Pulse
from ftjob.comm.groups import Wiring
from ftjob.config.compose import compose
from ftjob.device import Answered, DeviceThread, Failed, Message
from ftjob.job import Job, prepare
from ftjob.launch.world import World, make_machine
from ftjob.tasks import make_task
from ftjob.tasks.base import ScoreRequest
from ftjob.tasks.rows import RowSource
from ftjob.telemetry import Phases

ROWS = 512
Pass = Callable[[], int]


def load_job(overrides: Sequence[str]) -> tuple[Job, list[ScoreRequest]]:
    """The demo job and its requests, longest row first."""
    config = compose(["model=demo_gpt", "cluster.device=cpu", f"dataset.limit={ROWS}", *overrides])
    job = prepare(config, make_machine(config.cluster, World(0, 1, "none"), {}))
    rows = list(RowSource(config.dataset).rows())
    keys = [str(row.index) for row in rows]
    prepared = make_task(config).prepare(rows, keys, job.tokenizer, job.limits())
    requests = [r for r in prepared if isinstance(r, ScoreRequest)]
    return job, sorted(requests, key=lambda r: -len(r.ids))


def tokens() -> int:
    """Real tokens of one pass."""
    return sum(len(r.ids) for r in load_job([])[1])


def ftjob(layout: str) -> Pass:
    """ftjob's own device threads in a layout such as t1p1d2 (tensor, pipeline, data), fed as the
    rank feeds them."""
    tensor, pipeline, data = map(int, re.findall(r"\d", layout))
    job, requests = load_job(
        [
            f"cluster.devices_per_node={tensor * pipeline * data}",
            f"parallel.tensor={tensor}",
            f"parallel.pipeline={pipeline}",
        ]
    )
    outbox: queue.Queue[Message] = queue.Queue()
    specs, halt = job.plan.of_rank(0), threading.Event()
    pulses = {s.local: Pulse(halt) for s in specs}
    wires = Wiring(job.plan, 0, pulses, None, Pulse(halt), job.source.arch.hidden).wires
    threads = [
        DeviceThread(job, s, wires[s.local], pulses[s.local], outbox, Phases()) for s in specs
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        if isinstance(message := outbox.get(), Failed):
            raise RuntimeError(str(message.cause))

    def one_pass() -> int:
        batch = job.config.batch
        formed = chunks(
            requests, window=batch.window, max_tokens=job.plan.max_tokens, by_length=True
        )
        flying = right = 0

        def give(replica: int) -> int:
            following = next(formed, None)
            for thread in threads if following is not None else []:
                if thread.spec.data == replica:
                    thread.inbox.put(following)
            return following is not None

        for _ in range(pipeline + 1):
            flying += sum(give(replica) for replica in range(data))
        while flying:
            message = outbox.get()
            if isinstance(message, Failed):
                raise RuntimeError(str(message.cause))
            assert isinstance(message, Answered)
            if message.scored is None:
                continue
            flying += give(specs[message.device].data) - 1
            pairs = zip(message.chunk.requests, message.scored, strict=True)
            right += sum(s.best == r.ids[r.target_from :] for r, s in pairs)
        return right

    return one_pass


def transformers(size: str) -> Pass:
    """transformers' GPT2LMHeadModel on padded batches of rows of like length."""
    import torch
    from transformers import GPT2LMHeadModel

    batch = int(size)
    job, requests = load_job([])
    assert job.source.index is not None
    model: Any = GPT2LMHeadModel.from_pretrained(job.source.index.folder, dtype=torch.float32)
    model.eval()

    @torch.inference_mode()
    def one_pass() -> int:
        right = 0
        for start in range(0, len(requests), batch):
            rows = requests[start : start + batch]
            ids = torch.zeros(len(rows), len(rows[0].ids), dtype=torch.long)
            for i, r in enumerate(rows):
                ids[i, : len(r.ids)] = torch.tensor(r.ids)
            best = model(ids).logits.argmax(-1)
            for i, r in enumerate(rows):
                found = best[i, r.target_from - 1 : len(r.ids) - 1].tolist()
                right += found == r.ids[r.target_from :]
        return right

    return one_pass


def _converted(folder: str) -> tuple[str, list[str], list[ScoreRequest]]:
    """The demo model in CTranslate2's format, its token texts, and the requests."""
    import json
    from pathlib import Path

    from ctranslate2.converters import TransformersConverter

    job, requests = load_job([])
    assert job.source.index is not None
    source = job.source.index.folder
    TransformersConverter(str(source)).convert(folder, quantization="float32", force=True)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    # The converter writes null where the tokenizer has no unknown token and the loader refuses it.
    config["unk_token"] = config.get("unk_token") or "<|endoftext|>"
    config = {k: v for k, v in config.items() if v is not None}
    path.write_text(json.dumps(config))
    vocab = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    texts = sorted(vocab, key=vocab.__getitem__)
    return folder, texts, requests


def ctranslate2_forward(size: str) -> Pass:
    """CTranslate2's forward_batch with both cores on one batch. Its logits are not copied out, so
    its rows are not judged: -1."""
    import ctranslate2

    batch = int(size)
    folder, texts, requests = _converted(tempfile.mkdtemp())
    generator = ctranslate2.Generator(folder, device="cpu", intra_threads=2, compute_type="float32")
    rows = [[texts[t] for t in r.ids] for r in requests]

    def one_pass() -> int:
        for start in range(0, len(rows), batch):
            generator.forward_batch(rows[start : start + batch])
        return -1

    return one_pass


def ctranslate2_score(size: str) -> Pass:
    """CTranslate2's score_batch, a worker a core: log-probabilities only, so no accuracy: -1."""
    import ctranslate2

    batch = int(size)
    folder, texts, requests = _converted(tempfile.mkdtemp())
    generator = ctranslate2.Generator(
        folder, device="cpu", intra_threads=1, inter_threads=2, compute_type="float32"
    )
    rows = [[texts[t] for t in r.ids] for r in requests]

    def one_pass() -> int:
        generator.score_batch(rows, max_batch_size=batch)
        return -1

    return one_pass
