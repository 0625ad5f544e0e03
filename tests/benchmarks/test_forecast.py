from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.forecast import forecast, round_down

SIZES = [10, 25, 50, 100, 200, 500, 946]


@settings(max_examples=30)
@given(st.floats(0.1, 3), st.floats(0.1, 1), st.floats(0, 0.1), st.integers(3, len(SIZES)), st.integers(1, 3))
def test_curves_that_follow_the_law_are_recovered(a: float, b: float, c: float, number: int, draws: int) -> None:
    if number < 5:
        c = 0
    sizes = np.array(SIZES[-number:] * draws, dtype=float)
    errors = a * sizes**-b + c
    assume(errors.max() <= 1)
    found = forecast([int(size) for size in sizes], [float(score) for score in 1 - errors])
    assert found and found["documents"] == 946 and found["more"] == 500 and found["sizes"] == number
    gain = a * 946**-b - a * 1446**-b
    low, high = found["interval"]
    assert found["gain"] == pytest.approx(gain, abs=1e-4) and low <= found["gain"] <= high
    assert high - low < 1e-3, "nothing scatters"


def test_fewer_than_three_sizes_say_nothing() -> None:
    assert forecast([10, 20, 20, 10], [0.5, 0.6, 0.61, 0.52]) is None
    assert forecast([10, 20, 40], [0.5, 0.6, 0.7])


def test_the_interval_holds_the_gain_nearly_always() -> None:
    random = np.random.default_rng(0)
    sizes = [25, 50, 100] * 3
    gain = 2 * (100**-0.5 - 200**-0.5)
    held = 0
    for _ in range(200):
        errors = 2 * np.array(sizes) ** -0.5 * np.exp(random.normal(0, 0.05, len(sizes)))
        found = forecast(sizes, list(1 - errors))
        assert found and found["more"] == 100
        held += found["interval"][0] <= gain <= found["interval"][1]
    assert 180 <= held <= 199


def test_one_draw_of_few_sizes_is_less_sure_than_three() -> None:
    sizes, scores = [25, 50, 100], [0.5, 0.66, 0.7]
    one, three = forecast(sizes, scores), forecast(sizes * 3, scores * 3)
    assert one and three and one["gain"] == pytest.approx(three["gain"])
    assert np.diff(one["interval"]) > 3 * np.diff(three["interval"])


def test_a_curve_that_falls_or_is_perfect_has_a_forecast_too() -> None:
    falls, perfect = forecast([10, 20, 40], [0.6, 0.5, 0.4]), forecast(SIZES, [1.0] * len(SIZES))
    assert falls and falls["gain"] < 0
    assert perfect and perfect["gain"] == pytest.approx(0, abs=1e-6)


@settings(max_examples=30)
@given(st.integers(1, 10**7))
def test_the_forecast_goes_at_most_twice_as_far(number: int) -> None:
    found = round_down(number)
    assert found <= number < 2.5 * found and str(found).rstrip("0") in ("1", "2", "5")
