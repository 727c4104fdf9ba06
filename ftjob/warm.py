"""The rows that a device warms up on before its first chunk, so that libraries start, kernels are
compiled and memory is found outside of the measured time. `device` runs them like any others.
"""

from __future__ import annotations

from collections.abc import Iterator

from ftjob.batching import Chunk
from ftjob.model.arch import Arch
from ftjob.model.fill import Fill
from ftjob.plan import Plan
from ftjob.plan_generation import Generation
from ftjob.tasks.base import GenerateRequest, Row, ScoreRequest

# On a GPU the first chunk of a size looks for memory and for the fastest products of that size:
# scoring warms up there on so many tokens at most, in rows of so many; on a CPU on one row of 8.
TOKENS, LENGTH = 16384, 128
SHORT = 8
# A pass over entering rows has so many of them at least, so that few are long.
ENTERING = 128
# Tokens of a row that are scored: as many positions as words have in chunks of that size.
SCORED = 4
_ROW = Row(0, 0, b"", "")


def to_score(arch: Arch, max_tokens: int, gpu: bool) -> Chunk:
    """Rows to be scored at their last tokens: at most `max_tokens` tokens in all, or one row."""
    length = min(LENGTH if gpu else SHORT, (arch.positions or LENGTH) + 1)
    rows = max(1, min(TOKENS, max_tokens) // length) if gpu else 1
    first = max(1, length - SCORED)
    return Chunk(-1, (ScoreRequest(_ROW, "", _ids(arch, length), first, first),) * rows)


def to_continue(arch: Arch, plan: Plan) -> Iterator[Chunk]:
    """A row to be continued; then, where passes over entering rows have few sizes, a chunk of each
    for the micro-batch of every stage."""
    room = plan.generation
    assert room is not None
    yield Chunk(-1, (GenerateRequest(_ROW, "", _ids(arch, SHORT), 2),))
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


def _ids(arch: Arch, count: int) -> list[int]:
    return [i % arch.vocab for i in range(count)]
