"""The campaign on Slurm draws enough of everything, and the same again."""

from __future__ import annotations

from collections import Counter

from eval.slurm_kills.draw import EVENTS, draw

SEEDS = range(96)


def test_phases_and_events() -> None:
    drawn = [draw(seed) for seed in SEEDS]
    phases = Counter(d.shot.phase for d in drawn)
    assert phases["score"] / len(drawn) >= 0.8
    assert min(phases[name] for name in ("load", "merge", "report")) >= 5
    events = Counter(d.event.name for d in drawn)
    assert set(events) == {event.name for event in EVENTS}
    assert min(events.values()) >= 4
    assert {d.first.ranks for d in drawn} == {2, 4}


def test_a_draw_is_whole() -> None:
    for seed in SEEDS:
        first = draw(seed)
        assert first == draw(seed)
        assert 0 <= first.shot.rank < first.first.ranks
        assert first.first.data * first.first.tensor * first.first.pipeline == first.first.ranks
        assert first.again.ranks != first.first.ranks
        other = draw(seed, sub=1)
        assert (other.event, other.shot.phase) == (first.event, first.shot.phase)
        assert other.shot.moment != first.shot.moment
