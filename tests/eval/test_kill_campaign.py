"""A short draw of the kill campaign: one seed for each phase a kill can meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.kill_campaign import play
from eval.kills.campaign import run_seeds
from eval.kills.draw import PHASES, Draw, draw


def cheap(drawn: Draw) -> bool:
    """One kill, few processes, no wait for a deadline."""
    (shot, *more), ranks = drawn.shots, sum(layout.ranks for layout in drawn.layouts)
    return not more and ranks <= 3 and shot.victim in ("rank", "all")


@pytest.mark.timeout(240)
def test_a_short_draw(tmp_path: Path) -> None:
    """Each passes every check; a second start has nothing to do."""
    seeds = [
        next(s for s in range(1000) if draw(s).shots[0].phase == phase and cheap(draw(s)))
        for phase in PHASES
    ]
    outcomes = list(run_seeds(tmp_path, seeds, 2, play))
    assert [o["problems"] for o in outcomes] == [[]] * len(PHASES)
    kills = [o["attempts"][0]["kill"] for o in outcomes]
    assert {"load", "score"} <= {kill["phase"] for kill in kills}
    assert any(kill["in_flight"] for kill in kills)
    assert list(run_seeds(tmp_path, seeds, 2, play)) == []
    assert not list(tmp_path.glob("seed0*")), "what passed is removed"
