"""`python -m eval.bench.h200_x2`: every pair of `workloads_x2`, on one GPU and on two, or in two
ways to use two. It writes the raw JSON after each, and the report in the end.

Cheap and important pairs come first. An interrupted campaign goes on, as `campaign` says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from eval.bench.campaign import Campaign, Turn, machine_facts, to_run
from eval.bench.launched import launched
from eval.bench.sides import PassSide, SizeSide, in_turn
from eval.bench.sides_page import render_sides
from eval.bench.workloads_x2 import PAIRS, Pair, Side

CAMPAIGN = Campaign(
    "h200-x2",
    "sides",
    "Two GPUs beside one",
    (
        "Random weights of the right shape in bf16, greedy, every row as long as asked. A time "
        "runs from token ids on the host to answers on the host, without load, warm-up and "
        "capture; both sides of a pair lie ready in one process and run in turn on the same rows, "
        "and a ratio is of the rounds that both have. Sets of rows that are continued are timed "
        "from the first chunk given to the last answer, their end included, on threads made anew "
        "for each pass, because stages wait for more rows until they are told that there are "
        "none. Whole runs are the command itself, one launch a side: rows one by one are timed "
        "from answer to answer in the journal. What is given of FasterTransformer was measured "
        "before on one and two H200s.",
    ),
    render_sides,
)


def main(argv: Sequence[str] | None = None, pairs: Sequence[Pair] = PAIRS) -> int:
    """Run what is missing, write raw file and report. Returns 1 where a pair or a side failed."""
    parser = CAMPAIGN.parser([pair.name for pair in pairs], __doc__)
    given = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    CAMPAIGN.check(parser, given)
    only = ["--only", *given.only] if given.only else []
    command = " ".join([CAMPAIGN.command, "--rounds", str(given.rounds), *only])
    _, about = machine_facts(command, given.commit, ())

    def turns(made: dict[str, Any]) -> Iterator[Turn]:
        for pair in to_run(pairs, made, given.only, about):
            known = {
                "figure": pair.figure,
                "given": {side.name: _given(side) for side in pair.sides},
                "rounds": given.rounds,
            }
            yield Turn(pair, "", known, partial(run, pair, given.rounds))

    return CAMPAIGN.carry_out(given, about, turns, [pair.name for pair in pairs])


def _given(side: Side) -> dict[str, Any]:
    return {key: value for key, value in asdict(side).items() if key in ("ft", "reach", "over")}


def run(pair: Pair, rounds: int) -> dict[str, Any]:
    """What the sides took; `error` where one failed, so that the pair is tried again."""
    if pair.kind.startswith("launched"):
        found = launched(pair, rounds)
    else:
        found = in_turn(pair, rounds, SizeSide if pair.kind == "size" else PassSide)
    steps = next((side["steps"] for side in found if side["error"] is None), None)
    errors = [f"{side['name']}: {side['error']}" for side in found if side["error"] is not None]
    return {
        "contenders": found,
        "steps": steps,
        **({"error": "; ".join(errors)} if errors else {}),
    }


if __name__ == "__main__":
    sys.exit(main())
