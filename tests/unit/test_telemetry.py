"""How phases are kept: joined on each device by itself, gaps to be seen left, and few for ever."""

from __future__ import annotations

import pytest

from ftjob.telemetry import SEEN_GAP, Phases


def kept(phases: Phases) -> list[tuple[str, int | None, float, float]]:
    return [(p["name"], p["device"], p["start_s"], p["end_s"]) for p in phases.as_list()]


def test_phases_of_devices_in_turn_are_joined() -> None:
    phases = Phases()
    for i in range(50):
        phases.add("score", 10.0 + i, 11.0 + i, 0)
        phases.add("score", 10.5 + i, 11.5 + i, 1)
    assert kept(phases) == [("score", 0, 10.0, 60.0), ("score", 1, 10.5, 60.5)]


def test_a_gap_to_be_seen_is_left() -> None:
    phases = Phases()
    phases.add("score", 9.0, 10.0, 1)
    phases.add("score", 10.0 + 0.5 * SEEN_GAP * 10, 11.0, 1)
    phases.add("score", 11.0 + 2.0 * SEEN_GAP * 11, 12.0, 1)
    phases.add("load", 12.0, 13.0, 1)
    phases.add("score", 13.0, 14.0, 1)
    assert [p[0] for p in kept(phases)] == ["score", "score", "load", "score"]


def test_the_list_stays_short_however_many_batches() -> None:
    phases = Phases()
    for i in range(100_000):  # a third of each second idle
        phases.add("score", i + 1.0, i + 1.67, 0)
    assert 100 < len(kept(phases)) < 400


def test_a_thread_may_be_in_a_phase_that_is_timed_elsewhere() -> None:
    phases = Phases()
    with phases.within("score"):
        assert phases.current() == "score"
    assert phases.current() is None
    with pytest.raises(ValueError, match="here"), phases.within("score"):
        raise ValueError("here")
    assert phases.current() == "score", "an error happened in it"
    assert kept(phases) == []
    with pytest.raises(ValueError, match="here"), phases.phase("load", 1):
        raise ValueError("here")
    assert phases.current() == "load"
    assert [p[:2] for p in kept(phases)] == [("load", 1)]
