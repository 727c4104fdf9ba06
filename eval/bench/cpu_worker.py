"""`python -m eval.bench.cpu_worker KIND SIZE`: one contender, alone in its process.

SIZE is a batch or, for ftjob, a layout. Prints a line when ready; then, for each line it reads,
does a pass and prints seconds and rows right. OMP_NUM_THREADS comes from `cpu_lambada`.
"""

from __future__ import annotations

import sys
import time

from eval.bench import contenders

KINDS = ("ftjob", "transformers", "ctranslate2_forward", "ctranslate2_score")


def main() -> int:
    """Serve passes until the input ends."""
    kind, size = sys.argv[1:3]
    if kind not in KINDS:
        raise SystemExit(f"{kind}: known are {', '.join(KINDS)}")
    one_pass = getattr(contenders, kind)(size)
    one_pass()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        right = one_pass()
        print(time.perf_counter() - start, right, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
