"""Forms chunks: the batches of requests that rank 0 hands out and a device runs in one go.

Requests come in windows, as `tasks` prepared them; within a window they are sorted by length, so
that rows of a chunk are alike and the longest chunk comes first. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ftjob.tasks.base import ScoreRequest


@dataclass(frozen=True)
class Chunk:
    """Requests that run as one batch. `sequence` numbers chunks in the order of their forming."""

    sequence: int
    requests: tuple[ScoreRequest, ...]

    @property
    def tokens(self) -> int:
        """Real tokens of all rows."""
        return sum(len(r.ids) for r in self.requests)


def windows(requests: Iterable[ScoreRequest], size: int) -> Iterator[list[ScoreRequest]]:
    """Consecutive lists of up to `size` requests."""
    window: list[ScoreRequest] = []
    for request in requests:
        window.append(request)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def chunks(
    requests: Iterable[ScoreRequest], *, window: int, max_tokens: int, by_length: bool
) -> Iterator[Chunk]:
    """Chunks of at most `max_tokens` tokens; a longer row is a chunk of its own."""
    sequence = 0
    for batch in windows(requests, window):
        if by_length:
            batch.sort(key=lambda r: -len(r.ids))
        held: list[ScoreRequest] = []
        tokens = 0
        for request in batch:
            if held and tokens + len(request.ids) > max_tokens:
                yield Chunk(sequence, tuple(held))
                sequence, held, tokens = sequence + 1, [], 0
            held.append(request)
            tokens += len(request.ids)
        if held:
            yield Chunk(sequence, tuple(held))
            sequence += 1
