"""Where the GPUs of several ranks find each other: rank 0 keeps a store for all, on a port of its
own. `commands/run.py` opens it before the ranks start, `comm/nccl.py` meets there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftjob.link import Hello
from ftjob.plan import Plan

HERE = "127.0.0.1"


@dataclass(frozen=True)
class Meeting:
    """An open store, which lives as long as this, and its (host, port)."""

    address: tuple[str, int]
    store: Any


def open_meeting(plan: Plan, hellos: Sequence[Hello]) -> Meeting | None:
    """A store for the ranks that said hello; None where no replica's GPUs are on several ranks."""
    spans = any(len(plan.ranks_of_replica(replica)) > 1 for replica in range(plan.data))
    if plan.machine.device != "cuda" or not spans:
        return None
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("0.0.0.0", 0, None, True, wait_for_workers=False)
    host = hellos[0].host if len({h.host for h in hellos}) > 1 else HERE
    return Meeting((host, store.port), store)
