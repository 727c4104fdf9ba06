"""Rank 0's hand-out to replicas that generate: none waits for a chunk that it would not get.

The generate loop itself runs here, with a stage that gives no logits worth a name: a row ends at
its own max_new_tokens. A device with free slots waits for a chunk, so a hand-out that kept one back
until rows are done could wait for rows that wait for it.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ftjob.batching import Chunk, chunks, widest
from ftjob.comm import Pulse, Solo
from ftjob.comm.groups import Wires
from ftjob.config import build
from ftjob.config.groups import JobConfig
from ftjob.decode.loop import Finished, Generator
from ftjob.handout import Handout
from ftjob.link import Done, LocalLink, Message, Work
from ftjob.model.arch import Arch
from ftjob.model.arrays import Arena, Array
from ftjob.model.decoder import DecoderStage
from ftjob.model.families import family
from ftjob.model.stage import Entry
from ftjob.plan import Machine, Plan, make_plan
from ftjob.plan_generation import Generation
from ftjob.tasks.base import GenerateRequest, Row

ARCH = Arch("gpt2", 4, 4, 4, 16, 64, 50, 512, 1e-5, "gelu_tanh", True)
NOTHING = torch.zeros(0)


class Wire(LocalLink):
    """Rank `n` is replica `n`'s, all in one process; keeps what was sent to each."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.inboxes: list[deque[Work]] = [deque() for _ in range(ranks)]
        self.ends = [0] * ranks

    def send(self, to: int, message: Message) -> None:
        assert isinstance(message, Work)
        assert not self.ends[to], "nothing comes after the end"
        self.ends[to] += message.chunk is None
        self.inboxes[to].append(message)


class Silent:
    """The whole model in one device: whatever it is asked, every id is as likely. `most` rows made
    a step together."""

    most = 0

    def entry(self, ids: Array, lengths: list[int], arena: Arena) -> Entry:
        assert lengths == sorted(lengths, reverse=True)
        assert sum(lengths) == len(ids)
        return DecoderStage.entry(self, ids, lengths, arena)

    def form(self, rows: int) -> tuple[tuple[int, ...], torch.dtype]:
        return (rows, 1), torch.float32

    def enter(self, x: torch.Tensor, entry: Entry, *_: Any) -> torch.Tensor:
        return NOTHING

    def step(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        self.most = max(self.most, len(x))
        return x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), ARCH.vocab)


def configured(pipeline: int, **batch: Any) -> JobConfig:
    return build({
        "model": {"checkpoint": "PATH"},
        "dataset": {"mode": "generate"},
        "parallel": {"pipeline": pipeline},
        "batch": {"stop_every": 1, **batch},
    })  # fmt: skip


def planned(config: JobConfig, replicas: int, **generation: int) -> Plan:
    """A plan with a rank a replica."""
    machine = Machine((config.parallel.pipeline,) * replicas, "cpu", 1 << 30, "test")
    plan = make_plan(config, ARCH, family("gpt2").tensors(ARCH), machine)
    assert plan.generation is not None
    return replace(plan, generation=replace(plan.generation, **generation))


def requests(count: int, seed: int, longest: int = 30, most: int = 12) -> list[GenerateRequest]:
    made = random.Random(seed)
    return [
        GenerateRequest(
            Row(i, i + 1, b"", ""), f"k{i}", [0] * made.randint(1, longest), made.randint(1, most)
        )
        for i in range(count)
    ]


class Run:
    """Replicas at work, one after the other as `made` draws them; word of finished rows comes to
    rank 0 late and in any order."""

    def __init__(
        self, config: JobConfig, plan: Plan, rows: list[GenerateRequest], made: random.Random
    ) -> None:
        self.plan, self.made = plan, made
        self.wire = Wire(plan.machine.ranks)
        self.handout = Handout(plan, config.batch, rows, self.wire)
        self.untold: list[Done] = []
        self.keys: list[str] = []
        self.rows = [0] * plan.data  # that a replica holds and has not finished
        job = SimpleNamespace(
            config=config,
            plan=plan,
            source=SimpleNamespace(arch=ARCH, specials=SimpleNamespace(start=None, ends=())),
        )
        spec = replace(plan.devices[0], last_layer=0, first=True, last=True)
        whole = replace(spec, pipeline=0, tensor=0)
        self.running: dict[int, Iterator[Finished]] = {}
        self.stages = [Silent() for _ in range(plan.data)]
        for replica in range(plan.data):
            generator = Generator(
                cast(Any, job),
                whole,
                cast(Any, self.stages[replica]),
                Wires(Solo(), None, None),
                (torch.float32, torch.device("cpu")),
                Pulse(threading.Event()),
                nullcontext,
            )
            self.running[replica] = generator.run(lambda r=replica: self.take(r))

    def take(self, replica: int) -> Chunk | None:
        """What the device waits for: it must be there once rank 0 has heard all there is."""
        inbox = self.wire.inboxes[replica]
        if not inbox:
            self.tell(len(self.untold))
        assert inbox, "waits for a chunk, and nobody would send one"
        chunk = inbox.popleft().chunk
        if chunk is not None:
            self.rows[replica] += len(chunk.requests)
        return chunk

    def tell(self, count: int) -> None:
        """Rank 0 hears of some finished rows, and looks around."""
        self.made.shuffle(self.untold)
        for message in self.untold[:count]:
            self.handout.done(message)
        del self.untold[:count]
        self.handout.step()

    def to_the_end(self, drain_at: int | None = None) -> None:
        self.handout.step()
        while self.running:
            replica = self.made.choice(list(self.running))
            finished = next(self.running[replica], None)
            if finished is None:
                del self.running[replica]
                continue
            part = finished.chunk.requests
            self.keys += [r.key for r in part]
            self.rows[replica] -= len(part)
            self.untold.append(Done(replica, finished.chunk.sequence, len(part), finished.tokens))
            if drain_at is not None and len(self.keys) >= drain_at:
                self.handout.close()
            self.tell(self.made.choice([0, 0, 1, len(self.untold)]))
        self.tell(len(self.untold))
        assert self.handout.ended
        assert self.handout.idle
        assert self.rows == [0] * self.plan.data
        assert self.wire.ends == [1] * self.plan.machine.ranks


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("pipeline", [1, 2, 4])
@pytest.mark.parametrize("lanes", [4, 16, 21])
def test_nobody_waits_in_vain(replicas: int, pipeline: int, lanes: int) -> None:
    """With few slots and many, chunks of one row and of several, every row is answered once."""
    for seed in range(2):
        made = random.Random(seed)
        config = configured(
            pipeline,
            lanes=lanes,
            order=made.choice(["length", "dataset"]),
            max_tokens=made.choice([1, 60, 500]),
            stop_every=made.choice([1, 3]),
        )
        rows = requests(60, seed)
        run = Run(config, planned(config, replicas), rows, made)
        run.to_the_end()
        assert sorted(run.keys) == sorted(r.key for r in rows)


@pytest.mark.parametrize("cells", [42, 60, 100])
@pytest.mark.parametrize("pipeline", [1, 2])
def test_nobody_waits_in_vain_for_room(cells: int, pipeline: int) -> None:
    """Where the cache holds few rows, slots stay free and a chunk waits at the door."""
    for seed in range(3):
        made = random.Random(seed)
        config = configured(pipeline, lanes=16, order="dataset", max_tokens=500)
        rows = requests(60, seed)
        run = Run(config, planned(config, 2, cells=cells), rows, made)
        run.to_the_end()
        assert sorted(run.keys) == sorted(r.key for r in rows)


@pytest.mark.parametrize("pipeline", [1, 2])
def test_chunks_of_few_rows_fill_all_slots(pipeline: int) -> None:
    """Rows so long that a chunk has fewer than may enter together: no slot stays free for that."""
    config = configured(pipeline, lanes=16 * pipeline, order="dataset", max_tokens=60)
    plan = planned(config, 1)
    assert plan.generation is not None
    assert (plan.generation.slots, plan.generation.refill) == (16, 8)
    rows = [replace(row, ids=[0] * 30, max_new_tokens=12) for row in requests(90, 1)]
    run = Run(config, plan, rows, random.Random(1))
    run.to_the_end()
    assert len(run.keys) == len(rows)
    assert run.stages[0].most == 16


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_fewer_rows_than_replicas(rows: int) -> None:
    config = configured(2, lanes=16)
    run = Run(config, planned(config, 4), requests(rows, 1), random.Random(1))
    run.to_the_end()
    assert len(run.keys) == rows


@pytest.mark.parametrize("pipeline", [1, 2])
def test_a_drain_finishes_what_was_given(pipeline: int) -> None:
    """Each replica holds as many rows as it has slots, and one chunk: that is all that comes."""
    config = configured(pipeline, lanes=8)
    plan = planned(config, 2)
    run = Run(config, plan, requests(300, 4), random.Random(4))
    run.to_the_end(drain_at=20)
    assert plan.generation is not None
    assert 20 < len(run.keys) <= 20 + 2 * (8 + 1) + 2 * plan.generation.refill
    assert len(set(run.keys)) == len(run.keys)


@pytest.mark.parametrize("pipeline", [1, 2])
def test_rows_ahead(pipeline: int) -> None:
    """A replica is given its slots and at most a chunk, and more as soon as rows are done."""
    config = configured(pipeline, lanes=16)
    plan = planned(config, 2)
    assert plan.generation is not None
    slots, refill = plan.generation.slots * pipeline, plan.generation.refill
    wire = Wire(2)
    handout = Handout(plan, config.batch, requests(300, 3), wire)
    handout.step()
    given = [sum(len(w.chunk.requests) for w in box if w.chunk) for box in wire.inboxes]
    assert all(slots < n <= slots + refill for n in given)
    before = [len(box) for box in wire.inboxes]
    handout.step()
    assert [len(box) for box in wire.inboxes] == before, "nothing is done"
    first = wire.inboxes[1][0].chunk
    assert first is not None
    for _ in first.requests:  # row by row, as they finish
        handout.done(Done(1, first.sequence, 1, 1))
        handout.step()
    assert len(wire.inboxes[0]) == before[0]
    assert len(wire.inboxes[1]) > before[1]


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize(
    ("refill", "cells", "max_tokens"), [(1, 10**6, 500), (4, 10**6, 500), (4, 130, 500), (4, 1, 9)]
)
def test_chunks_enter_at_once(refill: int, cells: int, max_tokens: int, order: bool) -> None:
    """At most `refill` rows, and each in the cache as wide as the widest."""
    room = Generation(16, beams=3, refill=refill, cells=cells, stop_every=1, score_bytes=0)
    rows = requests(200, 7)
    made = list(chunks(rows, window=64, max_tokens=max_tokens, by_length=order, generation=room))
    assert sorted(r.key for c in made for r in c.requests) == sorted(r.key for r in rows)
    for chunk in made:
        each = [widest(chunk.requests, 3)] * len(chunk.requests)
        assert len(each) <= refill
        assert len(each) == 1 or len(each) * max(each) <= cells
        assert len(each) == 1 or chunk.tokens <= max_tokens
    largest = max(len(c.requests) for c in made)
    assert largest == 1 if refill == 1 or cells == 1 else largest > 1


def test_the_widest_slot_has_the_longest_prompt_and_the_most_new_tokens() -> None:
    long, talkative = ([0] * 9, 2), ([0] * 5, 7)
    rows = [GenerateRequest(Row(0, 1, b"", ""), "k", *row) for row in (long, talkative)]
    assert [widest([row], 3) for row in rows] == [9 + 3 * 2, 5 + 3 * 7]
    assert widest(rows, 3) == 9 + 3 * 7
