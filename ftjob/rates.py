"""How fast devices and the wires between them are: what `predict` makes seconds of.

An H200's are the defaults; `plan.rates` names a JSON file of measured ones (of `doctor`, or of
`bench.out`), and single keys of the group `plan` stand above both. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from ftjob.config.groups import JobConfig
from ftjob.config.plan import PlanConfig
from ftjob.errors import ConfigError
from ftjob.plan import DTYPE_BYTES

Where = Literal["process", "node", "nodes"]
# What a file may say besides; `python -m eval.bench.predicted --fit` finds them.
SHARES = ("weights_share", "cache_share", "product_share", "attention_share")
STARTS = ("few_s", "matrix_s", "launch_s", "beams_s", "entry_s", "row_s")
FITTED = (*SHARES, *STARTS)
# The keys of the group `plan` that are rates themselves.
SINGLE = (
    *("copy_tb_s", "product_tflops", "launch_us"),
    *("link_us", "link_gb_s", "network_us", "network_gb_s"),
)
NONE = "none"
PLACES: tuple[Where, ...] = get_args(Where)


@dataclass(frozen=True)
class Wire:
    """A message takes `latency_s` and its bytes at `bytes_s`."""

    latency_s: float
    bytes_s: float

    def seconds(self, count: float) -> float:
        """Of a message of `count` bytes."""
        return self.latency_s + count / self.bytes_s


@dataclass(frozen=True)
class Rates:
    """Rates of one device, in bytes/s, operations/s and seconds.

    Of the copy, reading the weights comes to `weights_share` and reading the cache to
    `cache_share`; of the product, the model's matrices to `product_share` and attention to
    `attention_share`. Besides, a matrix takes `few_s` where it meets few rows and else `matrix_s`,
    each other kernel `launch_s`, the choice among beams `beams_s` a step, and the host `entry_s` to
    let a chunk in and `row_s` for each row of it. `reduce` and `send` are the wires within a
    process, between processes of a node, and between nodes.
    """

    source: str
    copy_bytes_s: float
    product_flop_s: float
    weights_share: float
    cache_share: float
    product_share: float
    attention_share: float
    few_s: float
    matrix_s: float
    launch_s: float
    beams_s: float
    entry_s: float
    row_s: float
    reduce: Mapping[Where, Wire]
    send: Mapping[Where, Wire]

    def all_reduce(self, count: float, ways: int, ranks: int) -> float:
        """Seconds in which `ways` devices of so many processes add up `count` bytes each.

        A device sends and gets 2 (ways - 1) / ways times the bytes: Thakur, Rabenseifner and Gropp
        2005, Optimization of Collective Communication Operations in MPICH, section 4.5. Across
        nodes a short one takes a message for each doubling of them.
        """
        if ways == 1:
            return 0.0
        wire = self.reduce[place_of(ranks)]
        rounds = math.ceil(math.log2(ranks)) if ranks > 1 else 1
        return rounds * wire.latency_s + traffic(count, ways) / wire.bytes_s

    def hand_over(self, count: float, ranks: int) -> float:
        """Seconds of a message of `count` bytes from a stage to the next, in as many processes."""
        return self.send[place_of(ranks)].seconds(count)


def place_of(ranks: int) -> Where:
    """The wires between devices of so many processes; a process has a node for itself."""
    return "process" if ranks == 1 else "nodes"


def traffic(count: float, ways: int) -> float:
    """Bytes that a device sends where `ways` of them add up `count` bytes each."""
    return 2 * (ways - 1) / ways * count


# Measured on H200s with torch 2.11: a copy of 4.2 TB/s, a bf16 product of 785 TFLOP/s, 0.96 us for
# a tiny kernel of a captured step, sums by NCCL between processes. The shares, the other starts and
# the latency of sums within a process are those that come nearest to eval/reports/h200.md and
# h200-x2.md, as `python -m eval.bench.predicted --fit` finds them; predicted.md has how near. Not
# measured: the share of attention, 300 GB/s of NVLink's 450, and the network: a 400 Gb/s card a
# GPU, 25 us.
_H200 = Rates(
    source="H200: ftjob/rates.py",
    copy_bytes_s=4.2e12,
    product_flop_s=785e12,
    weights_share=0.96,
    cache_share=0.86,
    product_share=0.865,
    attention_share=0.3,
    few_s=2.15e-6,
    matrix_s=5.6e-6,
    launch_s=0.96e-6,
    beams_s=106e-6,
    entry_s=2.35e-3,
    row_s=22e-6,
    reduce=MappingProxyType(
        {
            "process": Wire(3.3e-6, 300e9),
            "node": Wire(12e-6, 350e9),
            "nodes": Wire(25e-6, 45e9),
        }
    ),
    send=MappingProxyType(
        {
            "process": Wire(15e-6, 300e9),
            "node": Wire(15e-6, 300e9),
            "nodes": Wire(25e-6, 45e9),
        }
    ),
)
# f32 has no tensor cores; the data sheet says 67 TFLOP/s. Not measured.
_H200_F32_FLOP_S = 50e12
# Of a CPU nothing is known but what a file says; its operations are counted at their rates alone.
_CPU = replace(
    _H200,
    source=NONE,
    copy_bytes_s=math.nan,
    product_flop_s=math.nan,
    **dict.fromkeys(SHARES, 1.0),
    **dict.fromkeys(STARTS, 0.0),
    reduce=MappingProxyType({}),
    send=MappingProxyType({}),
)


def rates_of(config: JobConfig, device: str) -> Rates | None:
    """The rates that a configuration predicts with on `device`; None where they are not known.

    Raises:
        ConfigError: naming file, key and rule, for a file that is none of rates.
    """
    plan, f32 = config.plan, config.model.dtype == "f32"
    rates = _CPU if device == "cpu" else _H200
    if device != "cpu" and f32:
        rates = replace(rates, product_flop_s=_H200_F32_FLOP_S)
    if plan.rates is not None:
        rates = _read(plan, f32, rates)
    rates = _with_keys(plan, rates)
    known = not math.isnan(rates.copy_bytes_s + rates.product_flop_s)
    return rates if known else None


def _with_keys(plan: PlanConfig, rates: Rates) -> Rates:
    """The rates with what single keys say, which their source names."""
    given = [f"plan.{name}" for name in SINGLE if getattr(plan, name) != "auto"]
    rates = replace(
        rates,
        source=", ".join([*([] if rates.source == NONE and given else [rates.source]), *given]),
        copy_bytes_s=_scaled(plan.copy_tb_s, 1e12, rates.copy_bytes_s),
        product_flop_s=_scaled(plan.product_tflops, 1e12, rates.product_flop_s),
        launch_s=_scaled(plan.launch_us, 1e-6, rates.launch_s),
    )
    for places, latency, speed in (
        (("process", "node"), plan.link_us, plan.link_gb_s),
        (("nodes",), plan.network_us, plan.network_gb_s),
    ):
        rates = replace(
            rates,
            reduce=_rewired(rates.reduce, places, latency, speed),
            send=_rewired(rates.send, places, latency, speed),
        )
    return rates


def _rewired(
    wires: Mapping[Where, Wire],
    places: Sequence[str],
    latency: str | float,
    speed: str | float,
) -> Mapping[Where, Wire]:
    """`wires` with latency and speed of some replaced; both make one that was not known."""
    both = not isinstance(latency, str) and not isinstance(speed, str)
    made = dict(wires)
    for place in PLACES:
        if place in places and (both or place in wires):
            old = wires.get(place, Wire(0.0, math.inf))
            made[place] = Wire(
                _scaled(latency, 1e-6, old.latency_s), _scaled(speed, 1e9, old.bytes_s)
            )
    return made


def _scaled(value: str | float, unit: float, otherwise: float) -> float:
    return otherwise if isinstance(value, str) else value * unit


def _read(plan: PlanConfig, f32: bool, base: Rates) -> Rates:
    """`base` with what the file says; its wires of a place take the place of those of `base`."""
    told = f"plan.rates={plan.rates}"
    assert plan.rates is not None
    try:
        made = json.loads(Path(plan.rates).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ConfigError(f"{told}: cannot be read: {reason}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{told}: is no JSON: {error}.") from None
    if not isinstance(made, dict):
        raise ConfigError(f"{told}: must be an object with copy_bytes_s and product_flop_s.")
    ceilings, at = made, told
    named: Any = made
    if "copy_bytes_s" not in made and isinstance(made.get("ceilings"), dict):  # of bench.out
        ceilings, named, at = made["ceilings"], made.get("model"), f"{told}: ceilings"
    same = "f32" if f32 else "bf16"
    dtype = named.get("dtype", same) if isinstance(named, dict) else same
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"{told}: dtype={dtype!r}: must be one of {', '.join(DTYPE_BYTES)}.")
    product = _number(ceilings, "product_flop_s", at)
    if (dtype == "f32") != f32:
        if isinstance(plan.product_tflops, str):
            raise ConfigError(
                f"{told}: product_flop_s is of {dtype}, and model.dtype="
                f"{'f32' if f32 else 'bf16 or f16'} has another rate. Give plan.product_tflops "
                "besides."
            )
        product = math.nan  # the key replaces it
    fitted_besides = {name: _number(made, name, told) for name in FITTED if name in made}
    return replace(
        base,
        source=str(plan.rates),
        copy_bytes_s=_number(ceilings, "copy_bytes_s", at),
        product_flop_s=product,
        reduce={**base.reduce, **_wires(made, "all_reduce", told)},
        send={**base.send, **_wires(made, "send", told)},
        **fitted_besides,
    )


def _number(values: Mapping[str, Any], name: str, at: str) -> float:
    """A number above 0 of a file's object.

    Raises:
        ConfigError: where it is missing or anything else.
    """
    value = values.get(name)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not 0 < value < math.inf:  # type: ignore[operator]
        raise ConfigError(f"{at}: {name}={value!r}: must be a number above 0.")
    return float(value)  # type: ignore[arg-type]


def _wires(made: Mapping[str, Any], name: str, told: str) -> dict[Where, Wire]:
    """The wires fitted to a list of measured messages, by place."""
    entries = made.get(name, [])
    if not isinstance(entries, list):
        raise ConfigError(f"{told}: {name}: must be a list of measured messages.")
    points: dict[Where, list[tuple[float, float]]] = {}
    for i, entry in enumerate(entries):
        at = f"{told}: {name}[{i}]"
        if not isinstance(entry, dict):
            raise ConfigError(f"{at}: must be an object with where, bytes and seconds.")
        where = entry.get("where")
        if where not in PLACES:
            raise ConfigError(f"{at}: where={where!r}: must be one of {', '.join(PLACES)}.")
        count = _number(entry, "bytes", at)
        if name == "all_reduce":
            ways = _number(entry, "ways", at)
            if ways < 2 or ways != int(ways):
                raise ConfigError(f"{at}: ways={entry['ways']!r}: must be a whole number from 2.")
            count = traffic(count, int(ways))
        points.setdefault(where, []).append((count, _number(entry, "seconds", at)))
    found: dict[Where, Wire] = {}
    for where, measured in points.items():
        if len({count for count, _ in measured}) < 2:
            raise ConfigError(
                f"{told}: {name} with where={where}: must have two sizes of bytes at least, to "
                "tell latency from speed."
            )
        found[where] = fitted(measured)
    return found


def fitted(points: Sequence[tuple[float, float]]) -> Wire:
    """The wire nearest to messages of (bytes, seconds): the least sum of squared shares by which
    it is off, so that short messages count as much as long ones. Neither part is negative."""
    weights = [1 / (y * y) for _, y in points]
    total = sum(weights)
    x0 = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    y0 = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - x0) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    slope = sum(w * (x - x0) * (y - y0) for w, (x, y) in zip(weights, points, strict=True)) / spread
    if slope <= 0:
        return Wire(y0, math.inf)
    if y0 - slope * x0 < 0:
        both = sum(w * x * y for w, (x, y) in zip(weights, points, strict=True))
        squares = sum(w * x * x for w, (x, _) in zip(weights, points, strict=True))
        return Wire(0.0, squares / both)
    return Wire(y0 - slope * x0, 1 / slope)
