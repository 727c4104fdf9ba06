"""The contenders of CPU scoring: each scores the same LAMBADA rows, from token ids to decisions.

Quality is the share of rows whose last word is right, where a contender says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.bench import hf
from eval.bench.contender import Kinds, Outcome, Runner
from eval.bench.converted import convert, token_texts
from eval.bench.devices import Devices, layout_overrides
from ftjob.batching import chunks
from ftjob.config import JobConfig
from ftjob.config.compose import compose
from ftjob.job import Job, prepare
from ftjob.launch.world import World, make_machine
from ftjob.plan import Machine
from ftjob.tasks import make_task
from ftjob.tasks.base import ScoreRequest
from ftjob.tasks.rows import RowSource

ROWS = 512


def load_job(overrides: Sequence[str]) -> tuple[Job, list[ScoreRequest]]:
    """The demo job and its requests, longest row first."""
    demo = ("model=demo_gpt", "cluster.device=cpu", f"dataset.limit={ROWS}")
    return lambada_job([*demo, *overrides], {})


def lambada_job(overrides: Sequence[str], env: Mapping[str, str]) -> tuple[Job, list[ScoreRequest]]:
    """The job of one rank that scores LAMBADA, and its requests, longest row first."""
    config = compose(overrides)
    return _prepared(config, make_machine(config.cluster, World(0, 1, "none"), env))


def lambada_requests() -> list[ScoreRequest]:
    """LAMBADA's requests for GPT-345M, longest row first; no device of it need be here."""
    config = compose(["model=gpt345m", "model.checkpoint=random", "dataset=lambada"])
    return _prepared(config, Machine((1,), "cuda", 2**40, "any"))[1]


def _prepared(config: JobConfig, machine: Machine) -> tuple[Job, list[ScoreRequest]]:
    job = prepare(config, machine)
    rows = list(RowSource(config.dataset).rows())
    keys = [str(row.index) for row in rows]
    prepared = make_task(config).prepare(rows, keys, job.tokenizer, job.limits())
    requests = [r for r in prepared if isinstance(r, ScoreRequest)]
    return job, sorted(requests, key=lambda r: -len(r.ids))


def _runner(
    requests: Sequence[ScoreRequest], run: Any, ready: Callable[[], None] = lambda: None
) -> Runner:
    """A pass that gives the number of rows right, or None where it cannot tell."""
    tokens = sum(len(r.ids) for r in requests)
    return Runner(
        run, lambda right: Outcome(tokens, None if right is None else right / len(requests)), ready
    )


def ftjob(layout: str) -> Runner:
    """ftjob's device threads in a layout."""
    job, requests = load_job(layout_overrides(layout))
    devices, batch = Devices(job), job.config.batch

    def run() -> int:
        formed = chunks(
            requests, window=batch.window, max_tokens=job.plan.max_tokens, by_length=True
        )
        return sum(s.best == r.ids[r.target_from :] for r, s in devices.answers(formed))

    return _runner(requests, run, devices.start)


def transformers(size: str) -> Runner:
    """transformers' GPT2LMHeadModel on padded batches of rows of like length."""
    import torch
    from transformers import GPT2LMHeadModel

    batch = int(size)
    job, requests = load_job([])
    assert job.source.index is not None
    model: Any = GPT2LMHeadModel.from_pretrained(job.source.index.folder, dtype=torch.float32)
    model.eval()

    return _runner(requests, lambda: hf.score(model, requests, batch))


def _converted() -> tuple[Path, list[list[str]], list[ScoreRequest]]:
    """The demo model in CTranslate2's format, the rows as its token texts, and the requests."""
    job, requests = load_job([])
    assert job.source.index is not None
    folder, source = Path(tempfile.mkdtemp()), job.source.index.folder
    convert(source, folder)
    texts = token_texts(source)
    return folder, [[texts[t] for t in r.ids] for r in requests], requests


def ctranslate2_forward(size: str) -> Runner:
    """CTranslate2's forward_batch with both cores on one batch. Its logits are not copied out, so
    its rows are not judged."""
    import ctranslate2

    batch = int(size)
    folder, rows, requests = _converted()
    model = ctranslate2.Generator(
        str(folder), device="cpu", intra_threads=2, compute_type="float32"
    )

    def run() -> None:
        for start in range(0, len(rows), batch):
            model.forward_batch(rows[start : start + batch])

    return _runner(requests, run)


def ctranslate2_score(size: str) -> Runner:
    """CTranslate2's score_batch, a worker a core: log-probabilities only, so it is not judged."""
    import ctranslate2

    batch = int(size)
    folder, rows, requests = _converted()
    model = ctranslate2.Generator(
        str(folder), device="cpu", intra_threads=1, inter_threads=2, compute_type="float32"
    )

    def run() -> None:
        model.score_batch(rows, max_batch_size=batch)

    return _runner(requests, run)


KINDS: Kinds = {
    "ftjob": ftjob,
    "transformers": transformers,
    "ctranslate2_forward": ctranslate2_forward,
    "ctranslate2_score": ctranslate2_score,
}
