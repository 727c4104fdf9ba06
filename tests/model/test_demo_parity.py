"""The shipped demo model over shipped LAMBADA rows: batched by us and one row at a time by
transformers in float32, the answers are the same row by row.
"""

from __future__ import annotations

import math

import pytest
import torch
from demo_job import DEMO, demo_job, lambada_requests, score
from gpt2_oracle import reference_logits
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from ftjob.tasks.lambada import Lambada

ROWS = 48


def test_first_rows_equal_transformers_row_by_row() -> None:
    job = demo_job()
    requests = lambada_requests(job, ROWS)
    answers = score(job, requests, max_tokens=2048)
    model = GPT2LMHeadModel.from_pretrained(DEMO, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(DEMO / "tokenizer.json"))
    task, correct = Lambada(), 0
    for index, (request, scored) in enumerate(zip(requests, answers, strict=True)):
        text = request.row.text
        assert text is not None
        assert request.row.index == index
        context, word = text.rsplit(" ", 1)
        start = len(tokenizer.encode(context))
        ids = tokenizer.encode(context) + tokenizer.encode(f" {word}")
        logits = reference_logits(model, ids[:-1])[start - 1 :]
        target = torch.tensor(ids[start:])
        logprob = float(logits.log_softmax(1).gather(1, target.unsqueeze(1)).sum())
        record = task.record(request, scored, job.tokenizer)
        assert math.isclose(record["logprob"], logprob, abs_tol=1e-4)
        assert record["output_ids"] == logits.argmax(1).tolist()
        assert record["correct"] == (logits.argmax(1).tolist() == target.tolist())
        correct += record["correct"]
    assert correct == 5


def test_answers_do_not_depend_on_the_batch() -> None:
    job = demo_job()
    requests = lambada_requests(job, 24, longest=80)
    whole = score(job, requests, max_tokens=4096)
    alone = score(job, requests, max_tokens=1)
    for a, b in zip(whole, alone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert a.best == b.best
