"""The workloads that `h200` times, and the figures that were known of them before: each is a size
of `ftjob bench`, LAMBADA, or newstest2017's lengths.

The known figures are given, not made here: one H200, random weights of the right shape, greedy,
every row as long as asked. FasterTransformer is its main branch built for sm_90, in fp16;
transformers is 5.17 in bf16, eager (static cache and compiled); `limit` is bytes at 4.2 TB/s or
operations at 785 TFLOP/s, whichever takes longer, prefill and decode added.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

# the ways of transformers, and what reports call them
PEERS = MappingProxyType(
    {
        "eager": "transformers",
        "static": "transformers, static cache (compiled on a GPU)",
    }
)


@dataclass(frozen=True)
class Given:
    """Known milliseconds, and those to reach; `hf` as it was stated."""

    hf: str
    ft: float | None
    limit: float
    reach: float


@dataclass(frozen=True)
class Workload:
    """What runs, beside which ways of transformers. `figure` is the time that counts: of a whole
    run, or of a decode step. `batch` is the peer's, where it takes the rows in several."""

    name: str
    title: str
    kind: Literal["size", "lambada", "newstest"]
    overrides: tuple[str, ...]
    given: Given
    peers: tuple[str, ...] = ("eager",)
    figure: Literal["run", "step"] = "run"
    batch: int = 64


def random_model(model: str) -> tuple[str, ...]:
    """Overrides of random weights in bf16."""
    return (f"model={model}", "model.checkpoint=random", "model.dtype=bf16")


def sized(model: str, batch: int, given: int, new: int) -> tuple[str, ...]:
    """Overrides of a size of `ftjob bench`, of random weights."""
    lengths = (f"bench.batch={batch}", f"bench.input_len={given}", f"bench.output_len={new}")
    return (*random_model(model), *lengths)


ON_ONE = "cluster.devices_per_node=1"


def _random(model: str, *more: str) -> tuple[str, ...]:
    return (*random_model(model), ON_ONE, *more)


def _size(model: str, batch: int, given: int, new: int, *more: str) -> tuple[str, ...]:
    return (*sized(model, batch, given, new), ON_ONE, *more)


BOTH = ("eager", "static")
WORKLOADS = (
    Workload(
        "gpt345m_b1",
        "GPT-345M, batch 1, 512 in, 128 out",
        "size",
        _size("gpt345m", 1, 512, 128),
        Given("1389 (268)", 223, 24, 45),
        BOTH,
    ),
    Workload(
        "gpt345m_b8",
        "GPT-345M, batch 8, 512 in, 16 out",
        "size",
        _size("gpt345m", 8, 512, 16),
        Given("136 to 170", 51, 7, 14),
    ),
    Workload(
        "gpt345m_b32",
        "GPT-345M, batch 32, 512 in, 32 out",
        "size",
        _size("gpt345m", 32, 512, 32),
        Given("358", 133, 33, 55),
    ),
    Workload(
        "gpt345m_b256",
        "GPT-345M, batch 256, 128 in, 128 out",
        "size",
        _size("gpt345m", 256, 128, 128),
        Given("2463", 441, 199, 260),
    ),
    Workload(
        "gpt345m_b1_int8",
        "GPT-345M, batch 1, 512 in, 128 out, int8 weights",
        "size",
        _size("gpt345m", 1, 512, 128, "model.weights=int8"),
        Given("-", 862, 14, 32),
        (),
    ),
    Workload(
        "lambada",
        "GPT-345M, LAMBADA, all rows scored",
        "lambada",
        _random("gpt345m", "dataset=lambada"),
        Given("1750", None, 330, 420),
    ),
    Workload(
        "t5_b1",
        "T5-base, batch 1, 32 in, 32 out",
        "size",
        _size("t5_base", 1, 32, 32),
        Given("412", 48, 2, 9),
    ),
    Workload(
        "t5_b128",
        "T5-base, batch 128, 32 in, 32 out",
        "size",
        _size("t5_base", 128, 32, 32),
        Given("444", 52, 5, 16),
    ),
    Workload(
        "t5_b128_beam4",
        "T5-base, batch 128, 32 in, 32 out, beam 4",
        "size",
        _size("t5_base", 128, 32, 32, "decode=beam4"),
        Given("527", 73, 7, 28),
    ),
    Workload(
        "newstest2017",
        "T5-base, newstest2017's 3004 lengths, forced to the reference's",
        "newstest",
        _random("t5_base", "batch.lanes=1024"),
        Given("4300", None, 70, 250),
        batch=512,
    ),
    Workload(
        "gpt6b7_step",
        "GPT of 6.7 B parameters, batch 1, a decode step behind 128 tokens",
        "size",
        _size("gpt6b7", 1, 128, 65),
        Given("-", 4.8, 3.2, 3.8),
        figure="step",
    ),
)
