"""How ranks end as one: the first cause stays, unless it was a drain that another one explains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ftjob.ending import (
    LOST_IN_DRAIN_S,
    await_leader,
    close_all,
    first_cause,
    lost_rank,
    patience,
    report_trouble,
)
from ftjob.errors import DEADLINE, DRAINED, KILLED, Cause
from ftjob.link import Closed, Leave, Message, Start, Stop, Trouble
from ftjob.plan import Machine

FAILED = Cause(3, "a file is missing", 1)
BUG = Cause(1, "a bug", 0)
DRAIN = Cause(DRAINED, "drained on SIGTERM", 0)


class Script:
    """A link on which the given messages arrive, one a look or all at once; who is in `silent`
    says nothing."""

    rank = 0
    data = None

    def __init__(
        self,
        size: int,
        *coming: tuple[int, Message],
        silent: dict[int, float] | None = None,
        at_once: bool = False,
    ) -> None:
        self.at_once = at_once
        self.size, self.coming, self.silent = size, list(coming), silent or {}
        self.sent: list[tuple[int, Message]] = []

    def send(self, to: int, message: Message) -> None:
        self.sent.append((to, message))

    def poll(self) -> list[tuple[int, Message]]:
        count = len(self.coming) if self.at_once else 1
        found, self.coming = self.coming[:count], self.coming[count:]
        return found

    def put_back(self, messages: list[tuple[int, Message]]) -> None:
        self.coming = messages + self.coming

    def beat(self, stuck_s: float | None) -> None:
        pass

    def silent_s(self, rank: int) -> float:
        return self.silent.get(rank, 0.0)

    @contextmanager
    def keepalive(self) -> Iterator[None]:
        yield

    def leave(self, code: int, meet: bool, limit_s: float) -> None:
        raise AssertionError("not here")


def closed(*ranks: int) -> list[tuple[int, Message]]:
    return [(rank, Closed()) for rank in ranks]


@pytest.mark.parametrize("cause", [None, BUG, DRAIN], ids=["none", "bug", "drain"])
def test_everybody_is_told_and_closes(cause: Cause | None) -> None:
    link = Script(3, *closed(2, 1))
    assert close_all(link, cause, 10) == cause
    assert link.sent == [(1, Stop(cause)), (2, Stop(cause))]
    assert not link.coming


def test_the_first_cause_stays() -> None:
    link = Script(3, (1, Trouble(FAILED)), *closed(1, 2))
    assert close_all(link, BUG, 10) == BUG
    assert first_cause(None, FAILED) == FAILED


def test_a_failure_while_all_seems_done_counts() -> None:
    link = Script(2, (1, Trouble(FAILED)), *closed(1))
    assert close_all(link, None, 10) == FAILED


def test_a_start_that_crosses_the_trouble_decides_nothing() -> None:
    """Rank 0 sent it before it knew, as where a signal reaches all ranks at once."""
    start = Start({}, Machine((1, 1), "cpu", 1, ""), (1, 1), "", 0, "", {}, 0.0)
    link = Script(2, (0, start), (0, Stop(DRAIN)))
    assert report_trouble(link, DRAIN, 10) == Stop(DRAIN)
    assert link.sent == [(0, Trouble(DRAIN))]


def test_a_stop_right_behind_a_start_stays_to_be_read() -> None:
    """Rank 0 drains at once: both messages are there when the follower looks."""
    start = Start({}, Machine((1, 1), "cpu", 1, ""), (1, 1), "", 0, "", {}, 0.0)
    link = Script(2, (0, start), (0, Stop(DRAIN)), (0, Leave(75, True)), at_once=True)
    assert await_leader(link, 10) is start
    assert link.poll() == [(0, Stop(DRAIN)), (0, Leave(75, True))]


def test_a_rank_that_lives_and_does_not_close() -> None:
    link = Script(3, *closed(2))
    cause = close_all(link, DRAIN, 0.1)
    assert cause is not None
    assert (cause.code, cause.rank, cause.lost) == (DEADLINE, 1, True)
    assert "twice run.deadline_s" in cause.message


def test_a_failure_explains_a_drain() -> None:
    link = Script(3, (2, Trouble(FAILED)), *closed(1, 2))
    assert close_all(link, DRAIN, 10) == FAILED


def test_a_silent_rank_explains_a_drain() -> None:
    link = Script(3, *closed(2), silent={1: LOST_IN_DRAIN_S + 0.1})
    cause = close_all(link, DRAIN, 60)
    assert cause is not None
    assert (cause.code, cause.rank, cause.lost) == (KILLED, 1, True)


def test_a_silent_rank_is_given_the_deadline_else() -> None:
    link = Script(3, *closed(2), silent={1: 10.1})
    cause = close_all(link, None, 10)
    assert cause is not None
    assert (cause.code, cause.rank, cause.lost) == (DEADLINE, 1, True)
    assert close_all(Script(3, *closed(2), silent={1: 10.1}), BUG, 10) == BUG


def test_patience() -> None:
    assert patience(60, draining=False) == 60
    assert patience(60, draining=True) == LOST_IN_DRAIN_S
    assert patience(1, draining=True) == 1
    assert "60 s" in lost_rank(1, 60, "score").message
    gone = lost_rank(1, 60, "score", silent_s=math.inf)
    assert (gone.code, gone.lost) == (KILLED, True)
    assert "cannot reach" in gone.message


@pytest.mark.parametrize("told", [Stop(BUG), Leave(2, True)], ids=["stop", "leave"])
def test_a_follower_with_trouble_waits_to_be_told(told: Message) -> None:
    link = Script(2, (0, told))
    assert report_trouble(link, FAILED, 10) == told
    assert link.sent == [(0, Trouble(FAILED))]


def test_a_follower_does_not_wait_for_a_silent_rank_0() -> None:
    assert report_trouble(Script(2, silent={0: 10.1}), FAILED, 10) is None
