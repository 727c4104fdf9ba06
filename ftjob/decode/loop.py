"""The generate loop of one device: chunks enter, lanes step, finished rows leave.

A stage of P has P micro-batches in turn, so that while one's tokens travel from the last stage back
to the first, the others compute. A turn settles what the micro-batch's last step decided, lets a
chunk enter where there is room, and steps. All devices of a replica take the same turns: they see
the same chunks in the same order and the same finished flags, which the last stage sends with the
tokens. `device` drives it and passes the answers on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from ftjob.batching import Chunk
from ftjob.comm import Pulse
from ftjob.comm.groups import Wires
from ftjob.comm.threads import Pipe
from ftjob.decode.cache import Cache
from ftjob.decode.cohorts import Books, Left
from ftjob.decode.scoring import score_chunk
from ftjob.decode.search import Advance, SearchRow, make_search
from ftjob.job import Job
from ftjob.model.decoder import DecoderStage
from ftjob.model.layers import Kind
from ftjob.model.stage import Entry, Stage
from ftjob.plan import DeviceSpec
from ftjob.tasks.base import Answer, GenerateRequest, ScoreRequest

# What a message between stages is, within its turn.
ENTER, STEP, ENCODED, CHOSEN, PROMPTS, KINDS = range(6)


@dataclass(frozen=True)
class Finished:
    """Rows that are done, as a part of their chunk. `answers` are theirs where this device gives
    them; `tokens` counts new tokens, `seconds` the device's own work since it last told."""

    chunk: Chunk
    answers: list[Answer] | None
    tokens: int
    seconds: float


class _MicroBatch:
    """What a device keeps of one micro-batch. The first `stepped` rows, of `cohorts` cohorts, are
    under way; what was `chosen` for them is here on the last stage, elsewhere it comes by the pipe.
    `caches` belong to the cohorts of the books, the entering one's is last."""

    def __init__(self, job: Job, spec: DeviceSpec, kind: Kind) -> None:
        arch, decode, room = job.source.arch, job.config.decode, job.plan.generation
        assert room is not None
        ends = job.source.specials.ends
        self.books = Books(room, arch.seq2seq)
        self.caches: list[Cache] = []
        self.search = (
            make_search(decode, ends, room.slots, arch.vocab, kind[1], arch.seq2seq)
            if spec.last
            else None
        )
        self.tokens = torch.zeros(room.slots, decode.lanes, dtype=torch.int64, device=kind[1])
        self.turn = self.stepped = self.cohorts = self.steps = 0
        self.prompts: dict[str, list[float]] = {}  # log-probabilities of prompts, by key
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
        self._kind, self._device = kind, kind[1]
        self._room, self._timed = job.plan.generation, timed
        self._layers, self._ways = spec.last_layer - spec.first_layer, job.plan.tensor
        self._batches = [_MicroBatch(job, spec, kind) for _ in range(job.plan.pipeline)]
        self._turn = 0
        self._waited = 0.0

    def run(self, take: Callable[[], Chunk | None]) -> Iterator[Finished]:
        """Run the chunks that `take` gives, waiting for each, until it gives None."""
        pending: Chunk | None = None
        over = False
        self._waited, begun = 0.0, time.monotonic()
        while not (over and pending is None and all(b.books.idle for b in self._batches)):
            batch = self._batches[self._turn % len(self._batches)]
            with self._timed():
                ended = self._settle(batch)
            for finished in self._told(batch, ended):
                seconds = time.monotonic() - begun - self._waited
                self._waited, begun = 0.0, time.monotonic()
                yield Finished(*finished, seconds)
            if pending is None and not over and batch.books.free >= self._room.refill:
                asked = time.monotonic()
                pending = take()
                self._waited += time.monotonic() - asked
                over = pending is None
            with self._timed():
                batch.turn = self._turn
                if pending is not None and batch.books.fits(pending):
                    self._enter(batch, pending)
                    pending = None
                if batch.books.rows:
                    self._step(batch)
            self._turn += 1

    def _settle(self, batch: _MicroBatch) -> list[bool]:
        """Act on the micro-batch's last turn: take its tokens over, put entered rows to work, and
        find which of the first rows are finished. All are still where they were."""
        encoded = None
        if batch.entry is not None and self._arch.seq2seq:
            encoded = batch.encoded if self._spec.last else self._home(batch, ENCODED)
        finished: list[bool] = []
        if batch.stepped:
            chosen = batch.chosen or self._unpacked(self._home(batch, CHOSEN), batch)
            going = zip(batch.caches, batch.books.cohorts[: batch.cohorts], strict=False)
            first = 0
            for cache, cohort in going:
                cache.follow(chosen.parents[first : first + len(cohort.rows)])
                first += len(cohort.rows)
            batch.tokens[: batch.stepped] = chosen.ids
            batch.books.advance(batch.cohorts)
            batch.steps += 1
            if batch.steps % self._room.stop_every == 0:
                finished = chosen.finished.tolist()
        if batch.entry is not None:
            if encoded is not None:
                self._stage.admit(encoded, batch.entry, batch.caches[-1].sources)
            batch.books.activate()
        batch.stepped, batch.chosen, batch.entry, batch.encoded = 0, None, None, None
        return finished

    def _told(
        self, batch: _MicroBatch, finished: list[bool]
    ) -> Iterator[tuple[Chunk, list[Answer] | None, int]]:
        """The finished rows, by chunk, with their answers; then close the gaps they leave."""
        if not any(finished):
            return
        cohorts = batch.books.cohorts
        left = batch.books.leave(finished)
        for cohort in cohorts:
            rows = [(at, request) for at, own, request in left.rows if own is cohort]
            if not rows:
                continue
            chunk = Chunk(cohort.sequence, tuple(request for _, request in rows))
            if not self._spec.answers:
                yield chunk, None, cohort.steps * len(rows)
                continue
            assert batch.search is not None
            answers = [
                replace(batch.search.harvest(at), prompt_logprobs=batch.prompts.pop(r.key, None))
                for at, r in rows
            ]
            yield chunk, list(answers), sum(len(a.hypotheses[0].ids) for a in answers)
        for cache, moves in zip(batch.caches, left.moves, strict=True):
            for source, target in moves:
                cache.move(source, target)
        held = zip(batch.caches, cohorts, strict=True)
        batch.caches = [cache for cache, cohort in held if cohort.rows]
        self._reorder(batch, left)

    def _reorder(self, batch: _MicroBatch, left: Left) -> None:
        """Bring the rows that stay to their new places among all rows."""
        moved = [(old, new) for new, old in enumerate(left.order) if old != new]
        if moved:
            at, to = torch.tensor(moved, device=self._device).unbind(1)
            batch.tokens[to] = batch.tokens[at]
            if batch.search is not None:
                sources, targets = zip(*moved, strict=True)
                batch.search.move(sources, targets)

    def _enter(self, batch: _MicroBatch, chunk: Chunk) -> None:
        """Read a chunk's rows, a new cohort behind those at work."""
        first = batch.books.rows
        cohort = batch.books.enter(chunk)
        cache = Cache(self._arch, self._layers, self._ways, cohort, self._kind)
        batch.caches.append(cache)
        rows = cohort.rows
        lengths = [len(r.ids) - (0 if self._arch.seq2seq else 1) for r in rows]
        ids = [t for r, n in zip(rows, lengths, strict=True) for t in r.ids[:n]]
        entry = Entry(torch.tensor(ids, dtype=torch.int64, device=self._device), lengths)
        begins = [SearchRow.of(r, self._start).context[-1] for r in rows]
        batch.tokens[first : first + len(rows)] = torch.tensor(
            begins, device=self._device
        ).unsqueeze(1)
        if batch.search is not None:
            batch.search.enter(first, [SearchRow.of(r, self._start) for r in rows])
        self._score_prompts(batch, rows)
        batch.entry = entry
        if not ids:  # prompts of one token
            return
        x = entry.ids if self._spec.first else self._before(ENTER)
        x = self._stage.enter(x, entry, cache.kept, self._pulse)
        if self._wires.after is not None:
            self._wires.after.put(self._tag(self._turn, ENTER), x, self._pulse)
        elif self._arch.seq2seq:
            batch.encoded = x
            for pipe in self._wires.homes:
                pipe.put(self._tag(self._turn, ENCODED), x, self._pulse)

    def _score_prompts(self, batch: _MicroBatch, rows: Sequence[GenerateRequest]) -> None:
        """The log-probabilities of the prompts of rows that ask for them, by a pass of its own."""
        asked = [r for r in rows if r.options.prompt_logprob]
        batch.prompts |= {r.key: [] for r in asked}  # a single token is given
        scored = [ScoreRequest(r.row, r.key, r.ids, 1, 1) for r in asked if len(r.ids) > 1]
        if not scored:
            return
        assert isinstance(self._stage, DecoderStage)
        before = None if self._spec.first else self._before(PROMPTS)
        chunk = Chunk(self._turn, tuple(scored))
        found = score_chunk(self._stage, chunk, self._device, self._pulse, before)
        if isinstance(found, torch.Tensor):
            assert self._wires.after is not None
            self._wires.after.put(self._tag(self._turn, PROMPTS), found, self._pulse)
            return
        for request, answer in zip(scored, found, strict=True):
            batch.prompts[request.key] = answer.logprobs

    def _step(self, batch: _MicroBatch) -> None:
        """One token of every lane at work."""
        cohorts = batch.books.cohorts
        batch.stepped, batch.cohorts = batch.books.rows, len(cohorts)
        views = [cache.view() for cache in batch.caches[: len(cohorts)]]
        x = self._fed(batch) if self._spec.first else self._before(STEP)
        x = self._stage.step(x, views, self._pulse)
        if self._wires.after is not None:
            self._wires.after.put(self._tag(self._turn, STEP), x, self._pulse)
            return
        assert batch.search is not None
        logits = self._all_lanes(batch, self._stage.logits(x))
        chosen = batch.search.advance(logits, self._wires.group)
        self._pulse()
        batch.chosen = chosen
        if self._wires.homes:
            flags = chosen.finished.unsqueeze(1).to(torch.int64)
            message = torch.cat([chosen.ids, chosen.parents, flags], dim=1)  # [n, 2 W + 1]
            for pipe in self._wires.homes:
                pipe.put(self._tag(self._turn, CHOSEN), message, self._pulse)

    def _fed(self, batch: _MicroBatch) -> torch.Tensor:
        """The ids of all lanes of the step: [N]."""
        counts = [len(c.rows) for c in batch.books.cohorts]
        own = torch.split(batch.tokens[: sum(counts)], counts)
        each = zip(own, batch.books.cohorts, strict=True)
        parts = [tokens[:, : cohort.lanes].flatten() for tokens, cohort in each]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _all_lanes(self, batch: _MicroBatch, logits: torch.Tensor) -> torch.Tensor:
        """Logits of W lanes a row, for the search: in a row's first step all are alike."""
        cohorts = batch.books.cohorts
        if all(c.lanes == c.beams for c in cohorts):
            return logits
        parts = torch.split(logits, [len(c.rows) * c.lanes for c in cohorts])
        return torch.cat(
            [
                part.repeat_interleave(cohort.beams // cohort.lanes, dim=0)
                for part, cohort in zip(parts, cohorts, strict=True)
            ]
        )

    def _unpacked(self, message: torch.Tensor, batch: _MicroBatch) -> Advance:
        width = batch.tokens.shape[1]
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
