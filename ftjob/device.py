"""The body of a device thread: build its stage, fill it, warm up, then serve chunks: score them
whole, or let their rows into the generate loop.

One thread a device, alive as long as the job. It gets chunks from the rank's main thread,
activations from the stage before and hands its own to the stage after; it never touches MPI's
control messages, the journal or process-wide torch state. Answers go to `rank`.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

import torch

from ftjob import kernels, warm
from ftjob.batching import Chunk, halves
from ftjob.checkpoint.load import FileSource, RandomSource, cut_tensors
from ftjob.checkpoint.shared import SharedReads
from ftjob.comm import Halted, Pulse
from ftjob.comm.groups import Wires
from ftjob.comm.threads import GLANCE_S
from ftjob.decode.graphs import Passes
from ftjob.decode.loop import Generator
from ftjob.decode.scoring import LOOK_S, Passed, Scoring, packed_tokens, score_chunk
from ftjob.errors import BUG, Cause, ConfigError, JobError, PeerLost
from ftjob.job import Job
from ftjob.model.decoder import DecoderStage
from ftjob.model.fill import Fill
from ftjob.model.residual import residual_dtype
from ftjob.model.stage import Part, Stage, make_stage
from ftjob.news import Answered, Failed, Message, Noted, Ready, Warned, check_numbers
from ftjob.plan import DeviceSpec, stage_tensors
from ftjob.preflight import look_over
from ftjob.tasks.base import Answer, Scored
from ftjob.telemetry import Phases

DTYPES = MappingProxyType({"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16})


@dataclass(frozen=True)
class _Launched:
    """A chunk that the device computes since `begun`, on the clock of time.monotonic(), or did in
    so many `seconds`."""

    chunk: Chunk
    scoring: Scoring | Passed
    begun: float
    seconds: float | None = None


class DeviceThread(threading.Thread):
    """Runs one `DeviceSpec`. `inbox` takes chunks, None ends the thread; `outbox` is shared by
    the rank's devices, and so are the `shared` reads of files."""

    def __init__(
        self,
        job: Job,
        spec: DeviceSpec,
        wires: Wires,
        pulse: Pulse,
        outbox: queue.Queue[Message],
        phases: Phases,
        shared: SharedReads | None = None,
    ) -> None:
        super().__init__(name=f"device{spec.local}", daemon=True)
        self.shared = shared
        self.job, self.spec, self.wires, self.phases = job, spec, wires, phases
        self.inbox: queue.Queue[Chunk | None] = queue.Queue()
        self.outbox, self.pulse = outbox, pulse
        self.serving: tuple[Chunk, ...] = ()  # the latest, for the message where something fails
        self.phase = "load"
        self._flying: deque[_Launched] = deque()
        self._most: float = math.inf  # tokens that are read at once
        self._counted = 0.0  # until when the device's time is counted
        cuda = job.plan.machine.device == "cuda"
        self.device = torch.device("cuda", spec.local) if cuda else torch.device("cpu")
        kernels.prepare(self.device)
        self._passes = Passes(self.device, job.plan.max_tokens, Fill(job.plan.pass_step))

    def run(self) -> None:
        """Serve until None comes; whatever goes wrong is told to the main thread."""
        try:
            cuda = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
            with cuda, torch.inference_mode():
                self._connect()
                stage = self._build()
                self.wires.gather(self.pulse)
                if self.job.config.dataset.generates:
                    self._generate(stage)
                else:
                    self._score(stage)
        except Halted:
            pass  # the main thread knows why
        except BaseException as error:
            self.outbox.put(Failed(self.spec.local, self._cause(error)))

    def _score(self, stage: Stage) -> None:
        """Score chunk after chunk, until None comes. A GPU gets the next one, if there is one,
        before the answers of the last are taken."""
        assert isinstance(stage, DecoderStage)
        self.phase = "warm-up"
        gpu = self.device.type == "cuda"
        self._launch(stage, warm.to_score(self.job.source.arch, self.job.plan.max_tokens, gpu))
        while self._flying:
            self._finish(self._flying.popleft())
        self.outbox.put(Ready(self.spec.local, self._label(), stage.held_bytes))
        self.phase = "score"
        while (chunk := self._next()) is not None:
            self._launch(stage, chunk)
            self._passes.capture(self._capturing)
            while self._flying and (len(self._flying) > 1 or self._flying[0].scoring.done):
                self._tell()
        while self._flying:
            self._tell()

    def _next(self) -> Chunk | None:
        """The next chunk, or None: there is no more. One that is done meanwhile is told."""
        while self._flying:
            try:
                return self.inbox.get(timeout=LOOK_S)
            except queue.Empty:
                self.pulse.check()
                if self._flying[0].scoring.done:
                    self._tell()
        return self.inbox.get()

    def _tell(self) -> None:
        """Give the rank the answers of the chunk that was launched first."""
        launched = self._flying.popleft()
        chunk = launched.chunk
        self.serving = (chunk,)
        scored, seconds = self._finish(launched)
        answers = list[Answer](scored) if self.spec.answers else None
        self._tells(chunk, answers, chunk.tokens, seconds)
        self.serving = tuple(later.chunk for later in self._flying)

    def _tells(
        self, chunk: Chunk, answers: list[Answer] | None, tokens: int, seconds: float
    ) -> None:
        check_numbers(chunk, answers, self.job.config.model.dtype)
        self.outbox.put(Answered(self.spec.local, chunk, answers, tokens, seconds))

    def _generate(self, stage: Stage) -> None:
        """Continue the rows of the chunks that come, until None does."""
        if stage.last:
            stage.pack_head()
        kind = (DTYPES[self.job.config.model.dtype], self.device)
        about = (self.job, self.spec, stage, self.wires, kind, self.pulse)
        generator = Generator(*about, self._working, self._capturing, self._halved)
        arch, config, gpu = self.job.source.arch, self.job.config, self.device.type == "cuda"
        chunks = warm.to_continue(arch, self.job.plan, config.decode, gpu)
        self.phase = "warm-up"
        for _ in generator.run(lambda: next(chunks, None)):
            pass
        if self._alone and self.device.type == "cuda":
            # of passes before they were captured; a group's devices might wait for each other
            torch.cuda.empty_cache()
        self.outbox.put(Ready(self.spec.local, self._label(), stage.held_bytes))
        self.phase = "decode"
        for done in generator.run(self._take):
            self._tells(done.chunk, done.answers, done.tokens, done.seconds)

    def _take(self) -> Chunk | None:
        """The next chunk, or None: there is no more. A device with free slots waits for it, so that
        all devices of a replica fill theirs alike."""
        while True:
            try:
                chunk = self.inbox.get(timeout=GLANCE_S)
            except queue.Empty:
                self.pulse()
                continue
            self.pulse()
            if chunk is not None:
                self.serving = (*self.serving[-15:], chunk)
            return chunk

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self.phases.phase(self.phase, self.spec.local), self._memory_error():
            yield

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        with self.phases.phase("capture", self.spec.local), self._memory_error():
            yield

    def _connect(self) -> None:
        """Link the device to others, where that takes doing."""
        if self.wires.links is None:
            return
        arch, dtype = self.job.source.arch, DTYPES[self.job.config.model.dtype]
        row_bytes = arch.hidden * residual_dtype(arch, dtype).itemsize
        with self.phases.phase("link", self.spec.local):
            self.wires.links.connect(self.device, self.pulse, row_bytes)
        with self.phases.phase("preflight", self.spec.local):
            if said := look_over(self.wires.group, self.job.plan, self.spec, self.pulse):
                self.outbox.put(Noted(self.spec.local, said))

    def _build(self) -> Stage:
        """The stage with every parameter filled exactly once."""
        job, spec = self.job, self.spec
        dtype = DTYPES[job.config.model.dtype]
        with self.phases.phase("load", spec.local):
            stage = make_stage(
                job.source.arch,
                Part(
                    range(spec.first_layer, spec.last_layer),
                    range(spec.first_encoder, spec.last_encoder),
                    spec.first,
                    spec.last,
                ),
                job.config.model.weights,
                (dtype, self.device),
                self.wires.group,
            )
            open_files = (
                FileSource(job.source.index, self.device, self.shared, self.pulse)
                if job.source.index is not None
                else nullcontext(RandomSource(job.config.model.seed, self.device))
            )
            missing = {name for name, _ in stage.named_parameters() if not name.endswith(".scale")}
            with open_files as source:
                held = stage_tensors(job.source.rules, spec)
                for placed, part in cut_tensors(
                    source, held, spec.tensor, job.plan.tensor, self.pulse, stage.room
                ):
                    stage.fill(placed.parameter, part, placed.rule.cuts_input)
                    missing.remove(placed.parameter)
            if missing:
                raise ValueError(f"parameters never filled: {sorted(missing)}")
        return stage

    def _launch(self, stage: DecoderStage, chunk: Chunk) -> None:
        """Begin a chunk, with what the stage before made of it. Where a stage comes after, the
        chunk goes there and the rank is told so."""
        several = self._alone and len(chunk.requests) > 1
        if chunk.tokens > self._most and several:
            for half in halves(chunk):
                self._launch(stage, half)
            return
        wires, before = self.wires, None
        while wires.before is not None and self._flying and self._flying[0].scoring.done:
            self._tell()  # a wait for others is not their time
        self.pulse()
        self.serving = (chunk,)
        if wires.before is not None:
            form = stage.form(packed_tokens(chunk, self.device, self._passes))
            before = wires.before.take(chunk.sequence, self.pulse, form)
        begun = time.monotonic()
        with self.phases.within(self.phase), self._memory_error():
            try:
                found = score_chunk(stage, chunk, self.device, self.pulse, before, self._passes)
            except torch.OutOfMemoryError:
                if not several:  # devices would have to agree on the parts
                    raise
                found = None
        if found is None:
            while self._flying:  # they hold memory
                self._tell()
            self._halved(chunk)
            self._launch(stage, chunk)
            return
        if isinstance(found, Scoring):
            self._flying.append(_Launched(chunk, found, begun))
            return
        assert wires.after is not None
        # a CPU is through with it, and may wait for room now
        seconds = self._worked(begun) if self.device.type == "cpu" else None
        wires.after.put(chunk.sequence, found, self.pulse)
        self._flying.append(_Launched(chunk, Passed(found), begun, seconds))

    @property
    def _alone(self) -> bool:
        """Whether this device has the whole model: it may do as it likes then."""
        return self.spec.first and self.spec.last and self.job.plan.tensor == 1

    def _finish(self, launched: _Launched) -> tuple[list[Scored], float]:
        """The answers of a chunk, and the seconds of the device's own work for it."""
        with self.phases.within(self.phase), self._memory_error():
            scored = launched.scoring.answers(self.pulse.check)
        self.pulse()
        if launched.seconds is not None:
            return scored, launched.seconds
        return scored, self._worked(launched.begun)

    def _worked(self, begun: float) -> float:
        """Seconds of work from `begun` until now, as a phase: those that are not yet counted, where
        chunks overlap."""
        now, end_s = time.monotonic(), self.phases.now()
        seconds = now - max(begun, self._counted)
        self._counted = now
        self.phases.add(self.phase, end_s - seconds, end_s, self.spec.local)
        return seconds

    def _halved(self, chunk: Chunk) -> None:
        """There is not memory enough for so many tokens at once: halves from now on."""
        self._most = chunk.tokens // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.outbox.put(
            Warned(
                self.spec.local,
                f"out of memory with rows of {chunk.tokens} tokens at once (batch.max_tokens="
                f"{self.job.plan.max_tokens}): goes on with {self._most} at most",
            )
        )

    @contextmanager
    def _memory_error(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"batch.max_tokens={self.job.plan.max_tokens}: {self.device} ran out of memory "
                f"({str(error).splitlines()[0]}). Lower it, or split the model."
            ) from None

    def _label(self) -> str:
        cpu = f"cpu ({torch.get_num_threads()} threads)"
        return cpu if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)

    def request(self) -> str | None:
        """The rows of the latest chunks, for a message; any thread may ask."""
        serving = self.serving
        if not serving:
            return None
        lines = sorted(r.row.line for chunk in serving for r in chunk.requests)
        return f"lines {lines[0]}..{lines[-1]} (chunk {serving[-1].sequence})"

    def _cause(self, error: BaseException) -> Cause:
        known = isinstance(error, JobError)
        return Cause(
            code=error.code if isinstance(error, JobError) else BUG,
            message=str(error) if known else f"{type(error).__name__}: {error}",
            rank=self.spec.rank,
            device=self.spec.local,
            phase=self.phases.current() or "serve",
            request=self.request(),
            traceback=None if known else traceback.format_exc(),
            lost=isinstance(error, PeerLost),
        )
