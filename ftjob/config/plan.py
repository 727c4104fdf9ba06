"""The keys of `python -m ftjob plan`, a group of the configuration as those of `groups`.

`commands/plan.py` reads the sizes, `rates` the speeds, which `bench` takes too; a run ignores them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftjob.config.keys import at_least, key, positive

MOST = 1_000_000


@dataclass(frozen=True)
class PlanConfig:
    """The sizes `python -m ftjob plan` counts with, and the speeds it predicts from."""

    input_len: Literal["auto"] | int = key(
        "auto",
        "prompt tokens of a row; auto is 512, or what the positions leave",
        rule=at_least(1),
    )
    output_len: int = key(32, "new tokens of a row, or those scored", rule=at_least(0))
    batch: Literal["auto"] | int = key(
        "auto",
        "rows that a replica has at once in what is predicted; auto is as many as a run takes",
        rule=at_least(1),
    )
    search: bool = key(
        False, "rank every layout of the devices by predicted tokens/s, whatever parallel.* says"
    )
    rates: str | None = key(
        None,
        "JSON file of measured rates, of doctor or bench.out; null is an H200's, or of a CPU none",
    )
    copy_tb_s: Literal["auto"] | float = key(
        "auto", "1e12 bytes/s that a device's copy reads and writes", rule=positive(MOST)
    )
    product_tflops: Literal["auto"] | float = key(
        "auto", "1e12 operations/s of a device's product in model.dtype", rule=positive(MOST)
    )
    launch_us: Literal["auto"] | float = key(
        "auto", "microseconds that a small kernel of a captured step takes", rule=positive(MOST)
    )
    link_us: Literal["auto"] | float = key(
        "auto", "microseconds of a short message between devices of a node", rule=positive(MOST)
    )
    link_gb_s: Literal["auto"] | float = key(
        "auto", "1e9 bytes/s of a device to others of its node", rule=positive(MOST)
    )
    network_us: Literal["auto"] | float = key(
        "auto", "microseconds of a short message between nodes", rule=positive(MOST)
    )
    network_gb_s: Literal["auto"] | float = key(
        "auto", "1e9 bytes/s of a device to other nodes", rule=positive(MOST)
    )
