"""The generate loop of one device: chunks enter, lanes step, finished rows leave.

A stage of P has P micro-batches in turn, so that while one's tokens travel from the last stage back
to the first, the others compute. A turn settles what the micro-batch's last step decided, lets a
chunk enter where there is room, and steps. All devices of a replica take the same turns: they see
the same chunks in the same order and the same finished flags, which the last stage sends with the
tokens. `device` drives it and passes the answers on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from ftjob.batching import Chunk
from ftjob.comm import Pulse
from ftjob.comm.groups import Wires
from ftjob.comm.threads import Pipe
from ftjob.decode.cohorts import Books
from ftjob.decode.graphs import Graphs
from ftjob.decode.lanes import make_lanes
from ftjob.decode.looks import LAG, Fetched, Looks
from ftjob.decode.scoring import score_chunk
from ftjob.decode.search import Advance, SearchRow, make_search
from ftjob.job import Job
from ftjob.model.arrays import sent
from ftjob.model.attention import Keep
from ftjob.model.decoder import DecoderStage
from ftjob.model.layers import Kind
from ftjob.model.stage import Entry, Stage
from ftjob.plan import DeviceSpec
from ftjob.tasks.base import Answer, Generated, GenerateRequest, ScoreRequest

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
    under way; `flags` say which of them are finished, on the last stage and where there is but one.
    Of what is entering: `entry`, `keep` for what is read of it, and the rows for the search."""

    def __init__(self, job: Job, spec: DeviceSpec, kind: Kind, pulse: Pulse) -> None:
        arch, decode, room = job.source.arch, job.config.decode, job.plan.generation
        assert room is not None
        layers = spec.last_layer - spec.first_layer
        self.books = Books(room, arch.seq2seq)
        self.lanes = make_lanes(arch, layers, job.plan.tensor, self.books, room, kind)
        ends = job.source.specials.ends
        self.search = (
            make_search(decode, ends, room.slots, arch.vocab, kind[1], arch.seq2seq)
            if spec.last
            else None
        )
        cuda = kind[1].type == "cuda"
        self.graphs = Graphs(kind[1]) if cuda and spec.first and spec.last else None
        self.looks = Looks(room.stop_every, LAG if cuda else 0, pulse)
        self.turn = self.stepped = self.cohorts = 0
        self.prompts: dict[str, float] = {}  # log-probabilities of prompts, by key
        self.flags: torch.Tensor | None = None
        self.entry: Entry | None = None
        self.keep: Keep | None = None
        self.entering: list[SearchRow] = []
        self.encoded: torch.Tensor | None = None


class Generator:
    """Runs a replica's rows through one device's stage. `timed` is around work, `capturing` around
    what makes later steps fast and counts as no work."""

    def __init__(
        self,
        job: Job,
        spec: DeviceSpec,
        stage: Stage,
        wires: Wires,
        kind: Kind,
        pulse: Pulse,
        timed: Callable[[], AbstractContextManager[None]],
        capturing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        assert job.plan.generation is not None
        self._arch, self._start = job.source.arch, job.source.specials.start
        self._spec, self._stage, self._wires, self._pulse = spec, stage, wires, pulse
        self._device, self._width = kind[1], job.config.decode.lanes
        self._room, self._timed, self._capturing = job.plan.generation, timed, capturing
        self._batches = [_MicroBatch(job, spec, kind, pulse) for _ in range(job.plan.pipeline)]
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
                if pending is not None and self._fits(batch, pending):
                    self._enter(batch, pending)
                    pending = None
                if batch.books.rows:
                    self._step(batch)
            if batch.graphs is not None and batch.graphs.wanting:
                asked = time.monotonic()
                with self._capturing():
                    batch.graphs.capture()
                self._waited += time.monotonic() - asked
            self._turn += 1

    def _fits(self, batch: _MicroBatch, chunk: Chunk) -> bool:
        return batch.books.fits(chunk) and batch.lanes.fits(chunk)

    def _settle(self, batch: _MicroBatch) -> list[bool]:
        """Act on the micro-batch's last turn: take its tokens over, put entered rows to work, and
        find which of the first rows are finished. All are still where they were."""
        encoded = None
        if batch.entry is not None and self._arch.seq2seq:
            encoded = batch.encoded if self._spec.last else self._home(batch, ENCODED)
        finished: list[bool] = []
        if batch.stepped:
            flags = batch.flags
            if flags is None:  # what was chosen comes from the last stage
                chosen = self._unpacked(self._home(batch, CHOSEN))
                batch.lanes.settle(chosen)
                flags = chosen.finished
            batch.books.advance(batch.cohorts)
            finished = batch.looks.after(flags[: batch.stepped], batch.books.spent)
        if batch.entry is not None:
            assert batch.keep is not None
            if encoded is not None:
                self._stage.admit(encoded, batch.keep)
            batch.lanes.activate([row.context[-1] for row in batch.entering])
            if batch.search is not None:
                batch.search.enter(batch.books.rows, batch.entering)
            batch.books.activate()
        batch.stepped, batch.flags, batch.entering = 0, None, []
        batch.entry = batch.keep = batch.encoded = None
        return finished

    def _told(
        self, batch: _MicroBatch, finished: list[bool]
    ) -> Iterator[tuple[Chunk, list[Answer] | None, int]]:
        """The finished rows, by chunk, with their answers; then close the gaps they leave."""
        if not any(finished):
            return
        cohorts, before = batch.books.cohorts, batch.books.rows
        left = batch.books.leave(finished)
        found: list[Generated] = []
        if self._spec.answers:
            assert batch.search is not None
            self._reached()
            found = batch.search.harvest([at for at, _, _ in left.rows])
        answers: list[Answer] = [
            replace(answer, prompt_logprob=batch.prompts.pop(row.key, None))
            for answer, (_, _, row) in zip(found, left.rows, strict=False)
        ]
        first = 0
        for cohort in cohorts:
            rows = [request for _, own, request in left.rows if own is cohort]
            if not rows:
                continue
            chunk = Chunk(cohort.sequence, tuple(rows))
            if not self._spec.answers:
                yield chunk, None, cohort.steps * len(rows)
                continue
            own = found[first : first + len(rows)]
            tokens = sum(len(a.hypotheses[0].ids) for a in own)
            yield chunk, answers[first : first + len(rows)], tokens
            first += len(rows)
        batch.lanes.leave(left)
        if batch.search is not None:
            if left.moved:
                batch.search.move(*zip(*left.moved, strict=True))
            batch.search.clear(len(left.order), before)

    def _reached(self) -> None:
        """Wait until the device is through with all it was given, with signs of life."""
        if self._device.type == "cuda":
            Fetched(torch.zeros(1, device=self._device)).take(self._pulse)

    def _enter(self, batch: _MicroBatch, chunk: Chunk) -> None:
        """Read a chunk's rows, a new cohort behind those at work."""
        cohort = batch.books.enter(chunk)
        batch.keep = batch.lanes.enter(cohort)
        rows = cohort.rows
        lengths = [len(r.ids) - (0 if self._arch.seq2seq else 1) for r in rows]
        ids = [t for r, n in zip(rows, lengths, strict=True) for t in r.ids[:n]]
        entry = Entry(sent(ids, self._device, torch.int64), lengths)
        batch.entering = [SearchRow.of(r, self._start) for r in rows]
        self._score_prompts(batch, rows)
        batch.entry = entry
        if not ids:  # prompts of one token
            return
        x = entry.ids if self._spec.first else self._before(ENTER)
        x = self._stage.enter(x, entry, batch.keep, self._pulse)
        if self._wires.after is not None:
            self._wires.after.put(self._tag(self._turn, ENTER), x, self._pulse)
        elif self._arch.seq2seq:
            batch.encoded = x
            for pipe in self._wires.homes:
                pipe.put(self._tag(self._turn, ENCODED), x, self._pulse)

    def _score_prompts(self, batch: _MicroBatch, rows: Sequence[GenerateRequest]) -> None:
        """The log-probabilities of the prompts of rows that ask for them, by a pass of its own."""
        asked = [r for r in rows if r.options.prompt_logprob]
        batch.prompts |= {r.key: 0.0 for r in asked}  # a single token is given
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
        for request, answer in zip(scored, found.answers(self._pulse.check), strict=True):
            batch.prompts[request.key] = math.fsum(answer.logprobs)

    def _step(self, batch: _MicroBatch) -> None:
        """One token of every lane at work."""
        batch.stepped, batch.cohorts = batch.books.rows, len(batch.books.cohorts)
        if batch.graphs is not None:
            batch.flags = self._played(batch, batch.graphs)
            self._pulse()
            return
        x = self._through(batch)
        if self._wires.after is not None:
            self._wires.after.put(self._tag(self._turn, STEP), x, self._pulse)
            return
        chosen = self._chosen(batch, self._stage.logits(x))
        self._pulse()
        batch.flags = chosen.finished
        if self._wires.homes:
            flags = chosen.finished.unsqueeze(1).to(torch.int64)
            message = torch.cat([chosen.ids, chosen.parents, flags], dim=1)  # [n, 2 W + 1]
            for pipe in self._wires.homes:
                pipe.put(self._tag(self._turn, CHOSEN), message, self._pulse)

    def _through(self, batch: _MicroBatch) -> torch.Tensor:
        """The step through this stage's layers: [N, H]."""
        x = batch.lanes.fed() if self._spec.first else self._before(STEP)
        return self._stage.step(x, batch.lanes.sight(), self._pulse)

    def _chosen(self, batch: _MicroBatch, logits: torch.Tensor) -> Advance:
        """The next tokens, which the lanes take over."""
        assert batch.search is not None
        chosen = batch.search.advance(batch.lanes.spread(logits), self._wires.group)
        batch.lanes.settle(chosen)
        return chosen

    def _played(self, batch: _MicroBatch, graphs: Graphs) -> torch.Tensor:
        """A step of a stage that is the whole model: captured as far as it is the same each time.
        Gives the flags of finished rows."""
        assert batch.search is not None
        lanes, search = batch.lanes.kind, batch.search.kind(batch.lanes.rows)

        def logits() -> torch.Tensor:
            return self._stage.logits(self._through(batch))

        if search is None:
            return self._chosen(batch, graphs.run(lanes, logits)).finished
        return graphs.run((lanes, search), lambda: self._chosen(batch, logits()).finished)

    def _unpacked(self, message: torch.Tensor) -> Advance:
        width = self._width
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
