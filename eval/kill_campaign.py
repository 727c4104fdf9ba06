"""`python -m eval.kill_campaign`: kill jobs at random moments, resume them, judge what comes out.

Every seed decides layouts, victim and moment by itself (`eval/kills`). `--report` makes the raw
JSON and the report of what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from eval.kills.campaign import Campaign
from eval.kills.draw import SECOND_KILL
from eval.kills.seed import Seed
from eval.kills.work import DEADLINE_S, MALFORMED, ROWS

TEXT = [
    f"Each seed starts a job ({ROWS} rows, {len(MALFORMED)} of them malformed, a tiny random GPT) "
    "under mpirun, kills it with SIGKILL at a random moment, resumes it under another layout and "
    f"number of ranks ({SECOND_KILL:.0%} of the seeds are killed a second time), and when it has "
    "ended compares it with a run that nobody disturbed: the same answers by the rule of "
    "`compare`, every row once, each journal whole up to a torn last line, each attempt's code in "
    "results.json.",
    "",
    "Struck: `rank`, one rank's process, and mpirun ends the others; `rank, alone`, the same while "
    "mpirun is frozen, so that the others must notice by themselves (run.deadline_s="
    f"{DEADLINE_S:g}); `launcher`, mpirun's own process; `all`, every process at once, as a lost "
    "node looks. Phases, rows done and rows in flight are what the disk showed at the kill: in "
    "flight are the rows of chunks that were handed out and not journaled. A layout is ranks x "
    "devices, tensor, pipeline and data split, tokens of a chunk.",
]


def play(work: Path, seed: int) -> dict[str, Any]:
    """One seed's outcome."""
    return Seed(work, seed).run()


CAMPAIGN = Campaign("kill_campaign", "Jobs killed at random moments", TEXT, 200, play)


if __name__ == "__main__":
    sys.exit(CAMPAIGN.main(__doc__))
