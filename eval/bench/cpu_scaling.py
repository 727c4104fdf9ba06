"""`python -m eval.bench.cpu_scaling`: the cost of tensor, pipeline and data parallel on two cores.

Two device threads of one OMP thread each, in each way of sharing the work, beside one device that
has both cores. `rounds` runs them in turn; the report goes to reports/cpu_scaling.md.
"""

from __future__ import annotations

import argparse
import sys

from eval.bench.contenders import tokens
from eval.bench.rounds import measure
from eval.record import REPORTS, provenance, write_raw
from eval.render import render

CONTENDERS = (
    ("one device of two OMP threads", "ftjob", "t1p1d1", 2),
    ("data 2: a whole model each", "ftjob", "t1p1d2", 1),
    ("tensor 2: half of each layer each", "ftjob", "t2p1d1", 1),
    ("pipeline 2: half of the layers each", "ftjob", "t1p2d1", 1),
    ("one device of one OMP thread", "ftjob", "t1p1d1", 1),
)
TEXT = [
    "Teacher-forced scoring of the first 512 LAMBADA rows with the demo GPT in float32 by ftjob's "
    "device threads, from token ids to the decision, without loading. The first contender lets "
    "OpenMP share each product between two cores; the others share the work themselves.",
]


def main() -> int:
    """Run the rounds, write raw JSON and report."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.cpu_scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    write_raw(
        "cpu_scaling",
        {
            "kind": "bench",
            "title": "Tensor, pipeline and data parallel on two CPU cores",
            "text": TEXT,
            "unit": "tokens/s",
            "work": tokens(),
            "peers": [],
            "contenders": measure(CONTENDERS, rounds),
            **provenance(f"python -m eval.bench.cpu_scaling --rounds {rounds}"),
        },
    )
    (REPORTS / "cpu_scaling.md").write_text(render("cpu_scaling"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
