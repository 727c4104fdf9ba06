"""While a rank serves, Python's garbage collector leaves alone what lasts as long as the run: a
look through it takes some 100 ms, in which no thread launches anything. Afterwards it looks again.
"""

from __future__ import annotations

import pytest
from harness import Place, load

pytestmark = pytest.mark.timeout(60)

# Writes how many objects are left alone: before the devices are ready, when they end, at exit.
SEEN = """
import atexit
import gc
import json
from pathlib import Path
from ftjob.rank import Rank

seen = [gc.get_freeze_count()]
real_finish = Rank._finish_devices


def finish(self):
    seen.append(gc.get_freeze_count())
    return real_finish(self)


def end():
    seen.append(gc.get_freeze_count())
    Path("seen.json").write_text(json.dumps(seen))


Rank._finish_devices = finish
atexit.register(end)
"""


def test_what_lasts_is_left_alone_while_rows_are_served(place: Place) -> None:
    place.driver("seen", SEEN)("model=demo_gpt", "dataset.limit=3", "run.dir=run").expect(0)
    before, serving, after = load(place.cwd / "seen.json")
    assert serving > 10_000
    assert before == after == 0
