"""The body of a device thread: build its stage, fill it, warm up, then serve chunks.

One thread a device, alive as long as the job. It speaks to the rank's main thread through two
queues and a pulse, and never touches MPI, the journal or process-wide torch state.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

import torch

from ftjob.batching import Chunk
from ftjob.checkpoint.load import FileSource, RandomSource, cut_tensors
from ftjob.comm import Comm
from ftjob.decode.scoring import score_chunk
from ftjob.errors import BUG, Cause, ConfigError, JobError
from ftjob.job import Job
from ftjob.model.decoder import Stage
from ftjob.plan import DeviceSpec, stage_tensors
from ftjob.tasks.base import Row, Scored, ScoreRequest
from ftjob.telemetry import Phases

DTYPES = MappingProxyType({"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16})


@dataclass(frozen=True)
class Ready:
    """The device has its weights and has run once."""

    device: int
    name: str
    weight_bytes: int


@dataclass(frozen=True)
class Answered:
    """The answers of a chunk, in its order, and the seconds it took."""

    device: int
    chunk: Chunk
    scored: list[Scored]
    seconds: float


@dataclass(frozen=True)
class Failed:
    """The device thread is gone, for this reason."""

    device: int
    cause: Cause


Message = Ready | Answered | Failed


class DeviceThread(threading.Thread):
    """Runs one `DeviceSpec`. `inbox` takes chunks, None ends the thread; `outbox` is shared by
    the rank's devices."""

    def __init__(
        self, job: Job, spec: DeviceSpec, group: Comm, outbox: queue.Queue[Message], phases: Phases
    ) -> None:
        super().__init__(name=f"device{spec.local}", daemon=True)
        self.job, self.spec, self.group, self.phases = job, spec, group, phases
        self.inbox: queue.Queue[Chunk | None] = queue.Queue()
        self.outbox = outbox
        self.last_pulse = time.monotonic()
        cuda = job.plan.machine.device == "cuda"
        self.device = torch.device("cuda", spec.local) if cuda else torch.device("cpu")

    def pulse(self) -> None:
        """A sign of life; the main thread ends the job when it stays away too long."""
        self.last_pulse = time.monotonic()

    def run(self) -> None:
        """Serve until None comes; whatever goes wrong is told to the main thread."""
        serving: Chunk | None = None
        try:
            cuda = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
            with cuda, torch.inference_mode():
                stage = self._build()
                self._warm_up(stage)
                self.outbox.put(Ready(self.spec.local, self._label(), _held_bytes(stage)))
                while (serving := self.inbox.get()) is not None:
                    self.pulse()
                    start = time.monotonic()
                    with self.phases.phase("score", self.spec.local), self._memory_error():
                        scored = score_chunk(stage, serving, self.device, self.pulse)
                    self.outbox.put(
                        Answered(self.spec.local, serving, scored, time.monotonic() - start)
                    )
        except BaseException as error:
            self.outbox.put(Failed(self.spec.local, self._cause(error, serving)))

    def _build(self) -> Stage:
        """The stage with every parameter filled exactly once."""
        job, spec = self.job, self.spec
        dtype = DTYPES[job.config.model.dtype]
        with self.phases.phase("load", spec.local):
            stage = Stage(
                job.source.arch,
                range(spec.first_layer, spec.last_layer),
                job.config.model.weights,
                (dtype, self.device),
                self.group,
                first=spec.first,
                last=spec.last,
            )
            open_files = (
                FileSource(job.source.index, self.device)
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

    def _warm_up(self, stage: Stage) -> None:
        """Run one small batch, so that libraries start outside of the measured time."""
        with self.phases.phase("warm-up", self.spec.local), self._memory_error():
            ids = [i % self.job.source.arch.vocab for i in range(8)]
            row = Row(0, 0, b"", "")
            score_chunk(
                stage, Chunk(0, (ScoreRequest(row, "", ids, 7, 7),)), self.device, self.pulse
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
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu ({torch.get_num_threads()} threads)"

    def _cause(self, error: BaseException, serving: Chunk | None) -> Cause:
        request = None
        if serving is not None:
            lines = sorted(r.row.line for r in serving.requests)
            request = f"lines {lines[0]}..{lines[-1]} (chunk {serving.sequence})"
        known = isinstance(error, JobError)
        return Cause(
            code=error.code if isinstance(error, JobError) else BUG,
            message=str(error) if known else f"{type(error).__name__}: {error}",
            device=self.spec.local,
            phase=self.phases.current() or "serve",
            request=request,
            traceback=None if known else traceback.format_exc(),
        )


def _held_bytes(stage: Stage) -> int:
    """Bytes of the parameters this device really holds."""
    return sum(p.numel() * p.element_size() for p in stage.parameters())
