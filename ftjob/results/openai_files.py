"""The lines of OpenAI's batch output and error files, out of the records of a request's prompts.

`exports` gathers the records of each request in turn; choices and usage are OpenAI's, whose
reference of /v1/completions and of batch output says what each field is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ftjob.tasks.base import is_answer

Json = dict[str, Any]


def requests_of(samples: Iterable[Json]) -> Iterator[tuple[Json, list[Json] | None]]:
    """Every sample; with the last one of a request whose prompts are all there, the samples of the
    request."""
    held: list[Json] = []
    for sample in samples:
        asked = sample.get("openai")
        if asked is None or asked["prompt"] != len(held):
            held = []  # a request cut short, by dataset.limit or the run's end
        if asked is not None and asked["prompt"] == len(held):
            held.append(sample)
        whole = asked is not None and len(held) == asked["prompts"]
        yield sample, held if whole else None
        if whole:
            held = []


def is_answered(records: Sequence[Json]) -> bool:
    """Whether all prompts of a request have answers."""
    return all(is_answer(record) for record in records)


def output_line(records: Sequence[Json], created: int) -> Json:
    """The line of the output file for an answered request; `created` in seconds since 1970."""
    asked, key = records[0]["openai"], records[0]["key"]
    choices = [choice for record in records for choice in _choices(record)]
    prompt = sum(record["tokens"] for record in records)
    new = sum(len(h["output_ids"]) for record in records for h in _answers(record))
    body = {
        "id": f"cmpl-{key}",
        "object": "text_completion",
        "created": created,
        "model": asked["model"],
        "choices": [{"index": index, **choice} for index, choice in enumerate(choices)],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
        },
    }
    response = {"status_code": 200, "request_id": key, "body": body}
    return {
        "id": f"batch_req_{key}",
        "custom_id": asked["custom_id"],
        "response": response,
        "error": None,
    }


def error_line(records: Sequence[Json]) -> Json:
    """The line of the error file for a request that a prompt of has no answer."""
    failed = next(record for record in records if not is_answer(record))
    return {
        "id": f"batch_req_{records[0]['key']}",
        "custom_id": failed["openai"]["custom_id"],
        "response": None,
        "error": {
            "code": "invalid_request",
            "message": failed["error"] or failed.get("skipped"),
            "line": failed["line"],
        },
    }


def _answers(record: Json) -> Sequence[Json]:
    return record.get("hypotheses") or [record]


def _choices(record: Json) -> list[Json]:
    """The n answers of a prompt: of more the likeliest by token; of one, which draws nothing, as
    many."""
    every, n = list(enumerate(_answers(record))), record["openai"]["n"]
    if len(every) > n:
        every.sort(key=lambda a: -a[1]["cum_logprob"] / max(1, len(a[1]["output_ids"])))
    return [_choice(record, number, answer) for number, answer in (every * n)[:n]]


def _choice(record: Json, number: int, answer: Mapping[str, Any]) -> Json:
    asked = record["openai"]
    text, reason = answer["output"], answer["finish_reason"]
    cut = math.inf
    if text is not None:  # its stops may also come within tokens, or of other ones
        cut = min((at for s in asked["stop"] if (at := text.find(s)) >= 0), default=math.inf)
        text = text if cut == math.inf else text[: int(cut)]
    length = reason == "length" and cut == math.inf
    logprobs = _logprobs(record, number, answer, cut) if "token_texts" in asked else None
    if asked["echo"] and text is not None:
        text = asked["prompt_text"] + text
    return {"text": text, "logprobs": logprobs, "finish_reason": "length" if length else "stop"}


def _logprobs(record: Json, number: int, answer: Mapping[str, Any], cut: float) -> Json:
    """The tokens of a choice, as far as they begin before character `cut` of the answer."""
    asked = record["openai"]
    texts = asked["token_texts"][number]
    offsets = _offsets(texts, 0)
    kept = sum(at < cut for at in offsets)
    before = len(asked["prompt_text"] or "")
    offsets = [before + at for at in offsets[:kept]]
    texts, logprobs = texts[:kept], answer["token_logprobs"][:kept]
    if asked["echo"]:
        own = asked["prompt_token_texts"]
        texts, offsets = own + texts, _offsets(own, 0) + offsets
        logprobs = [None, *record["prompt_token_logprobs"], *logprobs]
    return {
        "tokens": texts,
        "token_logprobs": logprobs,
        "top_logprobs": None,
        "text_offset": None if answer["output"] is None else offsets,
    }


def _offsets(texts: Sequence[str], start: int) -> list[int]:
    """Where each text begins, one behind the other."""
    found = []
    for text in texts:
        found.append(start)
        start += len(text)
    return found
