"""A short draw of the campaign on Slurm: one event while rows are in flight, one in the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurmlab import Cluster

from eval.kills.campaign import run_seeds
from eval.slurm_kills.draw import draw
from eval.slurm_kills.seed import SlurmSeed
from eval.slurm_kills.site import Site

pytestmark = pytest.mark.timeout(200)


def seed_of(event: str, phase: str) -> int:
    """The first seed of such an event, on two nodes."""
    drawn = ((s, draw(s)) for s in range(5000))
    return next(
        s for s, d in drawn if (d.event.name, d.shot.phase, d.first.ranks) == (event, phase, 2)
    )


def test_a_short_draw(cluster: Cluster, tmp_path: Path) -> None:
    """Each passes every check; a second start has nothing to do."""
    site = Site(cluster)
    seeds = [seed_of("drain signal", "score"), seed_of("scancel", "report")]

    def play(work: Path, seed: int) -> dict[str, object]:
        return SlurmSeed(work, seed, site).run()

    outcomes = sorted(run_seeds(tmp_path, seeds, 1, play), key=lambda o: seeds.index(o["seed"]))
    assert [o["problems"] for o in outcomes] == [[], []]
    kills = [o["attempts"][0]["kill"] for o in outcomes]
    assert [kill["victim"] for kill in kills] == ["drain signal", "scancel"]
    assert kills[0]["phase"] == "score"
    assert kills[0]["in_flight"] > 0
    assert outcomes[0]["codes"] == [75, 0]
    assert list(run_seeds(tmp_path, seeds, 1, play)) == []
