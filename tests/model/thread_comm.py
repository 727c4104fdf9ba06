"""Runs a piece of work on every device of a tensor group at once, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ftjob.comm import Comm, Halted, Pulse
from ftjob.comm.threads import Group, Member

T = TypeVar("T")
PATIENCE_S = 60.0


def run_group(ways: int, work: Callable[[Comm], T]) -> list[T]:
    """The results in rank order. A member's first error is raised here, and ends the others."""
    group, halt = Group(ways, (0, ways), None), threading.Event()
    results: dict[int, T] = {}
    errors: list[Exception] = []

    def member(rank: int) -> None:
        try:
            results[rank] = work(Member(group, rank, Pulse(halt)))
        except Halted:
            pass
        except Exception as error:
            errors.append(error)
            halt.set()

    threads = [threading.Thread(target=member, args=(r,), daemon=True) for r in range(ways)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(ways)]
