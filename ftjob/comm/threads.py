"""Groups and pipes between the device threads of one process, through shared memory.

A `Group` is a tensor group's end in this process: it adds what its own threads hold and, where the
group has members on other ranks, lets its leader swap subtree sums through an `Exchange` (`mpi`).
A `Pipe` hands activations to the next stage's thread, here or by way of `mpi.Courier`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ftjob.comm import Form, Pulse, Reduction
from ftjob.comm.tree import Span, reduce_span, whole_spans

# Between two looks at whether the rank has given up.
GLANCE_S = 0.1


class Exchange(Protocol):
    """The way to the members of a group on other ranks; used by one thread, the leader."""

    def swap(
        self, mine: dict[Span, torch.Tensor], spans: Callable[[Span], list[Span]], pulse: Pulse
    ) -> dict[Span, torch.Tensor]:
        """Give this process's parts to every other process of the group, and get theirs: the
        `spans` of the ranks it holds, all of one shape and dtype."""


class Meeting:
    """Where the threads of a group wait until all of them have come."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._condition = threading.Condition()
        self._come = self._round = 0

    def wait(self, pulse: Pulse) -> None:
        """Return when every thread of the group has called this once more."""
        if self.size == 1:
            return
        with self._condition:
            self._come += 1
            if self._come == self.size:
                self._come, self._round = 0, self._round + 1
                self._condition.notify_all()
                return
            now = self._round
            with pulse.waiting():
                while self._round == now:
                    if not self._condition.wait(GLANCE_S):
                        pulse()


class Board:
    """What the threads lay open to each other within one collective."""

    def __init__(self) -> None:
        self.given: dict[Span, torch.Tensor] = {}
        self.sums: dict[Span, torch.Tensor] = {}
        self.result: Any = None


class Group:
    """What the threads of one process share of a tensor group of `size`; they are its logical
    ranks `held`, and `exchange` leads to the others."""

    def __init__(self, size: int, held: Span, exchange: Exchange | None) -> None:
        self.size, self.held, self.exchange = size, held, exchange
        self.spans = self.spans_of(held)
        self.meeting = Meeting(held[1] - held[0])
        # used in turn: a thread that is ahead never touches what a slower one still reads
        self.boards = (Board(), Board())

    def spans_of(self, held: Span) -> list[Span]:
        """The subtrees that a process holding these ranks adds up."""
        return whole_spans(held, (0, self.size))


class Member:
    """One device's `Comm` in a `Group`."""

    near = None

    def __init__(self, group: Group, rank: int, pulse: Pulse) -> None:
        self._group, self._pulse = group, pulse
        self.rank, self.size = rank, group.size
        self._leads = rank == group.held[0]
        self._turn = 0

    def all_reduce(self, x: torch.Tensor, op: Reduction = "sum") -> torch.Tensor:
        """The sum or maximum over the group by the tree of `comm.tree`, each thread adding a
        share of the elements."""
        group, board = self._group, self._open()
        x = x.contiguous()
        if self._leads:
            board.sums = {s: torch.empty_like(x) for s in group.spans if s[1] - s[0] > 1}
        self._give(board, x)
        share = self._share(x.numel())
        cut = {span: t.view(-1)[share] for span, t in board.given.items()}
        for span, total in board.sums.items():
            total.view(-1)[share] = reduce_span(span, cut, op)
        group.meeting.wait(self._pulse)
        if group.exchange is None:
            return board.sums[0, self.size]
        if self._leads:
            mine = {s: board.sums[s] if s in board.sums else board.given[s] for s in group.spans}
            parts = mine | group.exchange.swap(mine, group.spans_of, self._pulse)
            board.result = reduce_span((0, self.size), parts, op)
        return self._result(board)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Every member's tensor, stacked in logical order."""
        group, board = self._group, self._open()
        self._give(board, x.contiguous())
        if self._leads:
            every = dict(board.given)
            if group.exchange is not None:
                every |= group.exchange.swap(every, _leaves, self._pulse)
            board.result = torch.stack([every[r, r + 1] for r in range(self.size)])
        return self._result(board)

    def _open(self) -> Board:
        self._turn ^= 1
        return self._group.boards[self._turn]

    def _give(self, board: Board, x: torch.Tensor) -> None:
        """Lay `x` open to the others; return when all of them have done so."""
        board.given[self.rank, self.rank + 1] = x
        self._group.meeting.wait(self._pulse)

    def _result(self, board: Board) -> torch.Tensor:
        """What the leader has made."""
        self._group.meeting.wait(self._pulse)
        result: torch.Tensor = board.result
        return result

    def _share(self, elements: int) -> slice:
        """The elements this thread adds up."""
        first, last = self._group.held
        ways, place = last - first, self.rank - first
        return slice(elements * place // ways, elements * (place + 1) // ways)


def _leaves(held: Span) -> list[Span]:
    return [(rank, rank + 1) for rank in range(*held)]


class Pipe:
    """The `Way` through shared memory; `capacity` bounds how far the stage before may run ahead."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._condition = threading.Condition()
        self._held: deque[tuple[int, torch.Tensor]] = deque()

    def put(self, sequence: int, x: torch.Tensor, pulse: Pulse) -> None:
        """Hand over the activations of chunk `sequence`, once there is room."""
        with self._condition:
            if len(self._held) >= self._capacity:
                with pulse.waiting():
                    while len(self._held) >= self._capacity:
                        if not self._condition.wait(GLANCE_S):
                            pulse()
            self._held.append((sequence, x))
            self._condition.notify_all()

    def take(self, sequence: int, pulse: Pulse, form: Form) -> torch.Tensor:
        """The activations of chunk `sequence`, which must be the next to come.

        Raises:
            RuntimeError: where another chunk's come (a bug of ours: the stages' order differs).
        """
        with self._condition:
            if not self._held:
                with pulse.waiting():
                    while not self._held:
                        if not self._condition.wait(GLANCE_S):
                            pulse()
            found, x = self._held.popleft()
            self._condition.notify_all()
        if found != sequence:
            raise RuntimeError(f"expected the activations of chunk {sequence}, got {found}'s")
        return x

    def poll(self) -> tuple[int, torch.Tensor] | None:
        """The next chunk and its activations, if there are any."""
        with self._condition:
            if not self._held:
                return None
            taken = self._held.popleft()
            self._condition.notify_all()
            return taken

    @property
    def empty(self) -> bool:
        """Whether nothing is on its way."""
        with self._condition:
            return not self._held

    @property
    def room(self) -> bool:
        """Whether another chunk's activations may be put."""
        with self._condition:
            return len(self._held) < self._capacity
