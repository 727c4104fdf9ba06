"""A rank that MPI refuses to send to has gone: no error of the sender's, and not heard again."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from ftjob.comm.mpi import reaching
from ftjob.errors import PeerLost
from ftjob.launch.mpi import MpiLink
from ftjob.link import Beat, LocalLink


class MpiError(RuntimeError):
    """As mpi4py's."""


class Wire:
    """A communicator whose rank 1 has gone."""

    sent: tuple[int, ...] = ()

    def Dup(self) -> Wire:
        """Itself."""
        return self

    def Isend(self, body: bytes, dest: int) -> Any:
        """libfabric's answer."""
        if dest == 1:
            raise MpiError("OFI call tinjectdata failed (No such file or directory)")
        self.sent += (dest,)
        return SimpleNamespace(Test=lambda: True)


def test_send_to_a_rank_that_has_gone() -> None:
    wire = Wire()
    mpi = SimpleNamespace(COMM_WORLD=wire, pickle=pickle, Exception=MpiError)
    link = MpiLink(mpi, 0, 3)
    for rank in (1, 2):
        link.send(rank, Beat())
    assert math.isinf(link.silent_s(1))
    assert link.silent_s(2) < 60
    assert wire.sent == (2,)


def test_tensors_to_a_rank_that_has_gone() -> None:
    with pytest.raises(PeerLost, match="tinjectdata"), reaching():
        Wire().Isend(b"", 1)


def test_messages_put_back_come_first() -> None:
    link = LocalLink()
    for number in (1, 2, 3):
        link.send(0, Beat(number))
    _, *rest = link.poll()
    link.send(0, Beat(4))
    link.put_back(rest)
    assert [message.stuck_s for _, message in link.poll() if isinstance(message, Beat)] == [2, 3, 4]
