"""OpenAI's batch files for /v1/completions: a request's line as the fields of rows, one a prompt.

`prompt_rows` reads requests with it; `results.openai_files` writes their answers at the end of a
run, by what `repeated` leaves in each record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ftjob.config.groups import MOST_NEW_TOKENS

URL = "/v1/completions"
# What a request has where it says nothing.
_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"max_tokens": 16, "temperature": 1.0, "top_p": 1.0, "n": 1}
)
_SAME = ("top_p", "temperature", "presence_penalty", "frequency_penalty", "seed")
_KNOWN = ("prompt", "max_tokens", "n", "best_of", "stop", "logprobs", "echo")
_IGNORED = ("model", "user", "metadata")
# What may stand there as long as it asks for nothing.
_IDLE: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "stream": (None, False),
        "stream_options": (None,),
        "logit_bias": (None, {}),
        "suffix": (None, ""),
    }
)
# OpenAI's own limits
MOST_STOPS, MOST_PROMPTS, MOST_ANSWERS, MOST_LOGPROBS = 4, 2048, 128, 5
# Only such a line can be a request of several prompts; names may be escaped.
_SEVERAL = re.compile(rb'"prompt"\s*:\s*\[\s*["\[]|\\u00')


def is_request(value: Mapping[str, Any]) -> bool:
    """Whether a line is a request of a batch file."""
    return "custom_id" in value and "body" in value


def may_be_several(raw: bytes) -> bool:
    """Whether a line may be a request of several prompts; at a glance."""
    return _SEVERAL.search(raw) is not None


def fields_of(value: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """The fields that rows of ours would have for a request, one row a prompt.

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
    for name in body:
        if name not in (*_KNOWN, *_SAME, *_IDLE, *_IGNORED):
            raise ValueError(f"no such parameter of {URL}: {name!r}")
    asked = {**_DEFAULTS, **{k: v for k, v in body.items() if v is not None}}
    most = asked["max_tokens"]
    if type(most) is not int or not 1 <= most <= MOST_NEW_TOKENS:
        raise ValueError(f"max_tokens={most!r:.60}: must be from 1 to {MOST_NEW_TOKENS}")
    fields = {name: asked[name] for name in _SAME if name in asked}
    fields |= {"max_new_tokens": most, "num_return_sequences": _answers(asked)}
    if asked.get("stop"):
        fields["stop_words"] = _stops(asked["stop"])
    fields |= _logprobs(asked)
    prompts = _prompts(asked.get("prompt"), column)
    ids = part_ids(value["custom_id"], len(prompts))
    return [{"id": i, **prompt, **fields} for i, prompt in zip(ids, prompts, strict=True)]


def part_ids(custom_id: str, prompts: int) -> list[str]:
    """The ids of the rows of a request: its own, with the prompt's number where it has several."""
    return [custom_id] if prompts == 1 else [f"{custom_id}#{part}" for part in range(prompts)]


def _prompts(prompt: Any, column: str) -> list[dict[str, Any]]:
    """The prompt of each row: texts, or lists of token ids."""
    several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))
    every = prompt if several else [prompt]
    if prompt == [] or len(every) > MOST_PROMPTS:
        raise ValueError(f"prompt has {len(prompt)} prompts, must be from 1 to {MOST_PROMPTS}")
    if len({type(p) for p in every}) > 1:
        raise ValueError("prompt must be a list of texts, or one of lists of token ids")
    return [{"prompt_ids" if isinstance(p, list) else column: p} for p in every]


def _answers(asked: Mapping[str, Any]) -> int:
    """How many answers are drawn: best_of, of which the n best are given. Without draws all would
    be alike, and one is made."""
    n, best_of = asked["n"], asked.get("best_of", asked["n"])
    for name, value in (("n", n), ("best_of", best_of)):
        if type(value) is not int or not 1 <= value <= MOST_ANSWERS:
            raise ValueError(f"{name}={value!r:.60}: must be from 1 to {MOST_ANSWERS}")
    if best_of < n:
        raise ValueError(f"best_of={best_of} is less than n={n}")
    return 1 if asked["temperature"] == 0 or asked["top_p"] == 0 else int(best_of)


def _stops(stop: Any) -> list[str]:
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise ValueError("stop must be a text, or a list of texts")
    if len(words) > MOST_STOPS:
        raise ValueError(f"stop has {len(words)} texts, must be at most {MOST_STOPS}")
    return [word for word in words if word]


def _logprobs(asked: Mapping[str, Any]) -> dict[str, Any]:
    echo, logprobs = asked.get("echo", False), asked.get("logprobs")
    if type(echo) is not bool:
        raise ValueError(f"echo={echo!r:.60}: must be true or false")
    if logprobs is None:
        return {}
    if type(logprobs) is not int or not 0 <= logprobs <= MOST_LOGPROBS:
        raise ValueError(f"logprobs={logprobs!r:.60}: must be from 0 to {MOST_LOGPROBS}")
    return {"token_logprobs": True, **({"prompt_logprob": True} if echo else {})}


def repeated(value: Mapping[str, Any], part: int, parts: int) -> dict[str, Any]:
    """What the record of a request's prompt keeps of the request."""
    body = value["body"] if isinstance(value["body"], Mapping) else {}
    stop = body.get("stop") or []
    return {
        "custom_id": value["custom_id"],
        "model": body.get("model"),
        "prompt": part,
        "prompts": parts,
        "n": body.get("n") or 1,
        "stop": [stop] if isinstance(stop, str) else stop,
        "echo": bool(body.get("echo")),
    }
