"""`python -m eval.bench.cpu_lambada`: LAMBADA scoring on two CPU cores beside the peers.

`rounds` runs the contenders in turn; the report goes to reports/cpu_lambada.md.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

from eval.bench.contender import Contender
from eval.bench.rounds import benchmark

# name, kind, size or layout, OMP threads
LISTED = (
    ("ftjob, two devices of one thread (cluster.devices_per_node=2)", "ftjob", "t1p1d2", 1),
    ("ftjob, one device of two threads (the default)", "ftjob", "t1p1d1", 2),
    ("CTranslate2 forward_batch, batch 32", "ctranslate2_forward", "32", 2),
    ("CTranslate2 forward_batch, batch 64", "ctranslate2_forward", "64", 2),
    ("CTranslate2 forward_batch, batch 128", "ctranslate2_forward", "128", 2),
    ("CTranslate2 score_batch, two workers, batch 8", "ctranslate2_score", "8", 1),
    ("CTranslate2 score_batch, two workers, batch 32", "ctranslate2_score", "32", 1),
    ("transformers, batch 32", "transformers", "32", 2),
)
CONTENDERS = [Contender(n, "scoring", kind, (size,), omp) for n, kind, size, omp in LISTED]
TEXT = [
    "Teacher-forced scoring of the first 512 LAMBADA rows with the demo GPT in float32, from token "
    "ids to the decision, without loading. Tokens are real tokens. CTranslate2 is timed without "
    "copying its logits out, so its rows are not judged.",
]


def main() -> int:
    """Run the rounds, write raw JSON and report."""
    peers = [f"{peer} {version(peer.lower())}" for peer in ("CTranslate2", "transformers")]
    return benchmark("cpu_lambada", "CPU scoring beside the peers", TEXT, CONTENDERS, peers)


if __name__ == "__main__":
    sys.exit(main())
