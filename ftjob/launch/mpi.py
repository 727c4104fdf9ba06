"""The control messages between ranks over MPI, and how MPI is started and left.

Nothing here waits inside MPI, where no Python signal handler runs: every operation is non-blocking
and polled. Messages are pickles between the ranks of one job. `launch/ranks.py` connects,
`rank` talks; tensors go over `data` by `comm/mpi.py`.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftjob.errors import DEADLINE, ConfigError, WrongWorld
from ftjob.link import BEAT_S, Beat, Message

GONE = -math.inf  # when a rank was heard of that cannot be reached any more
# Launchers pass on what was printed a little later, and an abort ends them at once.
PRINT_S = 0.2


class MpiLink:
    """The control messages of one rank over MPI, and the communicator for its tensors."""

    def __init__(self, mpi: Any, rank: int, size: int) -> None:
        self._mpi, self.rank, self.size = mpi, rank, size
        self._control = mpi.COMM_WORLD.Dup()
        self.data = mpi.COMM_WORLD.Dup()
        self._sent: list[tuple[Any, bytes]] = []
        self._coming: list[tuple[int, Any, bytearray]] = []
        self._unread: list[tuple[int, Message]] = []
        now = time.monotonic()
        self._heard = [now] * size
        self._listened = now
        self._next_beat = now
        self._lock = threading.Lock()

    def send(self, to: int, message: Message) -> None:
        """Send without waiting; a message to oneself goes the same way. One that cannot be sent
        is dropped: the rank has gone, and is not heard again."""
        body = self._mpi.pickle.dumps(message)
        with self._lock:
            self._sent = [(r, b) for r, b in self._sent if not self._complete(r)]
            try:
                self._sent.append((self._control.Isend(body, dest=to), body))
            except self._mpi.Exception:  # libfabric tells at once, UCX later
                self._heard[to] = GONE

    def poll(self) -> list[tuple[int, Message]]:
        """What has arrived, oldest first; a long message may still be on its way."""
        self._forgive()
        status = self._mpi.Status()
        while (mail := self._mail(status)) is not None:
            body = bytearray(status.Get_count(self._mpi.BYTE))
            self._coming.append((status.Get_source(), mail.Irecv(body), body))
        found, self._unread = self._unread, []
        late: list[tuple[int, Any, bytearray]] = []
        for source, request, body in self._coming:
            if any(source == other for other, *_ in late) or not self._complete(request, source):
                late.append((source, request, body))
                continue
            if self._heard[source] == GONE:
                continue
            self._heard[source] = time.monotonic()
            found.append((source, self._mpi.pickle.loads(body)))
        self._coming = late
        return found

    def put_back(self, messages: list[tuple[int, Message]]) -> None:
        """Leave messages to the next `poll`, before all others."""
        self._unread = messages + self._unread

    def _forgive(self) -> None:
        """Nobody was silent while we did not listen: busy, or stopped and woken again."""
        now = time.monotonic()
        deaf = max(0.0, now - self._listened - BEAT_S)
        self._heard = [heard + deaf for heard in self._heard]
        self._listened = now

    def _complete(self, request: Any, source: int | None = None) -> bool:
        """Whether a request is over. MPI tells of a rank that has gone to whoever polls next; the
        request itself has failed only where MPI freed it, and then `source` is not heard again."""
        try:
            return bool(request.Test())
        except self._mpi.Exception:
            if source is not None and not request:
                self._heard[source] = GONE
            return not request

    def _mail(self, status: Any) -> Any:
        """A message that has arrived, or None."""
        try:
            return self._control.Improbe(status=status)
        except self._mpi.Exception:  # as above
            return None

    def beat(self, stuck_s: float | None) -> None:
        """A sign of life each `BEAT_S`."""
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + BEAT_S
        for rank in range(1, self.size) if self.rank == 0 else (0,):
            self.send(rank, Beat(stuck_s))

    def silent_s(self, rank: int) -> float:
        """Seconds of listening since anything came from a rank."""
        return time.monotonic() - self._heard[rank]

    @contextmanager
    def keepalive(self) -> Iterator[None]:
        """Inside, a thread beats."""
        over = threading.Event()

        def beats() -> None:
            while not over.wait(BEAT_S / 2):
                self.beat(None)

        thread = threading.Thread(target=beats, name="keepalive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def leave(self, code: int, meet: bool, limit_s: float) -> None:
        """Meet all ranks, so that none is killed by its launcher while it still writes; where they
        do not come, abort all of them. Returns after success only: with another code the process
        ends here, because the launcher stops it as soon as the first rank has gone.
        """
        met = False
        if meet:
            request = self._control.Ibarrier()
            end = time.monotonic() + limit_s
            while not (met := request.Test()) and time.monotonic() < end:
                time.sleep(0.002)
        if not met:
            time.sleep(PRINT_S)
            self._mpi.COMM_WORLD.Abort(code)
        if code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        self.poll()  # MPI ends cleanly only where nothing is left unread
        self._mpi.Finalize()


def connect(rank: int, size: int, launcher: str, limit_s: float) -> MpiLink:
    """Start MPI and check that it is the world that the launcher announced.

    Raises:
        ConfigError: for a world of another size or order, or an MPI without threads.
    """
    try:
        mpi = _library()
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"{size} ranks were started (launcher: {launcher}), but no MPI library was found: "
            f"{str(error).splitlines()[0]}. Install one: pip install 'ftjob[mpi]', or load your "
            "site's module."
        ) from None
    provided = _initialise(mpi, limit_s)
    world = mpi.COMM_WORLD
    if (world.rank, world.size) != (rank, size):
        raise WrongWorld(
            f"rank {rank} of {size} (launcher: {launcher}) finds itself rank {world.rank} of "
            f"{world.size} in MPI: the launcher and the MPI library do not know each other. Under "
            "srun choose its --mpi: pmi2 for mpich and Intel MPI, pmix for Open MPI."
        )
    if provided != mpi.THREAD_MULTIPLE:
        raise ConfigError(
            "this MPI library does not allow calls from several threads (MPI_THREAD_MULTIPLE); "
            "use another one: pip install 'ftjob[mpi]'."
        )
    return MpiLink(mpi, rank, size)


def library_version() -> str | None:
    """What the MPI library calls itself, in one line, without starting it; None where there is
    none."""
    try:
        line = str(_library().Get_library_version()).strip("\x00").split("\n")[0]
        return " ".join(line.split())
    except (ImportError, RuntimeError):
        return None


def _library() -> Any:
    """mpi4py's module, which binds to the library and starts nothing."""
    import mpi4py

    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    from mpi4py import MPI

    return MPI


def _initialise(mpi: Any, limit_s: float) -> int:
    """MPI_Init_thread, which waits for every rank and which mpi4py calls with the interpreter held;
    called so that it is not, a watchdog can end the process. Returns the level of threads given."""
    come = threading.Event()

    def watch() -> None:
        if not come.wait(limit_s):
            message = (
                f"not all ranks have come to MPI_Init within {limit_s:g} s (run.deadline_s). Where "
                "srun started them: does its --mpi suit this MPI, and is MPIR_CVAR_CH4_NETMOD=ofi "
                "set for mpich (README, Slurm)?"
            )
            print(f"ftjob: {message}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(DEADLINE)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    provided = ctypes.c_int(-1)
    library = ctypes.CDLL(mpi.__file__)
    library.MPI_Init_thread(None, None, ctypes.c_int(mpi.THREAD_MULTIPLE), ctypes.byref(provided))
    come.set()
    mpi.COMM_WORLD.Set_errhandler(mpi.ERRORS_RETURN)
    return provided.value
