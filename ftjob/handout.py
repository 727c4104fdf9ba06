"""Rank 0's hand-out: forms chunks and gives each to the replica with the least tokens to do.

A replica holds a chunk for each of its stages and one ahead (on GPUs two), so that it never waits
for us and a slow one holds nobody back; one that generates holds as many rows as it has slots, and
a chunk. Chunks go to every rank of the replica in one order; `rank` runs them there and tells when
the answers are on disk.
"""

from __future__ import annotations

from collections.abc import Iterable

from ftjob.batching import Chunk, chunks
from ftjob.config.groups import BatchConfig
from ftjob.link import Done, Link, Work
from ftjob.plan import Plan
from ftjob.tasks.base import Request


def chunks_ahead(plan: Plan) -> int:
    """Chunks that a replica which scores holds: one for each stage and one ahead. A GPU is given
    its next chunk while it computes one, and then has none waiting."""
    return plan.pipeline + (2 if plan.machine.device == "cuda" else 1)


class Handout:
    """Chunks in flight, by replica."""

    def __init__(
        self, plan: Plan, batch: BatchConfig, requests: Iterable[Request], link: Link
    ) -> None:
        self._link = link
        self._ahead = chunks_ahead(plan)
        self._slots = plan.generation.slots * plan.pipeline if plan.generation is not None else None
        self._ranks = [plan.ranks_of_replica(d) for d in range(plan.data)]
        self._flying: list[dict[int, Chunk]] = [{} for _ in self._ranks]
        self._rows: list[dict[int, int]] = [{} for _ in self._ranks]  # of each chunk, not yet done
        self._waiting = chunks(
            requests,
            window=batch.window,
            max_tokens=plan.max_tokens,
            by_length=batch.order == "length",
            generation=plan.generation,
        )
        self.given = 0  # chunks
        self.ended = self._closed = False

    def step(self) -> None:
        """Fill every replica up, the emptiest first."""
        while not self.ended:
            replica = min(range(len(self._flying)), key=self._load)
            if self._full(replica):
                return
            chunk = next(self._waiting, None)
            if chunk is None:
                self.close()
                return
            self.given += 1
            self._flying[replica][chunk.sequence] = chunk
            self._rows[replica][chunk.sequence] = len(chunk.requests)
            self._send(replica, chunk)

    def close(self) -> None:
        """Tell every replica, once, that there is no more: what they hold is the last."""
        self.ended = True
        if not self._closed:
            self._closed = True
            for replica in range(len(self._ranks)):
                self._send(replica, None)

    def _send(self, replica: int, chunk: Chunk | None) -> None:
        for rank in self._ranks[replica]:
            self._link.send(rank, Work(replica, chunk))

    def _full(self, replica: int) -> bool:
        """A replica that waits for a chunk to fill its slots must get it: it may have rows under
        way that it cannot finish before."""
        if self._slots is None:
            return len(self._flying[replica]) >= self._ahead
        return sum(self._rows[replica].values()) > self._slots

    def _load(self, replica: int) -> tuple[bool, int]:
        return self._full(replica), sum(c.tokens for c in self._flying[replica].values())

    def done(self, message: Done) -> None:
        """Answers to rows of a chunk are on disk."""
        rows = self._rows[message.replica]
        rows[message.sequence] -= message.rows
        if not rows[message.sequence]:
            del rows[message.sequence], self._flying[message.replica][message.sequence]

    @property
    def idle(self) -> bool:
        """Whether no chunk is in flight."""
        return not any(self._flying)
