"""Predictions beside the times of the H200 campaigns: good ones where rows are all alike, and a fit
that finds rates again which times were made of.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.bench.predicted import (
    GOOD,
    Asked,
    Timed,
    fit,
    rates,
    ready,
    render_predicted,
    timed_sides,
    wired,
)
from eval.record import read_raw

pytestmark = pytest.mark.timeout(120)
SIDES = [t for t in timed_sides() if t.kind in ("size", "lambada", "launched rows")]


@pytest.mark.parametrize("timed", SIDES, ids=lambda t: f"{t.title}: {t.side}")
def test_what_is_predicted_is_what_was_measured(timed: Timed) -> None:
    """A size, a scored set or a row by itself takes as long as a plan says."""
    asked = ready(timed)
    found = asked.predicted(wired(rates(asked), timed.apart))
    (whole,) = {"run", "row"} & set(timed.seconds)
    assert found[whole] == pytest.approx(timed.seconds[whole], rel=GOOD)
    if "step" in timed.seconds:
        assert found["step"] == pytest.approx(timed.seconds["step"], rel=GOOD)


def test_a_fit_finds_the_rates_that_times_were_made_of() -> None:
    asked = [ready(timed) for timed in SIDES if timed.kind == "size"]
    base = rates(asked[0])
    true = replace(base, few_s=1.5 * base.few_s, matrix_s=0.7 * base.matrix_s, cache_share=0.6)
    made = [Asked(replace(a.timed, seconds=a.predicted(true)), a.job, a.cell) for a in asked[::2]]
    found = fit(made)
    assert found["few_s"] == pytest.approx(true.few_s, rel=0.05)
    assert found["matrix_s"] == pytest.approx(true.matrix_s, rel=0.05)
    assert found["cache_share"] == pytest.approx(0.6, rel=0.05)


def test_the_report_says_what_is_off() -> None:
    raw = read_raw("predicted")
    raw["cases"] = [
        {"title": "a", "side": "one GPU", "of": "run", "measured_s": 1.0, "predicted_s": 1.2},
        {"title": "b", "side": "one GPU", "of": "run", "measured_s": 1.0, "predicted_s": 0.7},
    ]
    lines = render_predicted("predicted", raw).splitlines()
    assert lines[-2].endswith("| 1e+03 | 1.2e+03 | 1.20 | yes |")
    assert lines[-1].endswith("| 0.70 | NO |")
