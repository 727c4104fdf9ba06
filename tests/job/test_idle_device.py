"""A device that did nothing, though there was work for all, is an error by name."""

from __future__ import annotations

import pytest
from harness import Place, load

pytestmark = pytest.mark.timeout(60)
# As if a replica was forgotten: it never has the least to do.
FORGETS = """
import ftjob.handout

ftjob.handout.Handout._load = lambda self, replica: (replica != 0, 0)
"""


def test_a_device_without_work(place: Place, base: tuple[str, ...]) -> None:
    arguments = (*base, "cluster.devices_per_node=2", "batch.max_tokens=256")
    done = place.driver("forgets", FORGETS)(*arguments, "run.dir=run")
    done.expect(1, "rank 0 device 1 in merge: did no work", "chunks for 2 replicas")
    results = load(place.cwd / "run" / "results.json")
    assert (results["code"], load(place.cwd / "run" / "status.json")["code"]) == (1, 1)
    by_device = {d["device"]: (d["rows"], d["chunks"]) for d in results["devices"]}
    assert by_device[0][0] == 240
    assert by_device[1] == (0, 0)
    page = (place.cwd / "run" / "report.md").read_text(encoding="utf-8")
    assert "did no work" in page


def test_too_little_work_for_all(place: Place, base: tuple[str, ...]) -> None:
    """Fewer than two chunks a replica: a device may well be left out."""
    arguments = (*base, "cluster.devices_per_node=4", "dataset.limit=5", "run.dir=run")
    place(*arguments).expect(0)
    assert min(d["chunks"] for d in load(place.cwd / "run" / "results.json")["devices"]) == 0
