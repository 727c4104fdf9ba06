"""Rates that predictions are made from: defaults by device, files of measured ones, single keys
over both, wires fitted to measured messages; and every file that is none of rates refused by name.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_plan import BIG, command, config

from ftjob.config import JobConfig
from ftjob.errors import CONFIG_REFUSED, ConfigError
from ftjob.rates import Rates, Wire, fitted, rates_of, traffic

GOOD: dict[str, Any] = {"copy_bytes_s": 2e12, "product_flop_s": 4e14}


def asked(dtype: str = "bf16", **plan: Any) -> JobConfig:
    return config(model={"checkpoint": "PATH", "dtype": dtype}, plan=plan)


def known(made: JobConfig, device: str = "cuda") -> Rates:
    rates = rates_of(made, device)
    assert rates is not None
    return rates


def written(folder: Path, made: Any) -> str:
    path = folder / "rates.json"
    path.write_text(made if isinstance(made, str) else json.dumps(made), encoding="utf-8")
    return str(path)


def test_a_gpu_has_defaults_and_a_cpu_none() -> None:
    rates = known(asked())
    assert (rates.copy_bytes_s, rates.product_flop_s) == (4.2e12, 785e12)
    assert known(asked("f32")).product_flop_s < rates.product_flop_s / 10
    assert rates_of(asked(), "cpu") is None
    assert rates_of(asked(copy_tb_s=0.01), "cpu") is None
    told = known(asked(copy_tb_s=0.01, product_tflops=0.2), "cpu")
    assert (told.copy_bytes_s, told.product_flop_s, told.launch_s) == (1e10, 2e11, 0)
    assert told.source == "plan.copy_tb_s, plan.product_tflops"
    assert not told.reduce


def test_single_keys_stand_above_the_defaults() -> None:
    rates = known(asked(copy_tb_s=3.3, launch_us=2.0, link_us=9.0, network_gb_s=20.0))
    assert (rates.copy_bytes_s, rates.launch_s) == (3.3e12, 2e-6)
    assert rates.product_flop_s == 785e12
    assert rates.reduce["process"] == Wire(9e-6, 300e9)
    assert rates.send["process"].latency_s == rates.send["node"].latency_s == 9e-6
    assert rates.reduce["nodes"] == Wire(25e-6, 20e9)
    assert "plan.network_gb_s" in rates.source


def test_both_numbers_make_a_wire_that_was_not_known() -> None:
    base = {"copy_tb_s": 0.01, "product_tflops": 0.2}
    assert not known(asked(**base, link_us=9.0), "cpu").reduce
    made = known(asked(**base, link_us=50.0, link_gb_s=2.0), "cpu")
    assert made.reduce["process"] == made.send["process"]
    assert made.reduce["process"].seconds(1e6) == pytest.approx(5.5e-4)
    assert "nodes" not in made.reduce


def test_sums_by_hand() -> None:
    rates = known(asked())
    assert traffic(1000, 2) == 1000
    assert traffic(1000, 4) == 1500
    assert rates.all_reduce(1e6, 1, 1) == 0
    assert rates.all_reduce(3e6, 2, 1) == pytest.approx(3.3e-6 + 1e-5)
    assert rates.all_reduce(3e6, 4, 1) == pytest.approx(3.3e-6 + 1.5e-5)
    assert rates.all_reduce(4.5e6, 16, 2) == pytest.approx(25e-6 + 1.875e-4)
    assert rates.all_reduce(4.5e6, 64, 8) == pytest.approx(3 * 25e-6 + 1.96875e-4)
    assert rates.hand_over(3e6, 1) == pytest.approx(15e-6 + 1e-5)
    assert rates.hand_over(4.5e6, 2) == pytest.approx(25e-6 + 1e-4)


def test_a_file_of_measured_messages(tmp_path: Path) -> None:
    def sums(ways: int, where: str) -> list[dict[str, Any]]:
        return [
            {"ways": ways, "bytes": n, "seconds": 7e-6 + traffic(n, ways) / 2e11, "where": where}
            for n in (8192, 1 << 20, 1 << 26)
        ]

    sends = [{"bytes": n, "seconds": 2e-5 + n / 1e10, "where": "nodes"} for n in (100, 10**7)]
    made = GOOD | {"all_reduce": sums(2, "process") + sums(8, "process"), "send": sends}
    path = written(tmp_path, made | {"environment": {"host": "x"}, "matrix_s": 1e-6})
    rates = known(asked(rates=path))
    assert (rates.copy_bytes_s, rates.product_flop_s, rates.matrix_s) == (2e12, 4e14, 1e-6)
    wire = rates.reduce["process"]
    assert (wire.latency_s, wire.bytes_s) == (pytest.approx(7e-6), pytest.approx(2e11))
    assert rates.send["nodes"].seconds(1e6) == pytest.approx(1.2e-4)
    assert rates.reduce["nodes"] == known(asked()).reduce["nodes"]  # not in the file
    assert rates.source == path
    assert known(asked(rates=path, copy_tb_s=1.0)).copy_bytes_s == 1e12


def test_a_file_of_bench(tmp_path: Path) -> None:
    path = written(tmp_path, {"ceilings": GOOD, "model": {"dtype": "f32"}, "cells": []})
    assert known(asked("f32", rates=path), "cpu").product_flop_s == 4e14
    with pytest.raises(ConfigError, match=r"product_flop_s is of f32.*Give plan\.product_tflops"):
        rates_of(asked("bf16", rates=path), "cuda")
    besides = known(asked("bf16", rates=path, product_tflops=1.0))
    assert (besides.product_flop_s, besides.copy_bytes_s) == (1e12, 2e12)


def test_a_file_of_doctor_says_its_dtype(tmp_path: Path) -> None:
    """Its own ceilings are by device."""
    made = GOOD | {"ceilings": {"0": GOOD}, "all_reduce": [], "send": []}
    path = written(tmp_path, made | {"dtype": "f16"})
    assert known(asked("bf16", rates=path)).product_flop_s == 4e14
    with pytest.raises(ConfigError, match=r"product_flop_s is of f16, and model\.dtype=f32"):
        rates_of(asked("f32", rates=path), "cuda")
    path = written(tmp_path, made)  # as if of model.dtype
    assert known(asked("f32", rates=path)).product_flop_s == 4e14


@pytest.mark.parametrize(
    ("points", "wire"),
    [
        ([(10, 5.0), (20, 5.0)], Wire(5.0, math.inf)),
        ([(10, 5.0), (20, 4.0)], None),
        ([(10, 1.0), (20, 3.0)], None),
        ([(0, 2.0), (10, 4.0), (20, 6.0)], Wire(2.0, 5.0)),
    ],
    ids=["flat", "falling", "steeper than its bytes", "straight"],
)
def test_fits_have_no_negative_part(points: list[tuple[float, float]], wire: Wire | None) -> None:
    found = fitted(points)
    assert found.latency_s >= 0
    assert found.bytes_s > 0
    for count, seconds in points:
        assert found.seconds(count) == pytest.approx(seconds, rel=0.6)
    if wire is not None:
        assert found.latency_s == pytest.approx(wire.latency_s)
        assert found.bytes_s == pytest.approx(wire.bytes_s)


SUM = {"ways": 2, "bytes": 8, "seconds": 1.0, "where": "node"}
BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "is no JSON"),
    "no object": ([1], "must be an object with copy_bytes_s"),
    "missing": (
        {"copy_bytes_s": 1.0, "ceilings": {}},
        "product_flop_s=None: must be a number above 0",
    ),
    "word": (GOOD | {"copy_bytes_s": "x"}, "copy_bytes_s='x': must be a number above 0"),
    "zero": (GOOD | {"copy_bytes_s": 0}, "copy_bytes_s=0: must be a number above 0"),
    "true": (GOOD | {"copy_bytes_s": True}, "copy_bytes_s=True: must be a number above 0"),
    "nan": (GOOD | {"copy_bytes_s": math.nan}, "copy_bytes_s=nan: must be a number above 0"),
    "of bench": ({"ceilings": {}, "model": {"dtype": "bf16"}}, ": ceilings: product_flop_s=None"),
    "dtype": (GOOD | {"dtype": 16}, "dtype=16: must be one of f32, bf16, f16"),
    "no list": (GOOD | {"all_reduce": {}}, "all_reduce: must be a list"),
    "no entry": (GOOD | {"send": [3]}, "send[0]: must be an object"),
    "place": (
        GOOD | {"all_reduce": [SUM | {"where": "rack"}]},
        "all_reduce[0]: where='rack': must be one of process, node, nodes",
    ),
    "ways": (GOOD | {"all_reduce": [SUM | {"ways": 1}]}, "ways=1: must be a whole number from 2"),
    "seconds": (GOOD | {"all_reduce": [SUM | {"seconds": -1}]}, "all_reduce[0]: seconds=-1"),
    "one size": (GOOD | {"all_reduce": [SUM, SUM]}, "where=node: must have two sizes"),
    "matrix_s": (GOOD | {"matrix_s": None}, "matrix_s=None: must be a number above 0"),
}


@pytest.mark.parametrize(("made", "words"), BAD.values(), ids=BAD.keys())
def test_files_that_are_no_rates_are_refused(made: Any, words: str, tmp_path: Path) -> None:
    path = written(tmp_path, made)
    with pytest.raises(ConfigError) as error:
        rates_of(asked(rates=path), "cuda")
    assert str(error.value).startswith(f"plan.rates={path}: ")
    assert words in str(error.value)


def test_the_command_refuses_files_by_name(tmp_path: Path) -> None:
    gone = command(*BIG, f"plan.rates={tmp_path / 'none.json'}")
    assert gone.returncode == CONFIG_REFUSED
    assert "none.json: cannot be read: No such file" in gone.stderr
    bad = command(*BIG, "plan.search=true", f"plan.rates={written(tmp_path, {})}")
    assert bad.returncode == CONFIG_REFUSED
    assert "product_flop_s=None: must be a number above 0" in bad.stderr
    assert "Traceback" not in gone.stderr + bad.stderr
