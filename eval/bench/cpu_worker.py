"""`python -m eval.bench.cpu_worker MODULE KIND ARGUMENT...`: one contender, alone in its process.

Prints a line when ready; then, for each line it reads, does a pass and prints JSON: seconds, tokens
and quality. OMP_NUM_THREADS comes from `rounds`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

from eval.bench.contender import Kinds

MODULES = ("scoring", "translation")


def main() -> int:
    """Serve passes until the input ends."""
    module, kind, *arguments = sys.argv[1:]
    if module not in MODULES:
        raise SystemExit(f"{module}: known are {', '.join(MODULES)}")
    kinds: Kinds = importlib.import_module(f"eval.bench.{module}").KINDS
    if kind not in kinds:
        raise SystemExit(f"{kind}: known are {', '.join(kinds)}")
    runner = kinds[kind](*arguments)
    runner.ready()
    runner.run()
    print("ready", flush=True)
    for _ in sys.stdin:
        runner.ready()
        start = time.perf_counter()
        answers = runner.run()
        seconds = time.perf_counter() - start
        outcome = runner.judge(answers)
        said = {"seconds": seconds, "tokens": outcome.tokens, "quality": outcome.quality}
        print(json.dumps(said), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
