"""A tensor's way to another rank breaks: that is the other one's end, and no bug of this rank's."""

from __future__ import annotations

import pytest

from ftjob.comm.mpi import _complete
from ftjob.errors import KILLED, PeerLost, cause_of
from ftjob.results.statuses import first_word


class Broken:
    """A request whose sender has gone, as mpich tells of it."""

    def Test(self) -> bool:
        """Fails as mpi4py does."""
        raise RuntimeError(
            "Other MPI error, error stack:\n"
            "internal_Test(109): MPI_Test(...) failed\n"
            "copy_iovs(224): process_vm_readv failed (errno 3)"
        )


def test_a_broken_way_is_the_other_rank_s_end() -> None:
    with pytest.raises(PeerLost, match="process_vm_readv failed") as caught:
        _complete(Broken())
    cause = cause_of(caught.value, 0, "score")
    assert (cause.code, cause.lost, cause.traceback) == (KILLED, True, None)


def test_the_other_rank_s_own_word_counts_more() -> None:
    seen = {"rank": 0, "code": KILLED, "cause": {"code": KILLED, "lost": True, "rank": 0}}
    failed = {"rank": 1, "code": 3, "cause": {"code": 3, "lost": False, "rank": 1}}
    assert first_word([seen, failed]) is failed
