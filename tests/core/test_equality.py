"""What comes out of a pickle is equal to what went in, and nothing else is."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import backsweep
from backsweep.core.equality import same
from backsweep.repairing.repair import repair
from poisoned import DIGITS, poisoned_digits

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_a_copy_is_the_same(value: Any) -> None:
    assert same(value, copy.deepcopy(value)) and same(value, pickle.loads(pickle.dumps(value)))


@given(VALUES, VALUES)
def test_what_differs_is_not(a: Any, b: Any) -> None:
    assert same(a, b) is same(b, a)
    if repr(a) != repr(b) and a != b:
        assert not same(a, b)


def test_arrays_are_compared_by_their_numbers() -> None:
    x = torch.tensor([1.0, math.nan])
    assert same(x, x.clone()) and same(np.ones(2), np.ones(2))
    assert not same(x, torch.tensor([1.0, 2.0])) and not same(x, x[:1]) and not same(x, x.double())


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    model, data, _, _ = poisoned_digits(size=3, rate=0.1)
    _, clean = DIGITS.load()
    report = backsweep.scan(model, clean, "neural_cleanse", seed=1)
    return {
        "report": report,
        "trigger": next(e.trigger for e in report.evidence if e.trigger is not None),
        "audit": backsweep.audit(model, data, "spectral_signatures"),
        "repaired": repair(model, clean, report, method="fine_tuning", verify=False),
        "guard": backsweep.guard(model, clean, "strip", fpr=0.05),
    }


@pytest.mark.parametrize("what", ["report", "trigger", "audit", "repaired", "guard"])
def test_results_are_equal_after_a_pickle(results: dict[str, Any], what: str) -> None:
    one = results[what]
    again = pickle.loads(pickle.dumps(one))
    assert again is not one and again == one
    assert one != results["report" if what != "report" else "audit"]


def test_other_results_are_not_equal(results: dict[str, Any]) -> None:
    trigger, report = results["trigger"], results["report"]
    assert replace(trigger, target=1 + (trigger.target or 0)) != trigger
    other = pickle.loads(pickle.dumps(report))
    other.examples = other.examples + 0.1
    assert other != report
