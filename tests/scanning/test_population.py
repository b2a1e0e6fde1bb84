"""Clean networks of many kinds: a class beside its own, and beside those of others where there are few."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from backsweep.reports.report import ERROR, WARNING, Evidence, Finding
from backsweep.scanning import calibration
from backsweep.scanning.cascade.measured import Measured, Pair
from backsweep.scanning.cascade.population import CAP, Null, Population, Prior, Tail
from backsweep.scanning.detectors.cascade import Cascade

PRIOR = Prior(center=-0.5, between=0.6, within=0.2, freedom=8.0)
POPULATION = Population(
    {}, {"dense": PRIOR, "late": PRIOR}, ("dense",), PRIOR,
    Tail(0.5, 0.3), Tail(0.5, 0.3), Null(8, 8), Null(8, 8), (2, 90), 1, {"kinds": ["a", "b"], "networks": 40},
)  # fmt: skip
USUAL = tuple(Pair(0, t, -0.5 + 0.125 * t, True) for t in range(1, 5))


def measured(
    d: dict[int, float], pairs: tuple[Pair, ...] = (), works: dict[int, tuple[float, float]] | None = None
) -> Measured:
    """A network with those differences in both spaces, whose reference is the same for all classes.

    The smallest changes work as often in the reference, but for those that are given.
    """
    sizes = {n: {t: (-v, 0.0) for t, v in d.items()} for n in ("dense", "late")}
    return Measured(len(d), sizes, pairs, {"dense": dict.fromkeys(d, (1.0, 1.0)) | (works or {})})


def test_two_classes_are_compared_with_those_of_other_networks() -> None:
    usual, planted = PRIOR.z({0: -0.5, 1: -0.5}), PRIOR.z({0: -0.5, 1: 1.0})
    assert abs(usual[0]) < 0.1
    assert planted[1] > 3
    assert planted[0] < 0


def test_a_network_that_differs_as_a_whole_has_no_suspect() -> None:
    shifted = PRIOR.z({t: 1.5 + 0.1 * (t % 3) for t in range(10)})
    assert max(shifted.values()) < 1
    one = PRIOR.z({t: 1.5 + 0.1 * (t % 3) + (t == 4) * 1.2 for t in range(10)})
    assert one[4] == max(one.values()) > 3


def test_with_many_classes_it_is_the_distance_in_the_own_spread() -> None:
    rng = np.random.default_rng(0)
    d = dict(enumerate(rng.normal(3.0, 0.7, 400).tolist()))
    z = np.array(list(PRIOR.z(d).values()))
    own = (np.array(list(d.values())) - 3.0) / 0.7
    assert np.corrcoef(z, own)[0, 1] > 0.99
    assert z.std() == pytest.approx(1.0, abs=0.15)


def test_normal_classes_of_normal_networks_have_normal_scores() -> None:
    rng, p = np.random.default_rng(1), []
    for _ in range(300):
        usual = rng.normal(PRIOR.center, PRIOR.between)
        z = PRIOR.z(dict(enumerate(rng.normal(usual, PRIOR.within, 5).tolist())))
        p.append(stats.norm.sf(z[0]))
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.floats(0.01, 4))
@settings(max_examples=60, deadline=None)
def test_a_class_that_is_easier_still_is_more_suspicious(d: list[float], more: float) -> None:
    before, after = (PRIOR.z(dict(enumerate([d[0] + extra, *d[1:]]))) for extra in (0.0, more))
    assert after[0] >= before[0]


@given(st.floats(0.3, 50), st.floats(0.3, 50), st.floats(1e-6, 0.999))
def test_the_null_gives_the_score_of_a_p_value(shape: float, rate: float, p: float) -> None:
    null = Null(shape, rate)
    assert null.p_value(null.score(p)) == pytest.approx(p, rel=1e-6)
    assert null.p_value(0.0) == 1.0


def test_what_was_measured_reads_back() -> None:
    own = measured({0: 0.1, 1: 0.7, 2: -0.2}, (*USUAL, Pair(2, 1, 0.75, False)))
    assert Measured.read(own.document(), 3) == own
    assert Population.read(POPULATION.document()) == POPULATION


def test_the_planted_class_comes_first_and_a_pair_names_its_source() -> None:
    clean = POPULATION.suspects(measured({t: -0.4 + 0.05 * (t % 4) for t in range(10)}))
    assert clean[0].p_value > 0.2
    planted = POPULATION.suspects(measured({t: -0.4 + (t == 3) * 1.5 for t in range(10)}))
    assert planted[0].target == 3
    assert planted[0].p_value < 0.01 < planted[1].p_value
    assert planted[0].source is None
    cells = (*USUAL, Pair(2, 6, 2.0, False), Pair(3, 5, 0.0, False))
    pair = POPULATION.suspects(measured(dict.fromkeys(range(10), -0.4), cells))
    assert (pair[0].target, pair[0].source) == (6, 2)
    assert pair[0].p_value < 0.05 < pair[1].p_value


def test_a_change_that_works_here_alone_speaks_against_its_class() -> None:
    usual = {t: -0.4 + 0.05 * (t % 4) for t in range(10)}
    alone = measured(usual, works={6: (1.0, 0.0)})
    assert alone.alone("dense")[6] == pytest.approx(2 * math.log(1.05 / 0.05))
    assert alone.alone("dense")[5] == 0
    (first, second, *_) = POPULATION.suspects(alone)
    assert first.target == 6
    assert first.p_value < second.p_value / 3
    assert first.said["alone_dense"] > 6
    assert not measured(usual, works={6: (0.2, 0.0)}).alone("dense")[6] > 2


@given(st.lists(st.floats(-3, 9), min_size=1, max_size=8), st.floats(0, 9), st.integers(0, 7))
def test_more_evidence_never_lowers_the_score(values: list[float], more: float, where: int) -> None:
    z = {str(i): v for i, v in enumerate(values)}
    key = str(where % len(values))
    assert POPULATION.joint({**z, key: z[key] + more}) >= POPULATION.joint(z)
    assert 0 <= POPULATION.joint(z) <= CAP


def test_a_first_look_sees_fewer_references() -> None:
    rows = {"dense": {0: (1.0, 2.0, 3.0, 4.0)}}
    seen = Measured(1, rows, (), {"dense": {0: (1.0, 0.5, 0.0, 0.0)}}).upto(2)
    assert seen.sizes == {"dense": {0: (1.0, 2.0, 3.0)}}
    assert seen.works == {"dense": {0: (1.0, 0.5, 0.0)}}
    assert seen.references == 2


def test_more_classes_make_the_same_class_less_surprising() -> None:
    assert POPULATION.score(2.0, 8) > POPULATION.score(2.0, 80) > 0


def test_it_speaks_of_such_networks_only() -> None:
    assert POPULATION.fits(measured({0: 0.0, 1: 0.0}))
    assert not POPULATION.fits(measured(dict.fromkeys(range(91), 0.0)))
    assert not POPULATION.fits(Measured(2, {"dense": {0: (0, 0), 1: (0, 0)}}))
    assert not POPULATION.fits(replace(measured({0: 0.0, 1: 0.0}), works={}))


def test_an_alarm_that_no_clean_networks_stand_behind_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding("BSW110", "cascade", ERROR, "class 1", 1, p_value=0.001)
    known = Finding("BSW110", "cascade", ERROR, "class 1", 1, p_value=0.001, details={"null": "40 networks"})
    for given_finding, level in ((finding, WARNING), (known, ERROR)):
        monkeypatch.setattr(Cascade, "judge", lambda *_, f=given_finding: [f])
        model = {"classes": 3, "layout": "x", "shape": [3], "modality": "image"}
        (found,) = calibration.judge(Cascade(), [Evidence("cascade", "u", None, None, {})], model, 0.05)
        assert found.level == level
        assert found.message.startswith("cannot tell") == (level == WARNING)


def test_the_chance_falls_without_a_step_where_the_tail_begins() -> None:
    joint = np.linspace(0, 6, 400)
    chances = [math.exp(-POPULATION.score(float(j), 1)) for j in joint]
    assert chances[0] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(chances))
    assert max(a - b for a, b in pairwise(chances)) < 0.03
    assert not math.isnan(chances[-1])
