"""What transformers says of the same rows: the oracle that suites compare with, row by row.

Scores each row alone, unbatched and in float32, and writes records of the same shape as a run's
samples, so that `ftjob.results.compare` can judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ftjob.config import JobConfig
from ftjob.job import Job, prepare
from ftjob.launch.world import World, make_machine
from ftjob.results.compare import Comparison, compare_samples
from ftjob.results.summary import read_samples
from ftjob.tasks import make_task
from ftjob.tasks.base import Row, Scored, ScoreRequest
from ftjob.tasks.rows import RowSource


def transformers_records(job: Job) -> Iterator[dict[str, Any]]:
    """The records of a teacher-forced job as transformers' GPT2LMHeadModel answers it."""
    from transformers import GPT2LMHeadModel

    assert job.source.index is not None
    model: Any = GPT2LMHeadModel.from_pretrained(job.source.index.folder, dtype=torch.float32)
    model.eval()
    task = make_task(job.config)
    for row in RowSource(job.config.dataset).rows():
        yield _record(model, task, row, job)


@torch.inference_mode()
def _record(model: Any, task: Any, row: Row, job: Job) -> dict[str, Any]:
    (prepared,) = task.prepare([row], [""], job.tokenizer, job.limits())
    if not isinstance(prepared, ScoreRequest):
        return dict(prepared)
    ids = torch.tensor([prepared.ids])
    logits = model(ids).logits[0, prepared.scored_from - 1 : -1].float()
    targets = ids[0, prepared.scored_from :]
    logprobs = logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    top = logits.topk(2).values
    scored = Scored(logprobs.tolist(), logits.argmax(-1).tolist(), (top[:, 0] - top[:, 1]).tolist())
    record: dict[str, Any] = task.record(prepared, scored, job.tokenizer)
    return record


def compare_with_transformers(config: JobConfig, samples: Path) -> Comparison:
    """Compare a run's samples with transformers' answers to the same rows."""
    job = prepare(config, make_machine(config.cluster, World(0, 1, "none"), {}, for_plan=True))
    theirs = ({**record, "id": record["key"]} for record in transformers_records(job))
    ours = ({**record, "id": record["key"]} for record in read_samples(samples))
    return compare_samples(ours, theirs)
