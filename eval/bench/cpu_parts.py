"""`python -m eval.bench.cpu_parts`: the CPU's fast paths one by one, beside what PyTorch has.

One thread; ours and PyTorch's in turn, round by round, in memory that is warm. The comments of
`kernels/linear_cpu`, `decode/steps` and `decode/logits` rest on it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from eval.record import REPORTS, provenance, write_raw
from eval.render import render
from ftjob.decode.logits import log_sum_exp, some_highest
from ftjob.decode.steps import Kept, look, weights_of
from ftjob.kernels import linear_cpu

CALLS = 10


@dataclass(frozen=True)
class Part:
    """A fast path and what it is measured against, on the same numbers."""

    name: str
    against: str
    ours: Callable[[], torch.Tensor]
    plain: Callable[[], torch.Tensor]


def parts() -> Iterator[Part]:
    """The parts at the demo models' shapes."""
    torch.manual_seed(0)
    for rows, inputs, outputs in ((128, 256, 1024), (128, 1024, 256), (2048, 384, 1536)):
        yield _product(rows, inputs, outputs)
    yield _product(256, 256, 8000)
    for rows, lanes, keys in ((256, 1, 16), (256, 1, 48), (64, 4, 48), (64, 4, 128)):
        yield _attention(rows, lanes, keys)
    yield _few_weights()
    logits = torch.randn(256, 8000) * 4
    for k in (3, 7):
        yield Part(
            f"the {k} highest of 256 x 8000",
            "topk",
            lambda k=k: some_highest(logits, k)[0],  # type: ignore[misc]
            lambda k=k: logits.topk(k).values,  # type: ignore[misc]
        )
    highest, places = logits.max(dim=1, keepdim=True)
    yield Part(
        "log(sum(exp)) of 256 x 8000, the highest known",
        "log_softmax",
        lambda: log_sum_exp(logits, highest),
        lambda: (highest - torch.log_softmax(logits, dim=1).gather(1, places)).squeeze(1),
    )


def _product(rows: int, inputs: int, outputs: int) -> Part:
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5
    packed = linear_cpu.pack(weight, False)
    return Part(
        f"product, {rows} x {inputs} by {inputs} x {outputs}",
        "linear",
        lambda: linear_cpu.linear(x, packed, None),
        lambda: F.linear(x, weight),
    )


def _attention(rows: int, lanes: int, keys: int) -> Part:
    heads, size = 4, 64
    kept = Kept(torch.randn(2, rows, heads, keys, size))
    q, mask = torch.randn(rows * lanes, heads * size), torch.zeros(rows, 1, lanes, keys)

    def fused() -> torch.Tensor:
        k, v = kept.both[:, :, :, :keys]
        own = q.view(rows, lanes, heads, size).transpose(1, 2)
        out = F.scaled_dot_product_attention(own, k, v, attn_mask=mask, scale=0.1)
        return out.transpose(1, 2).reshape(-1, heads * size)

    return Part(
        f"attention of {rows} rows, {lanes} lanes each, over {keys} keys",
        "scaled_dot_product_attention",
        lambda: look(q, kept, rows, keys, mask, 0.1),
        fused,
    )


def _few_weights() -> Part:
    scores = torch.randn(1024, 1, 12)
    return Part(
        "softmax of 1024 x 12",
        "softmax",
        lambda: weights_of(scores),
        lambda: scores.softmax(dim=-1),
    )


def measure(part: Part, rounds: int) -> dict[str, Any]:
    """Seconds a call of both, round by round, and how far their results are apart."""
    apart = float((part.ours() - part.plain()).abs().max())
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        for name, run in (("ours", part.ours), ("plain", part.plain)):
            start = time.perf_counter()
            for _ in range(CALLS):
                run()
            seconds[name].append((time.perf_counter() - start) / CALLS)
    return {"name": part.name, "against": part.against, "apart": apart, **seconds}


def main() -> int:
    """Measure, write raw JSON and report."""
    command = "python -m eval.bench.cpu_parts"
    parser = argparse.ArgumentParser(prog=command, description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = [measure(part, rounds) for part in parts()]
    about = {
        "kind": "parts",
        "title": "The CPU's fast paths beside PyTorch's own",
        "text": [f"One thread, float32, {CALLS} calls a round, ours and PyTorch's in turn."],
        "parts": found,
    }
    write_raw("cpu_parts", {**about, **provenance(f"{command} --rounds {rounds}")})
    (REPORTS / "cpu_parts.md").write_text(render("cpu_parts"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
