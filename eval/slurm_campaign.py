"""`python -m eval.slurm_campaign`: jobs on a real Slurm cluster that meet all that happens there.

Every seed decides event, node, phase and moment by itself (`eval/slurm_kills`). Needs root and
Slurm's Debian packages (`python tests/slurm/slurmlab install`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.kills.campaign import Campaign
from eval.kills.work import DEADLINE_S, MALFORMED, ROWS
from eval.slurm_kills.seed import SlurmSeed
from eval.slurm_kills.site import campaign_site, name_of_session

NODES = 12  # for three seeds at a time
TEXT = [
    f"Each seed submits slurm/run.sh ({ROWS} rows, {len(MALFORMED)} of them malformed, a tiny "
    "random GPT) to 2 or 4 nodes of a real Slurm cluster on one machine, where one event strikes "
    "it at a random moment. The job then comes back by itself (drain signal, requeue, preemption; "
    "crash and cut, where Slurm notices before the survivors have ended) or is given again with "
    "another number of nodes; when it has ended "
    "it is compared with a run that nobody disturbed: the same answers by the rule of `compare`, "
    "every row once, each journal whole, each attempt's code in results.json.",
    "",
    "Struck: `drain signal`, USR2 to the ranks, as before the time limit; `requeue`, an "
    "operator's; `preemption` by a job of a higher partition; `crash`, a node loses power; "
    "`cut`, a node's cable is pulled; `scancel`; `rank`, kill -9 of one rank; `slurmd`, kill "
    "-9 of a node's slurmd, which the job survives. Phases, rows done and rows in flight are "
    "what the disk showed when the event was set off. Gone after: until Slurm had ended that "
    f"run of the job; at most run.deadline_s={DEADLINE_S:g} and what Slurm itself takes (up to "
    "20 s for a lost node, 10 s of grace, 5 s before it kills). A layout is nodes x devices, "
    "tensor, pipeline and data split, tokens of a chunk.",
]


def campaign(play: Callable[[Path, int], dict[str, Any]]) -> Campaign:
    """The campaign, whose seeds are played by `play`."""
    return Campaign("slurm_campaign", "Jobs on Slurm, struck at random moments", TEXT, 96, play)


def main() -> int:
    """Run the campaign on a cluster of its own, or render it without one."""
    if "--report" in sys.argv:
        return campaign(lambda work, seed: {}).main(__doc__)
    with campaign_site(NODES, name_of_session()) as site:
        return campaign(lambda work, seed: SlurmSeed(work, seed, site).run()).main(__doc__)


if __name__ == "__main__":
    sys.exit(main())
