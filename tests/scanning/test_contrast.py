"""Suspect against reference: z-values, the fusion, and what stands out among pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backsweep.scanning.cascade.contrast import (
    Cell,
    cauchy,
    contrast,
    mean_of,
    of_many,
    sample,
    slope,
    stand_out,
    suspects,
)

CLASSES = range(10)


def cells(values: list[float]) -> dict[Cell, float]:
    return {(None, t): v for t, v in enumerate(values)}


def test_natural_spread_between_classes_cancels() -> None:
    natural = [float(t) for t in CLASSES]
    planted = [v - 1.0 * (t == 4) for t, v in enumerate(natural)]
    found = contrast(cells(planted), cells([v + 0.3 for v in natural]), 0.1)
    assert found.z[None, 4] == pytest.approx(10.0)
    assert all(abs(found.z[None, t]) < 1e-6 for t in CLASSES if t != 4)
    assert found.p_value((None, 4)) < 1e-3
    assert found.p_value((None, 99)) == 0.5, "not measured"


def test_what_the_reference_lacks_is_usual_there_and_the_center_can_be_given() -> None:
    found = contrast({(0, 1): 0.0, (1, 2): 0.0, (3, 4): 1.0}, {(0, 1): 2.0, (1, 2): 0.1}, 0.1, [(1, 2)])
    assert found.z[1, 2] == pytest.approx(0.0)
    assert found.z[0, 1] == pytest.approx(19.0)
    assert found.z[3, 4] == pytest.approx((1.05 - 1.0 - 0.1) / 0.1)
    assert contrast({}, {}, 0.1).z == {}


def test_a_reference_that_says_nothing_is_left_aside() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.normal(2, 0.2, 10)
    sizes[6] -= 2
    noise = rng.normal(2, 1.0, 10)
    alone = contrast(cells(sizes.tolist()), cells([0.0] * 10), 0.1)
    with_noise = contrast(cells(sizes.tolist()), cells(noise.tolist()), 0.1)
    assert with_noise.z[None, 6] > 0.6 * alone.z[None, 6]
    assert contrast(cells(sizes.tolist()), cells(noise.tolist()), 0.1, fitted=False).z[None, 6] < 3


@pytest.mark.parametrize(
    ("x", "y", "beta"),
    [
        ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5], 1.0),
        ([0, 1, 2, 3, 4], [0, 0.5, 1, 1.5, -9], 0.5),  # one outlier
        ([0, 1, 2, 3, 4], [0, 3, 6, 9, 12], 1.0),
        ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], 0.0),
        ([1, 1, 1, 1], [1, 2, 3, 4], 0.0),
        ([0, 9], [5, 0], 1.0),
    ],
)
def test_the_slope_is_robust_and_between_nothing_and_all(x: list[float], y: list[float], beta: float) -> None:
    assert slope(x, y) == pytest.approx(beta, abs=0.01)


def test_the_mean_over_spaces_sees_what_is_small_everywhere() -> None:
    rng = np.random.default_rng(0)
    spaces = []
    for _ in range(4):
        values = rng.normal(0, 0.1, 10)
        values[3] -= 0.25
        spaces.append(contrast(cells(values.tolist()), cells([0.0] * 10), 0.1))
    joint = mean_of(spaces, 0.02)
    assert max(joint.z, key=lambda c: joint.z[c]) == (None, 3)
    assert joint.z[None, 3] > max(s.z[None, 3] for s in spaces)


def test_pairs_stand_out_after_rows_and_columns_are_taken_off() -> None:
    rng = np.random.default_rng(0)
    row, column = rng.normal(0, 1, 10), rng.normal(0, 1, 10)
    table: dict[Cell, float] = {
        (s, t): float(row[s] + column[t] + rng.normal(0, 0.05)) for s in CLASSES for t in CLASSES if s != t
    }
    table[7, 2] -= 1.0
    first, usual = stand_out([table], 6)
    assert first[0] == (7, 2)
    assert len(first) == len(usual) == 6
    assert not set(first) & set(usual)


def test_one_small_p_value_decides_whatever_the_others_say() -> None:
    assert cauchy([1e-6, 0.9, 0.99, 1.0]) == pytest.approx(4e-6, rel=0.1)
    assert cauchy([0.3]) == pytest.approx(0.3)
    assert cauchy([1e-200, 0.5]) == pytest.approx(2e-200, rel=1e-3)


def test_the_fusion_holds_its_level_under_dependence() -> None:
    rng = np.random.default_rng(1)
    from scipy.stats import norm

    for rho in (0.0, 0.6, 0.95):
        shared = rng.standard_normal((4000, 1))
        z = np.sqrt(rho) * shared + np.sqrt(1 - rho) * rng.standard_normal((4000, 5))
        rate = np.mean([cauchy(norm.sf(row)) <= 0.05 for row in z])
        assert rate < 0.07, rho


@given(st.floats(1e-12, 1.0), st.integers(1, 2000))
def test_of_many_is_a_probability_and_no_smaller(p: float, tests: int) -> None:
    assert p * (1 - 1e-9) <= of_many(p, tests) <= min(1.0, p * tests) * (1 + 1e-9)


def test_a_cell_alone_names_its_source_a_class_does_not() -> None:
    flat = contrast(cells([0.0] * 10), cells([0.0] * 10), 0.1)
    pairs = contrast({(2, 5): -1.0, (0, 1): 0.0, (3, 4): 0.0}, {(2, 5): 0.0, (0, 1): 0.0, (3, 4): 0.0}, 0.1)
    first = suspects({"dense": flat}, pairs, 10)[0]
    assert (first.target, first.source) == (5, 2)
    assert first.chance < first.p_value < 0.05
    whole = contrast(cells([-2.0 * (t == 5) for t in CLASSES]), cells([0.0] * 10), 0.1)
    first = suspects({"dense": whole}, pairs, 10)[0]
    assert (first.target, first.source) == (5, None)


def test_of_many_classes_the_first_and_some_of_the_rest_are_taken() -> None:
    order: list[Cell] = [(None, t) for t in range(43)]
    assert sample(order, 50) == order
    taken = sample(order, 20)
    assert taken[:10] == order[:10]
    assert taken[-1] == order[-1]
    assert len(set(taken)) == 20
