"""The rows a device warms up on are rows that its model can run, of the size it will see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ftjob import warm
from ftjob.config.groups import DecodeConfig
from ftjob.model.arch import Arch
from ftjob.plan import Machine, Plan
from ftjob.plan_generation import Generation
from ftjob.tasks.base import GenerateRequest, ScoreRequest


def arch(vocab: int, positions: int | None) -> Arch:
    return Arch("gpt2", 1, 1, 4, 4, 16, vocab, positions, 1e-5, "gelu_tanh", True)


def planned(room: Generation, max_tokens: int, step: int, stages: int = 1) -> Plan:
    machine = Machine((stages,), "cuda", 10**9, "test")
    return Plan(1, stages, 1, machine, (), max_tokens, step, 0, room)


@pytest.mark.parametrize(
    ("positions", "max_tokens", "gpu", "rows", "length"),
    [
        (1024, 16384, False, 1, 8),
        (1024, 16384, True, 129, 128),
        (1024, 10**6, True, 266, 128),
        (1024, 700, True, 5, 128),
        (1024, 10, True, 1, 128),
        (None, 640, True, 5, 128),
        (20, 16384, True, 819, 21),
        (1, 64, False, 1, 2),
    ],
)
def test_rows_to_score(
    positions: int | None, max_tokens: int, gpu: bool, rows: int, length: int
) -> None:
    chunk = warm.to_score(arch(5, positions), max_tokens, gpu)
    assert len(chunk.requests) == rows
    for request in chunk.requests:
        assert isinstance(request, ScoreRequest)
        assert len(request.ids) == length
        assert positions is None or length - 1 <= positions, "the last token is no input"
        assert 1 <= request.scored_from < length
        assert max(request.ids) < 5
    assert chunk.sequence < 0


def test_a_row_to_continue_stays_in_the_vocabulary() -> None:
    plan = planned(Generation(8, 1, 2, 99, 1, 0), 512, 0)
    (chunk,) = warm.to_continue(arch(3, 16), plan, DecodeConfig(), gpu=False)
    (request,) = chunk.requests
    assert max(request.ids) < 3


@pytest.mark.parametrize(
    ("positions", "refill", "cells", "seq2seq", "made"),
    [
        (1024, 256, 10**6, False, [256, 512, 1024, 1536, 2048]),
        (None, 256, 10**6, True, [256, 512, 1024, 1536, 2048]),
        (None, 1, 10**6, True, [256, 512, 1024, 1536, 2048]),
        (600, 3, 10**6, False, [256, 512, 1024, 1536]),
        (7, 256, 10**6, False, [256, 512, 1024, 1536]),
        (1024, 4, 1032, False, [256, 512, 1024]),
        (1024, 4, 1031, False, [256, 512]),
    ],
)
def test_rows_that_enter_have_every_size(
    positions: int | None, refill: int, cells: int, seq2seq: bool, made: list[int]
) -> None:
    """Those that such rows can have at all, once for each stage; what a prompt's last token is for
    is a step."""
    model = replace(arch(5, positions), encoder_layers=int(seq2seq))
    room = Generation(4 * refill, 1, refill, cells, 1, 0)
    plan = planned(room, 2048, 512, stages=2)
    _, *chunks = warm.to_continue(model, plan, DecodeConfig(), gpu=False)
    besides = 0 if seq2seq else 1
    sizes = [sum(len(r.ids) - besides for r in chunk.requests) for chunk in chunks]
    assert sizes == [size for size in made for _ in range(2)]
    keys = [r.key for chunk in chunks for r in chunk.requests]
    assert len(set(keys)) == len(keys), "rows of two chunks may be at work at once"
    for chunk in chunks:
        assert len(chunk.requests) <= refill
        for row in chunk.requests:
            assert isinstance(row, GenerateRequest)
            assert len(row.ids) > besides
            assert positions is None or len(row.ids) + row.max_new_tokens - 1 <= positions


@pytest.mark.parametrize(
    ("positions", "cells", "made"),
    [(1024, 10**6, 8), (8 + 4 + 3 * 7, 10**6, 8), (8 + 4 + 3 * 7 - 1, 10**6, 0), (None, 419, 0)],
)
def test_rows_that_leave_fit_the_model_and_the_cache(
    positions: int | None, cells: int, made: int
) -> None:
    """12 slots have 7 numbers of rows, with a look every 3 steps; the longest row takes 8 tokens,
    25 steps and 2 steps more before it is looked at."""
    room = Generation(12, 1, 3, cells, 3, 0)
    plan = planned(room, 2048, 0, stages=2)
    chunks = list(warm.to_continue(arch(5, positions), plan, DecodeConfig(), gpu=True))
    rows = [row for chunk in chunks for row in chunk.requests]
    if not made:
        assert len(rows) == 1
        return
    assert len(chunks) == made
    assert len({row.key for row in rows}) == len(rows) == 3 * made
    for row in rows:
        assert isinstance(row, GenerateRequest)
        assert row.options.ends == ()
