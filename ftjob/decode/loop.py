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
from itertools import chain, groupby

import numpy as np
import torch

from ftjob.batching import Chunk, halves, widest
from ftjob.comm import Form, Pulse, Way
from ftjob.comm.groups import Wires
from ftjob.decode.microbatch import Gone, MicroBatch
from ftjob.decode.scoring import packed_tokens, score_chunk
from ftjob.decode.search import Advance, SearchRow
from ftjob.errors import ConfigError
from ftjob.job import Job
from ftjob.model.attention import Keep
from ftjob.model.decoder import DecoderStage
from ftjob.model.residual import Kind
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


class Generator:
    """Runs a replica's rows through one device's stage. `timed` is around work, `capturing` around
    what makes later steps fast and counts as no work; `halved` is told of a chunk that there was
    not memory enough to read at once, before it is read in parts."""

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
        halved: Callable[[Chunk], None] = lambda _: None,
    ) -> None:
        assert job.plan.generation is not None
        self._arch, self._start = job.source.arch, job.source.specials.start
        self._spec, self._stage, self._wires, self._pulse = spec, stage, wires, pulse
        (self._dtype, self._device), self._width = kind, job.config.decode.lanes
        self._alone = spec.first and spec.last and job.plan.tensor == 1
        self._room, self._timed, self._capturing = job.plan.generation, timed, capturing
        self._batches = [MicroBatch(job, spec, kind, pulse) for _ in range(job.plan.pipeline)]
        self._halved, self._most_read = halved, math.inf  # tokens
        self._turn = 0
        self._waited = self._begun = 0.0  # seconds since `_begun` that were no work

    def run(self, take: Callable[[], Chunk | None]) -> Iterator[Finished]:
        """Run the chunks that `take` gives, waiting for each, until it gives None."""
        waiting: list[Chunk] = []
        over, wanted = False, self._room.refill
        self._waited, self._begun = 0.0, time.monotonic()
        while not (over and not waiting and all(b.books.idle for b in self._batches)):
            batch = self._batches[self._turn % len(self._batches)]
            with self._timed():
                left = self._left(batch, self._settle(batch))
            if not waiting and not over and batch.books.free >= wanted:
                # who gives the next chunk may wait for these answers
                yield from self._telling(batch, left)
                left, asked = None, time.monotonic()
                chunk = take()
                self._waited += time.monotonic() - asked
                over = chunk is None
                waiting = self._parts(chunk)
                if chunk is not None:  # long rows come in chunks of few: the next one may fit too
                    wanted = min(self._room.refill, len(chunk.requests))
            with self._timed():
                batch.turn = self._turn
                if waiting and self._fits(batch, waiting[0]):
                    waiting[:1] = self._let_in(batch, waiting[0])
                if batch.books.rows:
                    self._step(batch)
            asked = time.monotonic()
            batch.capture(self._capturing)
            self._waited += time.monotonic() - asked
            yield from self._telling(batch, left)  # while the step is under way
            self._turn += 1

    def _telling(self, batch: MicroBatch, left: Gone | None) -> Iterator[Finished]:
        """Rows that left, with the seconds of work since the last ones."""
        for finished in self._told(batch, left):
            now = time.monotonic()
            seconds = now - self._begun - self._waited
            self._waited, self._begun = 0.0, now
            yield Finished(*finished, seconds)

    def _parts(self, chunk: Chunk | None) -> list[Chunk]:
        """A chunk in parts that can be read at once, as far as is known."""
        if chunk is None or chunk.tokens <= self._most_read or len(chunk.requests) == 1:
            return [] if chunk is None else [chunk]
        return [part for half in halves(chunk) for part in self._parts(half)]

    def _let_in(self, batch: MicroBatch, chunk: Chunk) -> list[Chunk]:
        """Read a chunk, or where memory does not suffice give it back in halves: later ones are
        halved before. Devices of one replica would have to agree on that: there it is an error.
        """
        try:
            self._enter(batch, chunk)
        except torch.OutOfMemoryError:
            if not self._alone or len(chunk.requests) == 1:
                raise
            assert batch.books.entering is not None
            batch.lanes.withdraw(batch.books.entering)
            batch.books.withdraw()
            batch.entry = batch.keep = None
            self._most_read = chunk.tokens // 2
            self._halved(chunk)
            return self._parts(chunk)
        return []

    def _fits(self, batch: MicroBatch, chunk: Chunk) -> bool:
        """Whether a chunk can enter now.

        Raises:
            ConfigError: where it never can.
        """
        fits = batch.books.fits(chunk) and batch.lanes.fits(chunk)
        if not fits and batch.books.idle:
            columns = widest(chunk.requests, self._room.beams)
            raise ConfigError(
                f"batch.lanes: a row takes {columns} columns of cache, and beside weights and "
                f"workspace there is memory for {self._room.cells}. Lower batch.lanes, "
                "batch.max_tokens or decode.max_new_tokens, or split the model."
            )
        return fits

    def _settle(self, batch: MicroBatch) -> list[bool]:
        """Act on the micro-batch's last turn: take its tokens over, put entered rows to work, and
        find which of the first rows are finished. All are still where they were."""
        encoded = None
        if batch.entry is not None and self._arch.seq2seq:
            form = (len(batch.entry.ids), self._arch.hidden), self._dtype
            encoded = batch.encoded if self._spec.last else self._home(batch, ENCODED, form)
        finished: list[bool] = []
        if batch.stepped:
            flags = batch.flags
            if flags is None:  # what was chosen comes from the last stage
                form = (batch.lanes.rows, 2 * self._width + 1), torch.int64
                chosen = Advance.of(self._home(batch, CHOSEN, form))
                batch.lanes.settle(chosen)
                flags = chosen.finished
            batch.books.advance(batch.cohorts)
            finished = batch.looks.after(flags[: batch.stepped], batch.books.spent)
        if batch.entry is not None:
            assert batch.keep is not None
            if encoded is not None:
                keep = batch.keep
                batch.passes.run(
                    batch.place and ("admit", *batch.place),
                    lambda x: self._stage.admit(x, keep),
                    encoded,
                    moves=True,
                )
            batch.lanes.activate([row.context[-1] for row in batch.entering])
            if batch.search is not None:
                batch.search.enter(batch.books.rows, batch.entering)
            batch.books.activate()
        batch.stepped, batch.flags, batch.entering = 0, None, []
        batch.entry = batch.keep = batch.encoded = None
        return finished

    def _left(self, batch: MicroBatch, finished: list[bool]) -> Gone | None:
        """The finished rows leave, and the others close their gaps."""
        if not any(finished):
            return None
        before = batch.books.rows
        left = batch.books.leave(finished)
        harvest = None
        if self._spec.answers:
            assert batch.search is not None
            harvest = batch.search.harvest([at for at, _, _ in left.rows])
        batch.lanes.leave(left)
        if batch.search is not None:
            if left.moved:
                batch.search.move(*zip(*left.moved, strict=True))
            batch.search.clear(len(left.order), before)
        return Gone([(cohort, row) for _, cohort, row in left.rows], harvest)

    def _told(
        self, batch: MicroBatch, gone: Gone | None
    ) -> Iterator[tuple[Chunk, list[Answer] | None, int]]:
        """Rows that left, by chunk, with their answers."""
        if gone is None:
            return
        found = gone.harvest(self._pulse.check) if gone.harvest is not None else []
        first = 0
        for _, group in groupby(gone.rows, key=lambda row: id(row[0])):
            cohorts, rows = zip(*group, strict=True)
            cohort = cohorts[0]
            chunk = Chunk(cohort.sequence, rows)
            if gone.harvest is None:
                yield chunk, None, cohort.steps * len(rows)
                continue
            own = found[first : first + len(rows)]
            first += len(rows)
            tokens = sum(len(a.hypotheses[0].ids) for a in own)
            each = zip(rows, own, strict=True)
            yield chunk, [self._with_prompt(batch, row, answer) for row, answer in each], tokens

    def _with_prompt(self, batch: MicroBatch, row: GenerateRequest, answer: Generated) -> Answer:
        if not row.options.prompt_logprob:
            return answer
        return replace(answer, prompt_logprobs=batch.prompts.pop(row.key))

    def _enter(self, batch: MicroBatch, chunk: Chunk) -> None:
        """Read a chunk's rows, a new cohort behind those at work."""
        cohort = batch.books.enter(chunk)
        arena = batch.passes.arena
        keep, where = batch.lanes.enter(cohort, arena)
        rows = cohort.rows
        lengths = [len(r.ids) - (0 if self._arch.seq2seq else 1) for r in rows]
        each = (r.ids[:n] for r, n in zip(rows, lengths, strict=True))
        ids = np.fromiter(chain.from_iterable(each), np.int64, sum(lengths))
        self._score_prompts(batch, rows)
        entry = self._stage.entry(ids, lengths, arena)
        batch.entry, batch.keep = entry, keep
        places = where, entry.packing.place
        batch.place = None if None in places else places
        if len(ids):  # prompts of more than one token
            self._read(batch, entry, keep)
        # behind what a GPU waits for
        batch.entering = [SearchRow.of(r, self._start) for r in rows]

    def _read(self, batch: MicroBatch, entry: Entry, keep: Keep) -> None:
        """Read what enters, and hand it on."""
        form = self._stage.form(len(entry.ids))
        x = batch.passes.run(
            batch.place,
            lambda x: self._stage.enter(x, entry, keep, self._pulse),
            entry.ids if self._spec.first else self._before(ENTER, form),
            moves=not self._spec.first,
        )
        if self._wires.after is not None:
            self._wires.after.put(self._tag(self._turn, ENTER), x, self._pulse)
        elif self._arch.seq2seq:
            batch.encoded = x
            for way in self._wires.homes:
                way.put(self._tag(self._turn, ENCODED), x, self._pulse)

    def _score_prompts(self, batch: MicroBatch, rows: Sequence[GenerateRequest]) -> None:
        """The log-probabilities of the prompts of rows that ask for them, by a pass of its own."""
        asked = [r for r in rows if r.options.prompt_logprob]
        batch.prompts |= {r.key: [] for r in asked}  # a single token is given
        scored = [ScoreRequest(r.row, r.key, r.ids, 1, 1) for r in asked if len(r.ids) > 1]
        if not scored:
            return
        assert isinstance(self._stage, DecoderStage)
        chunk = Chunk(self._turn, tuple(scored))
        form = self._stage.form(packed_tokens(chunk, self._device))
        before = None if self._spec.first else self._before(PROMPTS, form)
        found = score_chunk(self._stage, chunk, self._device, self._pulse, before)
        if isinstance(found, torch.Tensor):
            assert self._wires.after is not None
            self._wires.after.put(self._tag(self._turn, PROMPTS), found, self._pulse)
            return
        for request, answer in zip(scored, found.answers(self._pulse.check), strict=True):
            batch.prompts[request.key] = answer.logprobs

    def _step(self, batch: MicroBatch) -> None:
        """One token of every lane at work. On a GPU it is captured as far as it is the same each
        time."""
        batch.stepped, batch.cohorts = batch.books.rows, len(batch.books.cohorts)
        given = None
        if not self._spec.first:
            form = self._stage.form(batch.lanes.rows * self._width)
            given = batch.received(self._before(STEP, form))

        def through() -> torch.Tensor:
            x = batch.lanes.fed() if given is None else given
            return self._stage.step(x, batch.lanes.sight(), self._pulse)

        lanes = batch.lanes.kind
        if self._wires.after is not None:
            x = batch.played(lanes, through)
            self._wires.after.put(self._tag(self._turn, STEP), x, self._pulse)
            return
        assert batch.search is not None
        search = None if batch.graphs is None else batch.search.kind(batch.lanes.rows)
        if search is None:
            logits = batch.played(lanes, lambda: self._stage.logits(through()))
            chosen = self._chosen(batch, logits)
        else:
            chosen = batch.played(
                (lanes, search), lambda: self._chosen(batch, self._stage.logits(through()))
            )
        self._pulse()
        batch.flags = chosen.finished
        if self._wires.homes:
            message = chosen.message()
            for way in self._wires.homes:
                way.put(self._tag(self._turn, CHOSEN), message, self._pulse)

    def _chosen(self, batch: MicroBatch, logits: torch.Tensor) -> Advance:
        """The next tokens, which the lanes take over."""
        assert batch.search is not None
        chosen = batch.search.advance(batch.lanes.spread(logits), self._wires.group)
        batch.lanes.settle(chosen)
        return chosen

    def _before(self, kind: int, form: Form) -> torch.Tensor:
        assert self._wires.before is not None
        return self._taken(self._wires.before, self._tag(self._turn, kind), form)

    def _home(self, batch: MicroBatch, kind: int, form: Form) -> torch.Tensor:
        """What the last stage sent back in the micro-batch's last turn."""
        assert self._wires.home is not None
        return self._taken(self._wires.home, self._tag(batch.turn, kind), form)

    def _taken(self, way: Way, tag: int, form: Form) -> torch.Tensor:
        asked = time.monotonic()
        x = way.take(tag, self._pulse, form)
        self._waited += time.monotonic() - asked
        return x

    def _tag(self, turn: int, kind: int) -> int:
        return turn * KINDS + kind
