"""Teacher-forced scoring of one chunk: packed rows in, log-probabilities of their tokens out.

A row's last token is never an input, and logits are made at the scored positions only, in slices
so that a large vocabulary stays small in memory. `device` calls it; the answers go to the rank's
main thread.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ftjob.batching import Chunk
from ftjob.comm import Comm
from ftjob.model.decoder import DecoderStage
from ftjob.model.packing import Packing
from ftjob.tasks.base import Scored, ScoreRequest

LOGIT_BYTES = 1 << 28


@torch.inference_mode()
def score_chunk(
    stage: DecoderStage,
    chunk: Chunk,
    device: torch.device,
    pulse: Callable[[], None],
    before: torch.Tensor | None = None,
) -> torch.Tensor | list[Scored]:
    """A chunk through one stage. `before` is what the stage before gave, [N, H]; None on the first.

    Gives [N, H] for the next stage, or on the last one the answers, in the chunk's order.
    """
    requests = [r for r in chunk.requests if isinstance(r, ScoreRequest)]
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
    rows = [requests[i] for i in order]
    packing = Packing.of([len(r.ids) - 1 for r in rows], [r.scored_from - 1 for r in rows], device)
    if before is None:
        before = torch.tensor([t for r in rows for t in r.ids[:-1]], device=device)
    hidden: torch.Tensor = stage(before, packing, pulse)
    if not stage.last:
        return hidden
    targets = torch.tensor([t for r in rows for t in r.ids[r.scored_from :]], device=device)
    step = max(1, LOGIT_BYTES // (4 * stage.head_weight.shape[0]))
    parts = []
    for start in range(0, hidden.shape[0], step):
        logits = stage.logits(hidden[start : start + step])
        parts.append(token_stats(logits, targets[start : start + step], stage.group))
        pulse()
    logprobs, best, gaps = (torch.cat(column).tolist() for column in zip(*parts, strict=True))
    answers: dict[int, Scored] = {}
    at = 0
    for i, request in zip(order, rows, strict=True):
        end = at + len(request.ids) - request.scored_from
        answers[i] = Scored(logprobs[at:end], best[at:end], gaps[at:end])
        at = end
    return [answers[i] for i in range(len(order))]


def token_stats(
    logits: torch.Tensor, targets: torch.Tensor, group: Comm
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From f32 logits [M, V/T] of a vocabulary cut over `group`, and target ids [M]:
    log-probability of the target [M], the most likely id [M] (the lowest of equals), and the gap
    of the two highest logits [M]. Overwrites `logits`.
    """
    columns = logits.shape[1]
    local = targets - group.rank * columns
    held = (local >= 0) & (local < columns)
    at_target = logits.gather(1, local.where(held, 0).unsqueeze(1)).squeeze(1)
    at_target = group.all_reduce(at_target.where(held, 0.0))
    best = logits.argmax(dim=1, keepdim=True)
    top = logits.gather(1, best).squeeze(1)
    highest = group.all_reduce(top.clone(), "max")
    weights = group.all_reduce((logits - highest.unsqueeze(1)).exp_().sum(dim=1))
    logprobs = at_target - highest - weights.log()
    second = logits.scatter_(1, best, -torch.inf).amax(dim=1)
    best = best.squeeze(1) + group.rank * columns
    tops, seconds, ids = (group.all_gather(t) for t in (top, second, best))  # [T, M]
    owner = torch.where(tops == highest, ids, torch.iinfo(torch.int64).max).argmin(dim=0)
    winner = ids.gather(0, owner.unsqueeze(0)).squeeze(0)
    others = tops.scatter(0, owner.unsqueeze(0), -torch.inf)
    runner_up = torch.maximum(others.amax(dim=0), seconds.amax(dim=0))
    return logprobs, winner, highest - runner_up
