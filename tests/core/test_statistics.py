"""The outlier statistic and its null, against the facts of the paper and of simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backsweep.core.statistics import anomaly_index, chance_of_index, index_at, wilson


def test_even_number_of_values_averages_the_two_middle_ones() -> None:
    # median 2.5, deviations 1.5 .5 .5 1.5 -> MAD 1
    assert anomaly_index([1, 2, 3, 4])[0] == pytest.approx(1.5 / 1.4826)


def test_published_example() -> None:
    """The authors' README: median 64.47, MAD 13.24, smallest norm 16.12, index 3.652."""
    rest = [64.47 - 13.24 / 1.4826, 64.47, 64.47 + 13.24 / 1.4826, 200.0]
    index = anomaly_index([16.12, *rest, 200.0, 64.47 - 13.24 / 1.4826])
    assert index[0] == pytest.approx((64.47 - 16.12) / 13.24, abs=1e-6)
    assert index[0] == pytest.approx(3.652, abs=1e-3)


def test_two_classes_can_never_fire() -> None:
    assert anomaly_index([1.0, 1000.0])[0] == pytest.approx(1 / 1.4826)
    assert chance_of_index(5.0, 2) == 1.0
    assert index_at(0.05, 2) is None


@pytest.mark.parametrize(("classes", "chance"), [(3, 0.234), (10, 0.331), (43, 0.637), (100, 0.873)])
def test_rule_of_two_has_the_false_alarm_rate_of_the_facts(classes: int, chance: float) -> None:
    assert chance_of_index(2.0, classes) == pytest.approx(chance, abs=0.01)


@pytest.mark.parametrize(("classes", "threshold"), [(10, 3.89), (43, 3.48), (100, 3.51), (1000, 3.92)])
def test_threshold_at_five_per_cent(classes: int, threshold: float) -> None:
    assert index_at(0.05, classes) == pytest.approx(threshold, abs=0.06)


@pytest.mark.parametrize("spread", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("classes", [4, 10, 43])
def test_floored_index_keeps_its_false_alarm_rate(classes: int, spread: float) -> None:
    """Clean models whose log norms spread up to twice the floor raise at most the stated alarms."""
    rng = np.random.default_rng(1)
    alarms = sum(
        chance_of_index(anomaly_index(v, 0.25).max(), classes, floored=True) <= 0.05
        for v in (spread * rng.standard_normal((2000, classes))).tolist()
    )
    assert alarms / 2000 <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_norms_that_could_not_be_measured_count_as_large() -> None:
    index = anomaly_index([1.0, 8.0, 9.0, 10.0, math.inf, math.inf, 7.0])
    assert index[0] > 2
    assert index[4] == -math.inf
    assert not anomaly_index([1.0, math.inf, math.inf, math.inf]).any()


def test_no_spread_is_no_outlier() -> None:
    assert not anomaly_index([3.0, 3.0, 3.0, 1.0]).any()


# to three digits: a spread that is made of rounding alone is another one in another unit
@given(
    st.lists(st.floats(0.1, 1e6).map(lambda v: round(v, 3)), min_size=3, max_size=30), st.floats(0.01, 100)
)
def test_index_has_no_unit(values: list[float], factor: float) -> None:
    a, b = anomaly_index(values), anomaly_index([v * factor for v in values])
    assert np.allclose(a, b, rtol=1e-3, atol=1e-3) or not (a.any() and b.any())


@given(st.integers(0, 50), st.integers(1, 50))
@example(0, 3)
def test_wilson_holds_the_share(hits: int, more: int) -> None:
    low, high = wilson(hits, hits + more)
    assert 0 <= low <= hits / (hits + more) <= high <= 1


def test_ten_of_ten_is_not_certainty() -> None:
    assert wilson(10, 10)[0] == pytest.approx(0.722, abs=0.001)
