"""What transformers says of the same rows: the oracle that suites compare with, row by row.

In float32 and without padding: a scored row alone, rows to be continued beside others of the same
number of tokens. It writes records of the same shape as a run's samples, so that
`ftjob.results.compare` can judge.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ftjob.config import JobConfig
from ftjob.config.groups import DecodeConfig
from ftjob.job import Job, prepare
from ftjob.launch.world import World, make_machine
from ftjob.results.compare import Comparison, compare_samples
from ftjob.results.summary import read_samples
from ftjob.tasks import make_task
from ftjob.tasks.base import Generated, GenerateRequest, Hypothesis, Scored, ScoreRequest
from ftjob.tasks.rows import RowSource

BATCH = 32


def transformers_records(job: Job) -> list[dict[str, Any]]:
    """The records of a job as transformers answers it, in dataset order."""
    model, task = _open(job), make_task(job.config)
    rows = list(RowSource(job.config.dataset).rows())
    prepared = task.prepare(rows, [""] * len(rows), job.tokenizer, job.limits())
    records = [dict(p) for p in prepared if isinstance(p, dict)]
    for request, answer in _answers(model, [p for p in prepared if not isinstance(p, dict)], job):
        records.append(task.record(request, answer, job.tokenizer))
    return sorted(records, key=lambda record: int(record["index"]))


def _open(job: Job) -> Any:
    """The model that transformers has for the checkpoint."""
    from transformers import GPT2LMHeadModel, T5ForConditionalGeneration

    assert job.source.index is not None
    kind: Any = T5ForConditionalGeneration if job.source.arch.seq2seq else GPT2LMHeadModel
    return kind.from_pretrained(job.source.index.folder, dtype=torch.float32).eval()


def _answers(model: Any, requests: Sequence[Any], job: Job) -> Iterator[tuple[Any, Any]]:
    """Each request with its answer."""
    for request in requests:
        if isinstance(request, ScoreRequest):
            yield request, _score(model, request)
    continued = [r for r in requests if isinstance(r, GenerateRequest)]
    ends = job.source.specials.ends

    def alike(request: GenerateRequest) -> tuple[int, int]:
        return len(request.ids), request.max_new_tokens

    for _, group in itertools.groupby(sorted(continued, key=alike), key=alike):
        held = list(group)
        for start in range(0, len(held), BATCH):
            batch = held[start : start + BATCH]
            answers = _continue(model, batch, job.config.decode, ends)
            yield from zip(batch, answers, strict=True)


@torch.inference_mode()
def _score(model: Any, request: ScoreRequest) -> Scored:
    ids = torch.tensor([request.ids])
    logits = model(ids).logits[0, request.scored_from - 1 : -1].float()
    targets = ids[0, request.scored_from :]
    logprobs = logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    top = logits.topk(2).values
    return Scored(logprobs.tolist(), logits.argmax(-1).tolist(), (top[:, 0] - top[:, 1]).tolist())


@torch.inference_mode()
def _continue(
    model: Any, batch: Sequence[GenerateRequest], decode: DecodeConfig, ends: tuple[int, ...]
) -> list[Generated]:
    """`generate` over rows of equally many tokens."""
    ids = torch.tensor([r.ids for r in batch])
    ranked: dict[str, Any] = {}
    if decode.beams > 1:
        ranked = {
            "length_penalty": decode.length_penalty,
            "early_stopping": decode.early_stopping,
            "num_return_sequences": decode.n_best,
        }
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=decode.beams,
        max_new_tokens=batch[0].max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **ranked,
    )
    begin = 1 if model.config.is_encoder_decoder else ids.shape[1]
    found = [_hypothesis(new, ends) for new in made.sequences[:, begin:].tolist()]
    if decode.beams > 1:
        scored = zip(found, made.sequences_scores.tolist(), strict=True)
        every = [
            Hypothesis(h.ids, score, score * len(h.ids) ** decode.length_penalty, h.finish_reason)
            for h, score in scored
        ]
    else:
        logprobs = torch.stack(made.scores, dim=1).log_softmax(-1)  # [rows, new, vocabulary]
        every = []
        for row, h in enumerate(found):
            total = float(logprobs[row, range(len(h.ids)), h.ids].sum())
            every.append(Hypothesis(h.ids, total, total, h.finish_reason))
    per_row = len(every) // len(batch)
    return [Generated(every[i : i + per_row], []) for i in range(0, len(every), per_row)]


def _hypothesis(new: Sequence[int], ends: tuple[int, ...]) -> Hypothesis:
    """The new ids up to the first end token; what follows fills the batch."""
    for i, token in enumerate(new):
        if token in ends:
            return Hypothesis(list(new[: i + 1]), 0.0, 0.0, "eos")
    return Hypothesis(list(new), 0.0, 0.0, "length")


def compare_with_transformers(config: JobConfig, samples: Path) -> Comparison:
    """Compare a run's samples with transformers' answers to the same rows."""
    job = prepare(config, make_machine(config.cluster, World(0, 1, "none"), {}, for_plan=True))
    theirs = ({**record, "id": record["key"]} for record in transformers_records(job))
    ours = ({**record, "id": record["key"]} for record in read_samples(samples))
    return compare_samples(ours, theirs)
