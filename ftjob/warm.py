"""The rows that a device warms up on before its first chunk, so that libraries start, kernels are
compiled and memory is found outside of the measured time. `device` runs them like any others.
"""

from __future__ import annotations

from ftjob.batching import Chunk
from ftjob.model.arch import Arch
from ftjob.tasks.base import GenerateRequest, Row, ScoreRequest

# On a GPU the first chunk of a size looks for memory and for the fastest products of that size:
# scoring warms up there on so many tokens at most, in rows of so many; on a CPU on one row of 8.
TOKENS, LENGTH = 16384, 128
SHORT = 8
# Tokens of a row that are scored: as many positions as words have in chunks of that size.
SCORED = 4
_ROW = Row(0, 0, b"", "")


def to_score(arch: Arch, max_tokens: int, gpu: bool) -> Chunk:
    """Rows to be scored at their last tokens: at most `max_tokens` tokens in all, or one row."""
    length = min(LENGTH if gpu else SHORT, (arch.positions or LENGTH) + 1)
    rows = max(1, min(TOKENS, max_tokens) // length) if gpu else 1
    first = max(1, length - SCORED)
    return Chunk(-1, (ScoreRequest(_ROW, "", _ids(arch, length), first, first),) * rows)


def to_continue(arch: Arch) -> Chunk:
    """A row to be continued."""
    return Chunk(-1, (GenerateRequest(_ROW, "", _ids(arch, SHORT), 2),))


def _ids(arch: Arch, count: int) -> list[int]:
    return [i % arch.vocab for i in range(count)]
