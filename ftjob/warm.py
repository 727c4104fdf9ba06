"""The rows that a device warms up on before its first chunk, so that libraries start, kernels are
compiled and memory is found outside of the measured time. `device` runs them like any others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ftjob.batching import Chunk
from ftjob.config.groups import DecodeConfig
from ftjob.model.arch import Arch
from ftjob.model.fill import Fill
from ftjob.plan import SCORED_TOKENS, Plan
from ftjob.plan_generation import Generation, rungs
from ftjob.tasks.base import GenerateRequest, Row, ScoreRequest

# On a GPU the first chunk of a size looks for memory and for the fastest products of that size:
# scoring warms up there on `SCORED_TOKENS` at most, in rows of so many; on a CPU on one row of 8.
LENGTH = 128
SHORT = 8
# A pass over entering rows has so many of them at least, so that few are long.
ENTERING = 128
# Tokens of a row that are scored: as many positions as words have in chunks of that size.
SCORED = 4
_ROW = Row(0, 0, b"", "")


def to_score(arch: Arch, max_tokens: int, gpu: bool) -> Chunk:
    """Rows to be scored at their last tokens: at most `max_tokens` tokens in all, or one row."""
    length = min(LENGTH if gpu else SHORT, (arch.positions or LENGTH) + 1)
    # a row's last token is not read
    rows = max(1, min(SCORED_TOKENS, max_tokens) // (length - 1)) if gpu else 1
    first = max(1, length - SCORED)
    return Chunk(-1, (ScoreRequest(_ROW, "", _ids(arch, length), first, first),) * rows)


def to_continue(arch: Arch, plan: Plan, decode: DecodeConfig, gpu: bool) -> Iterator[Chunk]:
    """A row to be continued, or on a GPU rows whose steps are of every kind there is, so that all
    are captured; then, where passes over entering rows have few sizes, a chunk of each for the
    micro-batch of every stage."""
    room = plan.generation
    assert room is not None
    one = Chunk(-1, (GenerateRequest(_ROW, "", _ids(arch, SHORT), 2),))
    leaving = _leaving(arch, plan, room, decode) if gpu else []
    yield from leaving or [one]
    for size in Fill(plan.pass_step, room.refill).sizes(plan.max_tokens):
        for stage in range(plan.pipeline):
            if rows := _entering(arch, room, size, stage):
                yield Chunk(-1, tuple(rows))


def _entering(arch: Arch, room: Generation, size: int, stage: int) -> list[GenerateRequest]:
    """Rows of `size` tokens to be read, each continued by one; none where they cannot be read at
    once. The last token of a prompt is not read."""
    besides = 0 if arch.seq2seq else 1
    longest = size if arch.positions is None else arch.positions - besides
    rows = min(room.refill, max(ENTERING, -(-size // longest)))
    each, more = divmod(size, rows)
    if each + (more > 0) > longest or size + rows * (besides + room.beams) > room.cells:
        return []
    return [
        GenerateRequest(_ROW, f"{size} {stage} {i}", _ids(arch, each + (i < more) + besides), 1)
        for i in range(rows)
    ]


def _leaving(arch: Arch, plan: Plan, room: Generation, decode: DecodeConfig) -> list[Chunk]:
    """Rows for all slots of every stage's micro-batch, a chunk a turn, that leave by and by: so
    steps have every number of rows once. Row j is there as long as more than j are to be, and a
    chunk that came i turns later makes i steps less. None where positions or cells are too few."""
    ladder, chunks = rungs(room.slots), room.slots // room.refill
    last = [chunks + room.stop_every * sum(rung > j for rung in ladder) for j in range(room.slots)]
    longest = SHORT + room.beams * last[0] + room.overrun
    if SHORT + last[0] > (arch.positions or math.inf) or room.slots * longest > room.cells:
        return []
    # nothing ends a row before
    options = replace(decode, end_id=(), stop_words=None, bad_words=None, prompt_logprob=False)
    found = []
    for i in range(chunks):
        of_chunk = range(i * room.refill, (i + 1) * room.refill)
        for stage in range(plan.pipeline):
            rows = [(f"leaves {stage} {j}", _ids(arch, SHORT), last[j] - i) for j in of_chunk]
            every = (GenerateRequest(_ROW, *row, options=options) for row in rows)
            found.append(Chunk(-1, tuple(every)))
    return found


def _ids(arch: Arch, count: int) -> list[int]:
    return [i % arch.vocab for i in range(count)]
