"""The generate loop of one device: chunks enter slots, lanes step, finished rows leave.

A stage of P has P micro-batches in turn, so that while one's tokens travel from the last stage back
to the first, the others compute. A turn settles what the micro-batch's last step decided, lets a
chunk enter where slots are free, and steps. All devices of a replica take the same turns: they see
the same chunks in the same order and the same finished flags, which the last stage sends with the
tokens. `device` drives it and passes the answers on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from ftjob.batching import Chunk
from ftjob.comm import Pulse
from ftjob.comm.groups import Wires
from ftjob.comm.threads import Pipe
from ftjob.decode.cache import Cache
from ftjob.decode.search import Advance, SearchRow, make_search
from ftjob.decode.slots import Slot, SlotTable
from ftjob.job import Job
from ftjob.model.layers import Kind
from ftjob.model.stage import Entry, Stage
from ftjob.plan import DeviceSpec
from ftjob.tasks.base import Answer

# What a message between stages is, within its turn.
ENTER, STEP, ENCODED, CHOSEN, KINDS = range(5)


@dataclass(frozen=True)
class Finished:
    """Rows that are done, as a part of their chunk. `answers` are theirs where this device gives
    them; `tokens` counts new tokens, `seconds` the device's own work since it last told."""

    chunk: Chunk
    answers: list[Answer] | None
    tokens: int
    seconds: float


class _MicroBatch:
    """What a device keeps of one micro-batch. `stepped` rows are under way; what was `chosen` for
    them is here on the last stage, elsewhere it comes by the pipe."""

    def __init__(self, job: Job, spec: DeviceSpec, kind: Kind) -> None:
        arch, decode, room = job.source.arch, job.config.decode, job.plan.generation
        assert room is not None
        ends = job.source.specials.ends
        self.table = SlotTable(room.slots, decode.lanes, room.cells, arch.seq2seq)
        layers = spec.last_layer - spec.first_layer
        self.cache = Cache(
            arch, layers, job.plan.tensor, room.slots, decode.lanes, room.cells, kind
        )
        self.search = (
            make_search(decode, ends, room.slots, arch.vocab, kind[1], arch.seq2seq)
            if spec.last
            else None
        )
        self.tokens = torch.zeros(room.slots, decode.lanes, dtype=torch.int64, device=kind[1])
        self.turn = self.stepped = self.steps = self.keys = 0
        self.chosen: Advance | None = None
        self.entry: Entry | None = None
        self.encoded: torch.Tensor | None = None


class Generator:
    """Runs a replica's rows through one device's stage."""

    def __init__(
        self,
        job: Job,
        spec: DeviceSpec,
        stage: Stage,
        wires: Wires,
        kind: Kind,
        pulse: Pulse,
        timed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        assert job.plan.generation is not None
        self._arch, self._start = job.source.arch, job.source.specials.start
        self._spec, self._stage, self._wires, self._pulse = spec, stage, wires, pulse
        self._device, self._room, self._timed = kind[1], job.plan.generation, timed
        self._batches = [_MicroBatch(job, spec, kind) for _ in range(job.plan.pipeline)]
        self._turn = 0
        self._waited = 0.0

    def run(self, take: Callable[[], Chunk | None]) -> Iterator[Finished]:
        """Run the chunks that `take` gives, waiting for each, until it gives None."""
        pending: Chunk | None = None
        over = False
        self._waited, begun = 0.0, time.monotonic()
        while not (over and pending is None and all(b.table.idle for b in self._batches)):
            batch = self._batches[self._turn % len(self._batches)]
            with self._timed():
                left = self._settle(batch)
            for finished in self._told(batch, left):
                seconds = time.monotonic() - begun - self._waited
                self._waited, begun = 0.0, time.monotonic()
                yield Finished(*finished, seconds)
            if pending is None and not over and batch.table.free >= self._room.refill:
                asked = time.monotonic()
                pending = take()
                self._waited += time.monotonic() - asked
                over = pending is None
            with self._timed():
                batch.turn = self._turn
                if pending is not None and batch.table.fits(pending):
                    self._enter(batch, pending)
                    pending = None
                if batch.table.rows:
                    self._step(batch)
            self._turn += 1

    def _settle(self, batch: _MicroBatch) -> list[tuple[int, Slot]]:
        """Act on the micro-batch's last turn: take its tokens over, put entered rows to work, and
        find the rows that are finished. Their slots are still as they were."""
        encoded = None
        if batch.entry is not None and self._arch.seq2seq:
            encoded = batch.encoded if self._spec.last else self._home(batch, ENCODED)
        finished: list[bool] = []
        if batch.stepped:
            chosen = batch.chosen or self._unpacked(self._home(batch, CHOSEN), batch)
            batch.cache.follow(chosen.parents, batch.keys)
            batch.tokens[: batch.stepped] = chosen.ids
            batch.table.advance(batch.stepped)
            batch.steps += 1
            if batch.steps % self._room.stop_every == 0:
                finished = chosen.finished.tolist()
        if batch.entry is not None:
            self._admit(batch, batch.entry, encoded)
        batch.stepped, batch.chosen, batch.entry, batch.encoded = 0, None, None, None
        return [(i, batch.table.rows[i]) for i, done in enumerate(finished) if done]

    def _told(
        self, batch: _MicroBatch, left: list[tuple[int, Slot]]
    ) -> Iterator[tuple[Chunk, list[Answer] | None, int]]:
        """The finished rows, by chunk, with their answers; then close the gaps they leave."""
        by_chunk: dict[int, list[tuple[int, Slot]]] = {}
        for at, slot in left:
            by_chunk.setdefault(slot.sequence, []).append((at, slot))
        for sequence, rows in by_chunk.items():
            chunk = Chunk(sequence, tuple(slot.request for _, slot in rows))
            if not self._spec.answers:
                yield chunk, None, sum(slot.steps for _, slot in rows)
                continue
            assert batch.search is not None
            answers = [batch.search.harvest(at) for at, _ in rows]
            yield chunk, list(answers), sum(len(a.hypotheses[0].ids) for a in answers)
        if left:
            gone = {at for at, _ in left}
            keys = batch.table.keys
            for source, target in batch.table.leave(
                [i in gone for i in range(len(batch.table.rows))]
            ).moves:
                batch.cache.move(source, target, keys)
                batch.tokens[target] = batch.tokens[source]
                if batch.search is not None:
                    batch.search.move(source, target)

    def _enter(self, batch: _MicroBatch, chunk: Chunk) -> None:
        """Read a chunk's rows into the slots behind those at work."""
        first = batch.table.enter(chunk)
        rows = batch.table.entering
        lengths = [slot.source or slot.prefix for slot in rows]
        ids = [t for slot, n in zip(rows, lengths, strict=True) for t in slot.request.ids[:n]]
        entry = Entry(first, torch.tensor(ids, dtype=torch.int64, device=self._device), lengths)
        batch.cache.reserve(*batch.table.room)
        batch.cache.enter(first, lengths)
        begins = [SearchRow.of(slot.request, self._start).context[-1] for slot in rows]
        batch.tokens[first : first + len(rows)] = torch.tensor(
            begins, device=self._device
        ).unsqueeze(1)
        if batch.search is not None:
            batch.search.enter(first, [SearchRow.of(s.request, self._start) for s in rows])
        batch.entry = entry
        if not ids:  # prompts of one token
            return
        x = entry.ids if self._spec.first else self._before(ENTER)
        x = self._stage.enter(x, entry, batch.cache.kept, self._pulse)
        if self._wires.after is not None:
            self._wires.after.put(self._tag(self._turn, ENTER), x, self._pulse)
        elif self._arch.seq2seq:
            batch.encoded = x
            for pipe in self._wires.homes:
                pipe.put(self._tag(self._turn, ENCODED), x, self._pulse)

    def _admit(self, batch: _MicroBatch, entry: Entry, encoded: torch.Tensor | None) -> None:
        if encoded is not None:
            self._stage.admit(encoded, entry, batch.cache.sources)
        batch.table.activate()

    def _step(self, batch: _MicroBatch) -> None:
        """One token of every lane at work."""
        table, n = batch.table, len(batch.table.rows)
        batch.cache.reserve(*table.room)
        batch.stepped, batch.keys = n, table.keys
        view = batch.cache.view(n, table.keys, table.source)
        x = batch.tokens[:n].flatten() if self._spec.first else self._before(STEP)
        x = self._stage.step(x, view, batch.cache.kept, batch.cache.sources, self._pulse)
        if self._wires.after is not None:
            self._wires.after.put(self._tag(self._turn, STEP), x, self._pulse)
            return
        assert batch.search is not None
        chosen = batch.search.advance(self._stage.logits(x), self._wires.group)
        self._pulse()
        batch.chosen = chosen
        if self._wires.homes:
            flags = chosen.finished.unsqueeze(1).to(torch.int64)
            message = torch.cat([chosen.ids, chosen.parents, flags], dim=1)  # [n, 2 W + 1]
            for pipe in self._wires.homes:
                pipe.put(self._tag(self._turn, CHOSEN), message, self._pulse)

    def _unpacked(self, message: torch.Tensor, batch: _MicroBatch) -> Advance:
        width = batch.cache.beams
        return Advance(message[:, :width], message[:, width:-1], message[:, -1].bool())

    def _before(self, kind: int) -> torch.Tensor:
        assert self._wires.before is not None
        return self._taken(self._wires.before, self._tag(self._turn, kind))

    def _home(self, batch: _MicroBatch, kind: int) -> torch.Tensor:
        """What the last stage sent back in the micro-batch's last turn."""
        assert self._wires.home is not None
        return self._taken(self._wires.home, self._tag(batch.turn, kind))

    def _taken(self, pipe: Pipe, tag: int) -> torch.Tensor:
        asked = time.monotonic()
        x = pipe.take(tag, self._pulse)
        self._waited += time.monotonic() - asked
        return x

    def _tag(self, turn: int, kind: int) -> int:
        return turn * KINDS + kind
