"""`python -m eval.bench.cpu_scaling`: the cost of tensor, pipeline and data parallel on two cores.

Two device threads of one OMP thread each, in each way of sharing the work, beside one device that
has both cores. `rounds` runs them in turn; the report goes to reports/cpu_scaling.md.
"""

from __future__ import annotations

import sys

from eval.bench.contender import Contender
from eval.bench.rounds import benchmark

# name, kind, size or layout, OMP threads
LISTED = (
    ("one device of two OMP threads", "ftjob", "t1p1d1", 2),
    ("data 2: a whole model each", "ftjob", "t1p1d2", 1),
    ("tensor 2: half of each layer each", "ftjob", "t2p1d1", 1),
    ("pipeline 2: half of the layers each", "ftjob", "t1p2d1", 1),
    ("one device of one OMP thread", "ftjob", "t1p1d1", 1),
)
CONTENDERS = [Contender(n, "scoring", kind, (size,), omp) for n, kind, size, omp in LISTED]
TEXT = [
    "Teacher-forced scoring of the first 512 LAMBADA rows with the demo GPT in float32 by ftjob's "
    "device threads, from token ids to the decision, without loading. The first contender lets "
    "OpenMP share each product between two cores; the others share the work themselves.",
]


def main() -> int:
    """Run the rounds, write raw JSON and report."""
    title = "Tensor, pipeline and data parallel on two CPU cores"
    return benchmark("cpu_scaling", title, TEXT, CONTENDERS)


if __name__ == "__main__":
    sys.exit(main())
