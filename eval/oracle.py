"""What transformers says of the same rows: the oracle that suites compare with, row by row.

Takes each row alone, unbatched and in float32, scores or continues it as the job's task asks, and
writes records of the same shape as a run's samples, so that `ftjob.results.compare` can judge.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from eval.oracle_generate import Row, followed, searched
from ftjob.config import JobConfig
from ftjob.config.groups import DecodeConfig
from ftjob.job import Job, prepare
from ftjob.launch.world import World, make_machine
from ftjob.results.compare import Comparison, compare_samples
from ftjob.results.summary import read_samples
from ftjob.tasks import make_task
from ftjob.tasks.base import Generated, GenerateRequest, Scored, ScoreRequest
from ftjob.tasks.rows import RowSource

Json = dict[str, Any]


def transformers_records(job: Job, samples: Iterable[Json]) -> Iterator[Json]:
    """The records of a job as transformers' model for its checkpoint answers it; drawn answers are
    those of the run's `samples`, as far as transformers could have drawn them."""
    model, task = _load(job), make_task(job.config)
    for row, sample in itertools.zip_longest(RowSource(job.config.dataset).rows(), samples):
        if row is None:
            return  # rows that only the run has are the comparison's to find
        (prepared,) = task.prepare([row], [""], job.tokenizer, job.limits())
        if isinstance(prepared, GenerateRequest):
            generated = generate(model, prepared, job.config.decode, sample or {})
            yield task.record(prepared, generated, job.tokenizer)
        elif isinstance(prepared, ScoreRequest):
            yield task.record(prepared, score(model, prepared), job.tokenizer)
        else:
            yield prepared


def _load(job: Job) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    assert job.source.index is not None
    kind = AutoModelForSeq2SeqLM if job.source.arch.seq2seq else AutoModelForCausalLM
    model: Any = kind.from_pretrained(job.source.index.folder, dtype=torch.float32)
    return model.eval()


@torch.inference_mode()
def score(model: Any, request: ScoreRequest) -> Scored:
    """A row's targets, teacher-forced."""
    ids = torch.tensor([request.ids])
    logits = model(ids).logits[0, request.scored_from - 1 : -1].float()
    targets = ids[0, request.scored_from :]
    logprobs = logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    top = logits.topk(2).values
    return Scored(logprobs.tolist(), logits.argmax(-1).tolist(), (top[:, 0] - top[:, 1]).tolist())


def generate(model: Any, request: GenerateRequest, decode: DecodeConfig, sample: Json) -> Generated:
    """A row continued, `sample` being the run's record of it. Near ties are left to that.

    Raises:
        ValueError: for options that transformers has not, of which it would say nothing.
    """
    row = Row(model, request, decode)
    if request.options.drawn:
        answers = sample.get("hypotheses") or [sample]
        found = followed(row, [answer.get("output_ids", []) for answer in answers])
    else:
        found = searched(row)
    if request.options.prompt_logprob:
        ids = request.ids
        whole = ScoreRequest(request.row, request.key, ids, 1, 1)
        told = score(model, whole).logprobs if len(ids) > 1 else []
        found = dataclasses.replace(found, prompt_logprobs=told)
    return found


def compare_with_transformers(config: JobConfig, samples: Path) -> Comparison:
    """Compare a run's samples with transformers' answers to the same rows."""
    job = prepare(config, make_machine(config.cluster, World(0, 1, "none"), {}, for_plan=True))
    answers = transformers_records(job, read_samples(samples))
    theirs = ({**record, "id": record["key"]} for record in answers)
    ours = ({**record, "id": record["key"]} for record in read_samples(samples))
    return compare_samples(ours, theirs)
