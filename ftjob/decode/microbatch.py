"""What a device keeps of one micro-batch of rows that are being continued.

`loop` lets rows in and out of it and steps them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch

from ftjob.comm import Pulse
from ftjob.decode.cohorts import Books, Cohort
from ftjob.decode.graphs import Graphs, Passes
from ftjob.decode.lanes import make_lanes
from ftjob.decode.looks import LAG, Looks
from ftjob.decode.search import Harvest, SearchRow, make_search, steps_at_first
from ftjob.job import Job
from ftjob.model.attention import Keep
from ftjob.model.fill import Fill
from ftjob.model.residual import Kind
from ftjob.model.stage import Entry
from ftjob.plan import DeviceSpec
from ftjob.tasks.base import GenerateRequest

T = TypeVar("T")


class MicroBatch:
    """What a device keeps of one micro-batch. The first `stepped` rows, of `cohorts` cohorts, are
    under way; `flags` say which of them are finished, on the last stage and where there is but one.
    Of what is entering: `entry`, `keep` for what is read of it, the `place` that both go by, and
    the rows for the search."""

    def __init__(self, job: Job, spec: DeviceSpec, kind: Kind, pulse: Pulse) -> None:
        arch, decode, room = job.source.arch, job.config.decode, job.plan.generation
        assert room is not None
        layers = spec.last_layer - spec.first_layer
        self.books = Books(room, arch.seq2seq)
        steps = steps_at_first(decode)
        self.lanes = make_lanes(arch, layers, job.plan.tensor, self.books, room, kind, steps)
        ends = job.source.specials.ends
        self.search = (
            make_search(decode, ends, room.slots, arch.vocab, kind[1], arch.seq2seq)
            if spec.last
            else None
        )
        cuda = kind[1].type == "cuda"
        self.graphs = Graphs(kind[1]) if cuda else None
        fill = Fill(job.plan.pass_step, room.refill)
        self.passes = Passes(kind[1], job.plan.max_tokens, fill)
        self._inbox: torch.Tensor | None = None
        self._lanes = room.slots * room.beams
        self.looks = Looks(room.stop_every, LAG if cuda else 0, pulse.check)
        self.turn = self.stepped = self.cohorts = 0
        self.prompts: dict[str, list[float]] = {}  # log-probabilities of prompts, by key
        self.flags: torch.Tensor | None = None
        self.entry: Entry | None = None
        self.keep: Keep | None = None
        self.place: tuple[Hashable, ...] | None = None
        self.entering: list[SearchRow] = []
        self.encoded: torch.Tensor | None = None

    def played(self, kind: Hashable, body: Callable[[], T]) -> T:
        """What a step's body gives: on a GPU captured, where the `kind` was seen before."""
        return body() if self.graphs is None else self.graphs.run(kind, body)

    def capture(self, around: Callable[[], AbstractContextManager[None]]) -> None:
        """Capture what comes again."""
        self.passes.capture(around)
        if self.graphs is not None and self.graphs.wanting:
            with around():
                self.graphs.capture()

    def received(self, x: torch.Tensor) -> torch.Tensor:
        """What the stage before gave [N, H], where a captured step looks for it."""
        if self.graphs is None:
            return x
        if self._inbox is None:
            self._inbox = x.new_empty(self._lanes, x.shape[1])
        inbox = self._inbox[: len(x)]
        inbox.copy_(x)
        return inbox


@dataclass(frozen=True)
class Gone:
    """Rows that left, with their cohorts, and what gives their answers where this device does."""

    rows: list[tuple[Cohort, GenerateRequest]]
    harvest: Harvest | None
