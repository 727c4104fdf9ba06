"""The keys of `python -m ftjob bench`, a group of the configuration as those of `groups`.

`bench/cells.py` makes the sizes to time out of them; a run ignores them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftjob.config.keys import at_least, between, each, key

MOST_ROWS = MOST_TOKENS = 65536


@dataclass(frozen=True)
class BenchConfig:
    """What `python -m ftjob bench` times. Lists are swept, each value with all of the others."""

    task: Literal["generate", "score"] = key(
        "generate",
        "continue input_len tokens by output_len new ones, as decode.* says, or score output_len "
        "given tokens behind them",
    )
    batch: int | tuple[int, ...] = key(
        1, "rows that each replica has at once", rule=each(between(1, MOST_ROWS))
    )
    input_len: Literal["auto"] | int | tuple[int, ...] = key(
        "auto",
        "tokens of a row's prompt or source; auto is 512, or what the positions leave",
        rule=each(between(1, MOST_TOKENS)),
    )
    output_len: int | tuple[int, ...] = key(
        32,
        "new tokens of a row, which no end token cuts short; or those scored",
        rule=each(between(1, MOST_TOKENS)),
    )
    runs: int = key(10, "timed runs of each size", rule=between(1, 100_000))
    warmup: int = key(2, "runs before them that do not count", rule=between(0, 1000))
    seed: int = key(0, "seed of the rows' random ids", rule=at_least(0))
    out: str | None = key(None, "JSON file to write, whole after every size")
