"""Teacher-forced scoring of one chunk: packed rows in, log-probabilities of their tokens out.

A row's last token is never an input, and logits are made at the scored positions only, in slices
so that a large vocabulary stays small in memory. A GPU is given its work and is not waited for:
`device` launches the next chunk before it takes the answers, which go to the rank's main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, pairwise

import numpy as np
import torch

from ftjob import kernels
from ftjob.batching import Chunk
from ftjob.comm import Comm
from ftjob.decode.graphs import Passes
from ftjob.decode.looks import Fetched
from ftjob.model.decoder import DecoderStage
from ftjob.model.fill import PADDED
from ftjob.model.packing import Packing
from ftjob.plan_memory import LOGIT_BYTES
from ftjob.tasks.base import Scored, ScoreRequest

# Seconds between two looks at whether a GPU is done.
LOOK_S = 0.0002
# log-probabilities, most likely ids, gaps: [M] each
Stats = tuple[torch.Tensor, ...]


class Scoring:
    """The answers to a chunk, as soon as its device has made them."""

    def __init__(
        self, requests: Sequence[ScoreRequest], order: Sequence[int], stats: Stats
    ) -> None:
        self._requests, self._order = requests, order
        self._columns = [Fetched(column) for column in stats]

    @property
    def done(self) -> bool:
        """Whether `answers` need not wait."""
        return all(column.here for column in self._columns)

    def answers(self, check: Callable[[], None]) -> list[Scored]:
        """In the chunk's order. `check` is called again and again while the device works; it may
        raise, but it must be no sign of life: a device that hangs has none."""
        while not self.done:
            check()
            time.sleep(LOOK_S)
        columns = [column.host.tolist() for column in self._columns]
        rows = [self._requests[i] for i in self._order]
        ends = accumulate((len(r.ids) - r.scored_from for r in rows), initial=0)
        found = [Scored(*(c[a:b] for c in columns)) for a, b in pairwise(ends)]
        answers = dict(zip(self._order, found, strict=True))
        return [answers[i] for i in range(len(rows))]


class Passed:
    """A chunk that went on to the next stage."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if hidden.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def done(self) -> bool:
        """Whether the device has made what it passed on."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def answers(self, check: Callable[[], None]) -> list[Scored]:
        """None, when it is done; `check` as in `Scoring`."""
        while not self.done:
            check()
            time.sleep(LOOK_S)
        return []


def packed_tokens(chunk: Chunk, device: torch.device, passes: Passes | None = None) -> int:
    """How many tokens a chunk has in a stage, in one of these passes."""
    count = sum(len(r.ids) - 1 for r in chunk.requests)
    fill = PADDED if passes is None else passes.arena.fill
    return fill.tokens(count) if kernels.used(device) else count


@torch.inference_mode()
def score_chunk(
    stage: DecoderStage,
    chunk: Chunk,
    device: torch.device,
    pulse: Callable[[], None],
    before: torch.Tensor | None = None,
    passes: Passes | None = None,
) -> torch.Tensor | Scoring:
    """A chunk through one stage. `before` is what the stage before gave, [N, H]; None on the first.

    Gives [N, H] for the next stage, or on the last one the answers; on a GPU both are still being
    computed, and the former is good until the next chunk.
    """
    requests = [r for r in chunk.requests if isinstance(r, ScoreRequest)]
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
    rows = [requests[i] for i in order]
    ids = np.fromiter(chain.from_iterable(r.ids[:-1] for r in rows), np.int64)
    targets = np.fromiter(chain.from_iterable(r.ids[r.scored_from :] for r in rows), np.int64)
    passes = passes or Passes(device)
    packing, (inputs, wanted) = Packing.beside(
        [ids, targets],
        [len(r.ids) - 1 for r in rows],
        [r.scored_from - 1 for r in rows],
        device,
        fill=True,
        arena=passes.arena,
    )

    def through(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden: torch.Tensor = stage(x, packing, pulse)
        return _stats(stage, hidden, wanted, pulse) if stage.last else (hidden,)

    moves = before is not None
    found = passes.run(packing.place, through, inputs if before is None else before, moves=moves)
    return Scoring(requests, order, found) if stage.last else found[0]


def _stats(
    stage: DecoderStage, hidden: torch.Tensor, wanted: torch.Tensor, pulse: Callable[[], None]
) -> Stats:
    """Of the tokens `wanted` at hidden [M, H]."""
    step = max(1, LOGIT_BYTES // (4 * stage.head_weight.shape[0]))
    parts = []
    for own, asked in zip(torch.split(hidden, step), torch.split(wanted, step), strict=True):
        parts.append(token_stats(stage.scores(own), asked, stage.group, stage.true_columns))
        pulse()
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def token_stats(
    scores: torch.Tensor, targets: torch.Tensor, group: Comm, true: int | None = None
) -> Stats:
    """From logits [M, V/T] of a vocabulary cut over `group`, and target ids [M]: log-probability of
    the target [M] f32, the most likely id [M] (the lowest of equals), and the gap of the two
    highest logits [M] f32. Columns from `true` on are padding. May overwrite `scores`.
    """
    columns = scores.shape[1]
    local = targets - group.rank * columns
    at_target, top, second, total, best = _row_stats(
        scores, local, columns if true is None else true
    )
    if group.size == 1:
        return at_target - top - total.log(), best, top - second
    at_target = group.all_reduce(at_target)
    highest = group.all_reduce(top.clone(), "max")
    weights = group.all_reduce(total * (top - highest).exp())
    logprobs = at_target - highest - weights.log()
    best = best + group.rank * columns
    tops, seconds, ids = (group.all_gather(t) for t in (top, second, best))  # [T, M]
    owner = torch.where(tops == highest, ids, torch.iinfo(torch.int64).max).argmin(dim=0)
    winner = ids.gather(0, owner.unsqueeze(0)).squeeze(0)
    others = tops.scatter(0, owner.unsqueeze(0), -torch.inf)
    runner_up = torch.maximum(others.amax(dim=0), seconds.amax(dim=0))
    return logprobs, winner, highest - runner_up


def _row_stats(
    scores: torch.Tensor, targets: torch.Tensor, true: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `kernels/token_stats.row_stats` gives, there by the kernel."""
    if kernels.used(scores.device):
        # imported here because a machine without a GPU may be without triton
        from ftjob.kernels.token_stats import row_stats

        return row_stats(scores, targets, true)
    logits = scores.float()
    if true < logits.shape[1]:
        logits[:, true:] = -torch.inf
    held = (targets >= 0) & (targets < true)
    at_target = logits.gather(1, targets.where(held, 0).unsqueeze(1)).squeeze(1).where(held, 0.0)
    best = logits.argmax(dim=1, keepdim=True)
    top = logits.gather(1, best)
    total = (logits - top).exp_().sum(dim=1)
    top = top.squeeze(1)
    second = logits.scatter_(1, best, -torch.inf).amax(dim=1)
    return at_target, top, second, total.where(top > -torch.inf, 0.0), best.squeeze(1)
