"""Rank 0's hand-out: forms chunks and gives each to the replica with the least tokens to do.

A replica holds a chunk for each of its stages and one ahead, so that it never waits for us and a
slow one holds nobody back. Chunks go to every rank of the replica in one order; `rank` runs them
there and tells when the answers are on disk.
"""

from __future__ import annotations

from collections.abc import Iterable

from ftjob.batching import Chunk, chunks
from ftjob.config.groups import BatchConfig
from ftjob.link import Done, Link, Work
from ftjob.plan import Plan
from ftjob.tasks.base import ScoreRequest


class Handout:
    """Chunks in flight, by replica."""

    def __init__(
        self, plan: Plan, batch: BatchConfig, requests: Iterable[ScoreRequest], link: Link
    ) -> None:
        self._link = link
        self._ahead = plan.pipeline + 1
        self._ranks = [plan.ranks_of_replica(d) for d in range(plan.data)]
        self._flying: list[dict[int, Chunk]] = [{} for _ in self._ranks]
        self._waiting = chunks(
            requests,
            window=batch.window,
            max_tokens=plan.max_tokens,
            by_length=batch.order == "length",
        )
        self.ended = False

    def step(self) -> None:
        """Fill every replica up, the emptiest first."""
        while not self.ended:
            replica = min(range(len(self._flying)), key=self._load)
            if self._full(replica):
                return
            chunk = next(self._waiting, None)
            if chunk is None:
                self.ended = True
                return
            self._flying[replica][chunk.sequence] = chunk
            for rank in self._ranks[replica]:
                self._link.send(rank, Work(replica, chunk))

    def _full(self, replica: int) -> bool:
        return len(self._flying[replica]) >= self._ahead

    def _load(self, replica: int) -> tuple[bool, int]:
        return self._full(replica), sum(c.tokens for c in self._flying[replica].values())

    def done(self, message: Done) -> None:
        """A chunk's answers are on disk."""
        del self._flying[message.replica][message.sequence]

    @property
    def idle(self) -> bool:
        """Whether no chunk is in flight."""
        return not any(self._flying)
