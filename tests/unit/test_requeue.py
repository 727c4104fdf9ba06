"""When a job drains because its time ends, and when it is not to come back once more."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from ftjob.errors import DRAINED, CheckpointError, ConfigError, WrongWorld
from ftjob.launch.requeue import drain_moment, has_come_back, stands_still
from ftjob.launch.signals import Signals
from ftjob.launch.world import World, detect_world
from ftjob.results.statuses import idle_device


@pytest.fixture
def signals() -> Iterator[Signals]:
    made = Signals()
    made.remember()
    yield made
    made.restore()


@pytest.mark.parametrize(
    ("end", "now", "moment"),
    [(1000, 0, 880.0), (1000, 760, 880.0), (1000, 800, 900.0), (1000, 1100, 1000.0)],
)
def test_moment_to_drain(end: int, now: float, moment: float) -> None:
    """run.drain_s before the end; of a short rest, half is worked."""
    assert drain_moment({"SLURM_JOB_END_TIME": str(end)}, 120.0, now) == moment


@pytest.mark.parametrize("env", [{}, {"SLURM_JOB_END_TIME": ""}])
def test_no_end(env: dict[str, str]) -> None:
    assert drain_moment(env, 120.0, 0.0) is None


def test_an_end_that_is_no_number() -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME='soon'"):
        drain_moment({"SLURM_JOB_END_TIME": "soon"}, 120.0, 0.0)


@pytest.mark.parametrize(
    ("rows", "attempts", "still"),
    [
        ({}, [0], False),
        ({}, [0, 1], True),
        ({0: 5}, [0, 1], False),
        ({0: 5}, [0, 1, 2], True),
        ({1: 1}, [0, 1, 2], False),
    ],
)
def test_stands_still(rows: dict[int, int], attempts: list[int], still: bool) -> None:
    assert stands_still(rows, attempts) is still


def test_has_come_back() -> None:
    assert [has_come_back({"SLURM_RESTART_COUNT": n}) for n in "012"] == [False, False, True]
    assert not has_come_back({})


def test_the_clock_drains(signals: Signals) -> None:
    signals.drain_at(time.time() + 60)
    signals.look_at_clock()
    assert not signals.draining
    signals.drain_at(time.time())
    signals.look_at_clock()
    assert signals.draining
    assert signals.stopped().code == DRAINED
    assert "run.drain_s" in str(signals.stopped())


def test_a_signal_comes_before_the_clock(signals: Signals) -> None:
    signals.drain_at(time.time())
    signals.note(signal.SIGTERM)
    signals.look_at_clock()
    assert "SIGTERM" in str(signals.stopped())


def test_a_stop_that_another_error_was_made_of() -> None:
    """Libraries catch everything: the signal stays the reason."""
    made = Signals()
    try:
        swallowed: Exception | None = None
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(1)
        except Exception as error:
            swallowed = CheckpointError(f"is not a tokenizer: {error}")
        assert swallowed is not None
        assert getattr(made.blamed(swallowed), "code", None) == DRAINED
    finally:
        made.restore()


def test_an_error_after_the_start_stays(signals: Signals) -> None:
    error = CheckpointError("torn")
    signals.note(signal.SIGUSR2)
    assert signals.blamed(error) is error


def test_a_part_of_a_step_is_no_world() -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    assert detect_world(step) == World(0, 4, "srun")
    whole = step | {"PMI_RANK": "1", "PMI_SIZE": "4"}
    assert detect_world(whole) == World(1, 4, "mpirun (PMI)")
    with pytest.raises(WrongWorld, match=r"SLURM_NTASKS=4, but .* started 2 ranks"):
        detect_world(step | {"PMI_RANK": "1", "PMI_SIZE": "2"})
    del step["SLURM_STEP_ID"]  # a batch script is no step
    assert detect_world(step | {"PMI_RANK": "1", "PMI_SIZE": "2"}).size == 2


def test_idle_device() -> None:
    def status(attempt: int, rank: int, *chunks: int) -> dict[str, object]:
        devices = [{"rank": rank, "device": i, "chunks": n} for i, n in enumerate(chunks)]
        return {"attempt": attempt, "rank": rank, "devices": devices}

    busy = [status(0, 0, 0, 0), status(1, 0, 3, 2), status(1, 1, 1, 1)]
    assert idle_device(busy, 1) is None
    assert idle_device(busy, 0) == {"rank": 0, "device": 0, "chunks": 0}
    assert idle_device([*busy, status(1, 2, 4, 0)], 1) == {"rank": 2, "device": 1, "chunks": 0}
