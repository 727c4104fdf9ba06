"""OpenAI's batch files for /v1/completions: a request's line as a row's fields, and the lines of
the output and error files out of records.

`prompt_rows` reads requests with it; `results.exports` writes the two files at the end of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

URL = "/v1/completions"
# What a request has where it says nothing.
_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"max_tokens": 16, "temperature": 1.0, "top_p": 1.0, "n": 1}
)
_SAME = ("top_p", "temperature", "presence_penalty", "frequency_penalty", "seed")
_IGNORED = ("model", "user", "metadata")
# What may stand there as long as it asks for nothing.
_IDLE: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "echo": (None, False),
        "stream": (None, False),
        "stream_options": (None,),
        "logit_bias": (None, {}),
        "suffix": (None, ""),
    }
)
MOST_STOPS = 4


def is_request(value: Mapping[str, Any]) -> bool:
    """Whether a line is a request of a batch file."""
    return "custom_id" in value and "body" in value


def fields_of(value: Mapping[str, Any], column: str) -> dict[str, Any]:
    """The fields that a row of ours would have for a request.

    Raises:
        ValueError: for a request that is none, or asks for what a run cannot give.
    """
    if not isinstance(value["custom_id"], str):
        raise ValueError("custom_id must be text")
    if value.get("method", "POST") != "POST" or value.get("url") != URL:
        raise ValueError(f"url={value.get('url')!r:.60}: must be a POST to {URL}")
    body = value["body"]
    if not isinstance(body, Mapping):
        raise ValueError("body must be an object")
    for name, idle in _IDLE.items():
        if body.get(name) not in idle:
            raise ValueError(f"{name}={body[name]!r:.60} is not supported")
    known = ("prompt", "max_tokens", "n", "best_of", "stop", "logprobs")
    for name in body:
        if name not in (*known, *_SAME, *_IDLE, *_IGNORED):
            raise ValueError(f"no such parameter of {URL}: {name!r}")
    asked = {**_DEFAULTS, **{k: v for k, v in body.items() if v is not None}}
    if asked.get("best_of", asked["n"]) != asked["n"]:
        raise ValueError("best_of must be n: answers are not ranked")
    fields = {"id": value["custom_id"], **_prompt(asked.get("prompt"), column)}
    fields |= {name: asked[name] for name in _SAME if name in asked}
    fields |= {"max_new_tokens": asked["max_tokens"], "num_return_sequences": asked["n"]}
    if asked.get("stop"):
        fields["stop_words"] = _stops(asked["stop"])
    if "logprobs" in asked:
        fields["token_logprobs"] = True
    return fields


def _prompt(prompt: Any, column: str) -> dict[str, Any]:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        (prompt,) = prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        raise ValueError(f"prompt has {len(prompt)} prompts: a request is one row, write one each")
    return {"prompt_ids" if isinstance(prompt, list) else column: prompt}


def _stops(stop: Any) -> list[str]:
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise ValueError("stop must be a text, or a list of texts")
    if len(words) > MOST_STOPS:
        raise ValueError(f"stop has {len(words)} texts, must be at most {MOST_STOPS}")
    return words


def repeated(value: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer's line says of the request."""
    body = value["body"] if isinstance(value["body"], Mapping) else {}
    stop = body.get("stop") or []
    return {"model": body.get("model"), "stop": [stop] if isinstance(stop, str) else stop}


def output_line(record: Mapping[str, Any]) -> dict[str, Any]:
    """The line of the output file for an answered request; `openai` in the record marks it."""
    asked = record["openai"]
    every: Sequence[Mapping[str, Any]] = record.get("hypotheses") or [record]
    new = sum(len(h["output_ids"]) for h in every)
    body = {
        "id": f"cmpl-{record['key']}",
        "object": "text_completion",
        "model": asked["model"],
        "choices": [_choice(i, h, asked["stop"]) for i, h in enumerate(every)],
        "usage": {
            "prompt_tokens": record["tokens"],
            "completion_tokens": new,
            "total_tokens": record["tokens"] + new,
        },
    }
    response = {"status_code": 200, "request_id": record["key"], "body": body}
    return {
        "id": f"batch_req_{record['key']}",
        "custom_id": record["id"],
        "response": response,
        "error": None,
    }


def _choice(index: int, answer: Mapping[str, Any], stops: Sequence[str]) -> dict[str, Any]:
    text, reason = answer["output"], answer["finish_reason"]
    if reason == "stop" and text is not None:
        stop = next((s for s in stops if text.endswith(s)), "")
        text = text.removesuffix(stop)
    logprobs = None
    if "token_logprobs" in answer:
        logprobs = {
            "tokens": [f"token_id:{i}" for i in answer["output_ids"]],
            "token_logprobs": answer["token_logprobs"],
            "top_logprobs": None,
        }
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": "length" if reason == "length" else "stop",
    }


def error_line(record: Mapping[str, Any]) -> dict[str, Any]:
    """The line of the error file for a request without an answer."""
    return {
        "id": f"batch_req_{record['key']}",
        "custom_id": record["id"],
        "response": None,
        "error": {
            "code": "invalid_request",
            "message": record["error"] or record.get("skipped"),
            "line": record["line"],
        },
    }
