"""What transformers says of the same rows: the oracle that suites compare with, row by row.

Takes each row alone, unbatched and in float32, scores or continues it as the job's task asks, and
writes records of the same shape as a run's samples, so that `ftjob.results.compare` can judge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ftjob.config import JobConfig
from ftjob.config.groups import DecodeConfig
from ftjob.config.options import DEFAULTS
from ftjob.job import Job, prepare
from ftjob.launch.world import World, make_machine
from ftjob.results.compare import Comparison, compare_samples
from ftjob.results.summary import read_samples
from ftjob.tasks import make_task
from ftjob.tasks.base import Generated, GenerateRequest, Hypothesis, Scored, ScoreRequest
from ftjob.tasks.rows import RowSource

# Options that `generate` takes into account, or that decide nothing without draws.
KNOWN = ("n_best", "length_penalty", "token_logprobs", "seed")


def transformers_records(job: Job) -> Iterator[dict[str, Any]]:
    """The records of a job as transformers' model for its checkpoint answers it."""
    model, task = _load(job), make_task(job.config)
    for row in RowSource(job.config.dataset).rows():
        (prepared,) = task.prepare([row], [""], job.tokenizer, job.limits())
        if isinstance(prepared, GenerateRequest):
            generated = generate(model, prepared, job.config.decode)
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


@torch.inference_mode()
def generate(model: Any, request: GenerateRequest, decode: DecodeConfig) -> Generated:
    """A row continued. Near ties are left to the run's own records.

    Raises:
        ValueError: for options beyond greedy and beam search, of which it would say nothing.
    """
    others = [
        f.name
        for f in dataclasses.fields(DEFAULTS)
        if f.name not in KNOWN and getattr(request.options, f.name) != getattr(DEFAULTS, f.name)
    ]
    if others or decode.convention != "hf":
        raise ValueError(
            f"the oracle does greedy and beam search alone, as transformers does them; "
            f"decode.convention={decode.convention}, and set besides: {', '.join(others) or '-'}"
        )
    ids = torch.tensor([request.ids])
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
        max_new_tokens=request.max_new_tokens,
        return_dict_in_generate=True,
        output_scores=True,
        **ranked,
    )
    own = model.compute_transition_scores(
        made.sequences, made.scores, getattr(made, "beam_indices", None), normalize_logits=True
    )
    ends = _ends(model)
    first = made.sequences.shape[1] - own.shape[1]
    found: list[Hypothesis] = []
    for number, new in enumerate(made.sequences[:, first:].tolist()):
        # what follows the end token fills the hypotheses up to one length
        length = next((i + 1 for i, t in enumerate(new) if t in ends), len(new))
        logprobs = own[number, :length].tolist()
        total = float(own[number, :length].sum())
        reason: Literal["eos", "length"] = "eos" if new[length - 1] in ends else "length"
        ranking = float(made.sequences_scores[number]) if decode.beams > 1 else total
        told = logprobs if decode.token_logprobs else None
        found.append(Hypothesis(new[:length], ranking, total, reason, told))
    return Generated(found, [])


def _ends(model: Any) -> Sequence[int]:
    """The ids that end a row, as the model's own generation_config has them."""
    end = model.generation_config.eos_token_id
    return end if isinstance(end, list) else [] if end is None else [end]


def compare_with_transformers(config: JobConfig, samples: Path) -> Comparison:
    """Compare a run's samples with transformers' answers to the same rows."""
    job = prepare(config, make_machine(config.cluster, World(0, 1, "none"), {}, for_plan=True))
    theirs = ({**record, "id": record["key"]} for record in transformers_records(job))
    ours = ({**record, "id": record["key"]} for record in read_samples(samples))
    return compare_samples(ours, theirs)
