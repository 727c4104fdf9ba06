"""Rank 0's hand-out: one chunk ahead, to who has least to do, to all ranks in one order."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict

import pytest

from ftjob.config import build
from ftjob.handout import Handout
from ftjob.link import Done, LocalLink, Message, Work
from ftjob.model.arch import Arch
from ftjob.model.families import family
from ftjob.plan import Machine, Plan, make_plan
from ftjob.tasks.base import Row, ScoreRequest

ARCH = Arch("gpt2", 4, 4, 4, 16, 64, 50, 512, 1e-5, "gelu_tanh", True)
BATCH = build({"model": {"checkpoint": "PATH"}}).batch


class Wire(LocalLink):
    """Keeps what was sent to whom."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, Work]] = []
        self.ends: list[tuple[int, int]] = []

    def send(self, to: int, message: Message) -> None:
        assert isinstance(message, Work)
        if message.chunk is None:
            self.ends.append((to, message.replica))
        else:
            self.sent.append((to, message))


def plan(
    tensor: int, pipeline: int, *devices: int, max_tokens: int = 100, kind: str = "cpu"
) -> Plan:
    config = build(
        {
            "model": {"checkpoint": "PATH"},
            "parallel": {"tensor": tensor, "pipeline": pipeline},
            "batch": {"max_tokens": max_tokens},
        }
    )
    machine = Machine(devices, kind, 1 << 34, "test")
    return make_plan(config, ARCH, family("gpt2").tensors(ARCH), machine)


def requests(count: int, longest: int = 60) -> list[ScoreRequest]:
    made = random.Random(count)
    return [
        ScoreRequest(Row(i, i + 1, b"", ""), f"k{i}", [0] * made.randint(2, longest), 1, 1)
        for i in range(count)
    ]


def done(work: Work) -> Done:
    assert work.chunk is not None
    return Done(work.replica, work.chunk.sequence, len(work.chunk.requests), work.chunk.tokens)


@pytest.mark.parametrize(("pipeline", "devices", "replicas"), [(1, (4,), 4), (2, (4,), 2)])
@pytest.mark.parametrize(("kind", "ahead"), [("cpu", 1), ("cuda", 2)])
def test_a_chunk_a_stage_and_some_ahead(
    pipeline: int, devices: tuple[int, ...], replicas: int, kind: str, ahead: int
) -> None:
    wire = Wire()
    handout = Handout(plan(1, pipeline, *devices, kind=kind), BATCH, requests(400), wire)
    handout.step()
    assert len(wire.sent) == replicas * (pipeline + ahead)
    handout.step()
    assert len(wire.sent) == replicas * (pipeline + ahead), "nobody has finished"
    first = wire.sent[0][1]
    handout.done(done(first))
    handout.step()
    assert [w.replica for _, w in wire.sent[replicas * (pipeline + ahead) :]] == [first.replica]


def test_every_rank_of_a_replica_gets_its_chunks_in_one_order() -> None:
    wire = Wire()
    handout = Handout(plan(2, 2, 1, 1, 1, 1, 1, 1, 1, 1), BATCH, requests(50), wire)
    handout.step()
    by_rank: dict[int, list[int]] = defaultdict(list)
    for rank, work in wire.sent:
        assert rank // 4 == work.replica
        by_rank[rank].append(work.chunk.sequence)
    assert sorted(by_rank) == list(range(8))
    for rank, order in by_rank.items():
        assert order == sorted(order) == by_rank[rank // 4 * 4]


def test_nothing_is_lost_and_the_end_is_seen() -> None:
    wire, rows = Wire(), requests(97)
    handout = Handout(plan(1, 1, 3), BATCH, rows, wire)
    answered: list[int] = []
    while not (handout.ended and handout.idle):
        handout.step()
        _, work = wire.sent[len(answered)]
        handout.done(done(work))
        answered.append(work.chunk.sequence)
    assert answered == list(range(len(answered)))
    keys = [r.key for _, w in wire.sent for r in w.chunk.requests]
    assert sorted(keys) == sorted(r.key for r in rows)


def work_done(speeds: list[float], rows: int) -> tuple[list[float], list[int]]:
    """Play a run of replicas of these tokens/s: when each was last busy, and its tokens."""
    wire = Wire()
    handout = Handout(plan(1, 1, len(speeds), max_tokens=300), BATCH, requests(rows), wire)
    free, tokens = [0.0] * len(speeds), [0] * len(speeds)
    ends: list[tuple[float, int, Work]] = []
    now, seen = 0.0, 0
    while True:
        handout.step()
        for _, work in wire.sent[seen:]:
            replica = work.replica
            free[replica] = max(now, free[replica]) + work.chunk.tokens / speeds[replica]
            tokens[replica] += work.chunk.tokens
            heapq.heappush(ends, (free[replica], work.chunk.sequence, work))
        seen = len(wire.sent)
        if not ends:
            return free, tokens
        now, _, work = heapq.heappop(ends)
        handout.done(done(work))


def test_work_is_balanced_by_tokens() -> None:
    ends, tokens = work_done([1000.0] * 4, rows=600)
    assert max(tokens) - min(tokens) <= 2 * 300
    assert max(ends) - min(ends) <= 2 * 300 / 1000


def test_a_slow_replica_holds_nobody_back() -> None:
    ends, tokens = work_done([1000.0, 1000.0, 100.0], rows=600)
    perfect = sum(tokens) / 2100
    assert max(ends) <= perfect + 2 * 300 / 100  # at most what the slow one was given ahead
    assert tokens[2] < sum(tokens) / 10
