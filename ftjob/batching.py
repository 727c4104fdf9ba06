"""Forms chunks: the batches of requests that rank 0 hands out and a device runs in one go.

Requests come in windows, as `tasks` prepared them; within a window they are sorted by length, so
that rows of a chunk are alike and the longest chunk comes first. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ftjob.plan_generation import Generation
from ftjob.tasks.base import GenerateRequest, Request, ScoreRequest


@dataclass(frozen=True)
class Chunk:
    """Requests that run as one batch. `sequence` numbers chunks in the order of their forming."""

    sequence: int
    requests: tuple[Request, ...]

    @property
    def tokens(self) -> int:
        """Real tokens of all rows."""
        return sum(len(r.ids) for r in self.requests)


def halves(chunk: Chunk) -> tuple[Chunk, Chunk]:
    """A chunk of several rows as two."""
    middle = len(chunk.requests) // 2
    parts = chunk.requests[:middle], chunk.requests[middle:]
    return Chunk(chunk.sequence, parts[0]), Chunk(chunk.sequence, parts[1])


def windows(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Consecutive lists of up to `size` requests."""
    window: list[Request] = []
    for request in requests:
        window.append(request)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def chunks(
    requests: Iterable[Request],
    *,
    window: int,
    max_tokens: int,
    by_length: bool,
    generation: Generation | None = None,
) -> Iterator[Chunk]:
    """Chunks of at most `max_tokens` tokens that are read (the last one of a scored row is not); a
    longer row is a chunk of its own. Where rows are continued, a chunk also has no more of them
    than enter at once and fit the cache."""
    sequence = 0
    for batch in windows(requests, window):
        if by_length:
            batch.sort(key=lambda r: -len(r.ids))
        held: list[Request] = []
        tokens = longest = most = 0
        for request in batch:
            read = len(request.ids) - isinstance(request, ScoreRequest)
            full = tokens + read > max_tokens
            if generation is not None and isinstance(request, GenerateRequest):
                longest = max(longest, len(request.ids))
                most = max(most, request.max_new_tokens)
                columns = longest + generation.beams * most
                cells = (len(held) + 1) * columns
                full = full or len(held) == generation.refill or cells > generation.cells
            if held and full:
                yield Chunk(sequence, tuple(held))
                sequence, held, tokens = sequence + 1, [], 0
                longest, most = len(request.ids), 0
                if isinstance(request, GenerateRequest):
                    most = request.max_new_tokens
            held.append(request)
            tokens += read
        if held:
            yield Chunk(sequence, tuple(held))
            sequence += 1


def widest(rows: Sequence[Request], beams: int) -> int:
    """Columns of cache that each of these rows may take: the longest prompt or source, and
    the most new tokens of each beam, which another row may have."""
    held = [r for r in rows if isinstance(r, GenerateRequest)]
    return max(len(r.ids) for r in held) + beams * max(r.max_new_tokens for r in held)
