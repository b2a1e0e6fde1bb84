"""A scan of the network joins what the samples say: twins, and p-values of two independent witnesses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from backsweep.auditing import nulls
from backsweep.auditing.audit import SECOND, audit, judge, usual
from backsweep.auditing.detector import TrainingSet, class_evidence
from backsweep.auditing.detectors.contamination_analyzer import ContaminationAnalyzer
from backsweep.auditing.detectors.network_scan import NetworkScan
from backsweep.auditing.nulls import ANY, Sets, Together, joined, left_by
from backsweep.inputs.samples import Data
from backsweep.inputs.text.modality import Text
from backsweep.models.architectures import digits_cnn
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.reports.audit import Audit
from backsweep.reports.report import BACKDOORED, CLEAN, INCONCLUSIVE
from backsweep.zoo.attacks.smooth import Smooth
from backsweep.zoo.tasks import TASKS

CHANCES = st.floats(1e-6, 1.0)
NAME = ContaminationAnalyzer.name
ARCH, SEED = "gap_cnn", 125


@dataclass(frozen=True)
class Trained:
    """A network, the set that it learned, and which samples of it are poisoned."""

    model: Model
    data: Data
    poison: torch.Tensor
    target: int


@pytest.fixture(scope="module")
def sets() -> tuple[Trained, Trained]:
    """A poisoned set with its network, and the unpoisoned twin."""
    task = TASKS["digits"]
    train, _ = task.load()
    recipe = replace(task.recipe, epochs=30, lr=0.005)
    setup, attack = task.setup(train, SEED, recipe, ARCH), Smooth()
    triggers = attack.triggers(setup)
    data, rows = attack.poison(setup, triggers)
    infected, clean = (task.model(fit(task.net(SEED, ARCH), d, recipe, SEED)) for d in (data, train))
    target = triggers[0].target
    assert target is not None
    none = torch.empty(0, dtype=torch.long)
    return Trained(infected, data, rows, target), Trained(clean, train, none, -1)


@pytest.mark.slow
def test_the_planted_class_is_found_and_the_clean_twin_passes(sets: tuple[Trained, Trained]) -> None:
    infected, clean = sets
    found = audit(infected.model, infected.data, SECOND, seed=SEED, device="cpu")
    assert found.verdict == BACKDOORED
    assert found.targets == (infected.target,)
    flagged = set(found.flagged.tolist())
    assert len(flagged & set(infected.poison.tolist())) > 0.9 * len(infected.poison)
    assert audit(clean.model, clean.data, SECOND, seed=SEED, device="cpu").verdict == CLEAN


def test_it_is_a_default_where_only_other_kinds_are_known() -> None:
    """A network of sets that a table knows keeps its table; one of another kind of input has no scans."""
    other = Model(digits_cnn(classes=7), (1, 8, 8), 7)
    assert usual(1500, model=other) == (NAME, SECOND), "reclassification could decide nothing"
    assert SECOND in usual(20_000, model=other)
    assert SECOND not in usual(1500)
    known = Model(digits_cnn(), (1, 8, 8), 10)
    assert SECOND not in usual(1500, model=known), "there is a table of such sets"
    assert SECOND not in usual(1500, Text(), known)
    many = Model(digits_cnn(classes=500), (1, 8, 8), 500)
    assert SECOND not in usual(20_000, model=many), "no clean networks have so many classes"


def test_it_says_what_it_needs() -> None:
    model = Model(digits_cnn(classes=500), (1, 8, 8), 500).copy("cpu")
    data = Data(torch.rand(60, 1, 8, 8), torch.zeros(60, dtype=torch.long))
    given = TrainingSet(data, 500, torch.zeros(60, 2), torch.zeros(60, 500), model, lambda d, s: model)
    assert "no clean networks" in NetworkScan().applies(given)
    few = TrainingSet(data[:5], 10, torch.zeros(5, 2), torch.zeros(5, 10), model, lambda d, s: model)
    assert "a class with at least" in NetworkScan().applies(few)
    with pytest.raises(ValueError, match="at least 1"):
        NetworkScan(samples=0)


# ---------------------------------------------------------------------- joining


@given(CHANCES, CHANCES)
def test_joined_is_fisher_s_method(a: float, b: float) -> None:
    expected = stats.combine_pvalues([a, b], method="fisher").pvalue
    assert joined(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert joined(a, b) == joined(b, a)


@given(CHANCES, st.floats(1e-4, 0.5))
def test_what_one_leaves_the_other_is_enough_together(second: float, alpha: float) -> None:
    left = left_by(second, alpha)
    assert 0 < left <= 1
    if left < 1:
        assert joined(left, second) == pytest.approx(alpha, rel=1e-6)
    else:
        assert joined(1.0, second) <= alpha * (1 + 1e-9)


def test_joined_holds_its_rate_where_both_are_of_whole_sets() -> None:
    """The class that stands out most in both: no more alarms than stated, whatever classes they are."""
    rng = np.random.default_rng(1)
    classes, draws = 10, 4000
    of_class = rng.random((draws, 2, classes)) ** (1 / 1)
    whole = np.minimum(1, 1 - (1 - of_class) ** classes)  # family-wise, of independent classes
    least = [min(joined(a, b) for a, b in zip(*one, strict=True)) for one in whole]
    assert np.mean(np.array(least) <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def table_of(scores: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [{"detector": NAME, "settings": ContaminationAnalyzer().settings(), "scores": list(scores)}]
    kinds = [f"kind {i}" for i in range(len(scores))]
    table = Sets(ANY, [], 0, 1000, columns, {"kind": "kinds"}, kinds)
    monkeypatch.setattr(nulls, "tables", lambda: (table,))


def report_of(statistics: Sequence[float], p_values: Sequence[float | None]) -> Audit:
    methods: list[Any] = [ContaminationAnalyzer(), NetworkScan()]
    evidence = [class_evidence(NAME, c, s, 0.0) for c, s in enumerate(statistics)]
    evidence += [
        class_evidence(SECOND, c, 1.0 if p is None else 1 / p, 0.0, p_value=p, null="clean networks")
        for c, p in enumerate(p_values)
    ]
    return Audit(
        model={"layout": "x", "shape": [1, 8, 8], "classes": len(statistics)}, data={},
        settings={"alpha": 0.05, "detectors": {m.name: m.settings() for m in methods}}, versions={},
        labels=torch.arange(len(statistics)).repeat(30), evidence=evidence,
        scores={m.name: torch.ones(30 * len(statistics)) for m in methods},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("statistics", "p_values", "verdict"),
    [
        ([1, 2, 1, 35.5], [0.9, 1.0, 1.0, 0.02], BACKDOORED),  # 5 of 40 sets are as far, and the scan joins
        ([1, 2, 1, 35.5], [0.9, 0.02, 1.0, 1.0], CLEAN),  # it says so of another class
        ([1, 2, 1, 35.5], [1.0, 1.0, 1.0, 1.0], CLEAN),  # nothing is said of any: not "cannot tell"
        ([1, 2, 1, 2], [0.003, 1.0, 1.0, 1.0], BACKDOORED),  # the scan alone
        ([1, 2, 1, 1e6], [None, None, None, None], BACKDOORED),  # the samples alone
        ([1, 2, 1, 2], [None, None, None, None], CLEAN),
        ([2, 35.5], [1.0, 0.02], BACKDOORED),  # two classes: no outlier, but a table of other sets
        ([2, 1e6], [None, None], BACKDOORED),
        ([2, 35.5], [0.5, 1.0], CLEAN),
    ],
)
def test_both_say_it_of_the_same_class(
    statistics: list[float], p_values: list[float | None], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table_of([float(v) for v in range(1, 40)], monkeypatch)
    report = judge(report_of(statistics, p_values))
    assert report.verdict == verdict
    assert all(f.detector == NAME for f in report.findings)
    if verdict == BACKDOORED:
        assert report.targets == (
            int(np.argmax([s / (p or 1) for s, p in zip(statistics, p_values, strict=True)])),
        )
        assert report.p_value is not None
        assert report.p_value <= 0.05
        parting = NAME if None in p_values else SECOND
        report.scores |= {n: torch.full_like(v, -1.0) for n, v in report.scores.items() if n != parting}
        assert (report.labels[report.flagged] == report.targets[0]).all(), "groups of the scan, if it speaks"
        assert len(report.flagged) == 30
    if None not in p_values:
        assert all("scan of the network" in str(f.details["null"]) for f in report.findings)


def test_the_class_that_is_told_stands_out_most_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    table_of([float(v) for v in range(1, 40)], monkeypatch)
    report = judge(report_of([1, 20, 19, 1], [1.0, 1.0, 0.3, 0.9]))
    (note,) = report.findings
    assert report.verdict == CLEAN
    assert report.p_value == note.p_value, "two detectors, one p-value: nothing to correct for"
    assert note.target == 2, "class 1 has the larger statistic, but the scan says nothing of it"
    assert note.p_value == pytest.approx(joined(22 / 40, 0.3), rel=1e-6)


def test_alone_it_is_judged_by_its_own_p_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nulls, "tables", lambda: ())
    for p_values, verdict in (([0.9, 0.01], BACKDOORED), ([0.9, 0.3], CLEAN), ([None, None], INCONCLUSIVE)):
        report = report_of([1, 1], p_values)
        report.evidence = [e for e in report.evidence if e.detector == SECOND]
        report.settings["detectors"] = {SECOND: NetworkScan().settings()}
        assert judge(report).verdict == verdict


def test_an_alarm_begins_at_the_threshold_that_the_scan_leaves() -> None:
    found = Together(
        (NAME,), np.arange(1.0, 40.0)[:, None], np.array([35.5]), "sets", None, {0: 0.02, 1: 1.0}
    ).of(NAME)
    for target in (0, 1, 2):
        at = found.critical(0.05, target)
        if at is None:
            assert found.p_value(math.inf, target) > 0.05
        else:
            assert found.p_value(at, target) > 0.05 >= found.p_value(math.nextafter(at, math.inf), target)
    assert found.critical(0.05) is not None, "some class could be called"
    assert found.together.least == 0.0


def test_sets_of_images_do_not_judge_sets_of_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    table_of([float(v) for v in range(1, 40)], monkeypatch)
    for modality, verdict in ((None, BACKDOORED), ("table", INCONCLUSIVE), ("sound", INCONCLUSIVE)):
        report = report_of([1.0, 1.1, 0.9, 1.05, 1e6], [None] * 5)
        report.evidence = [e for e in report.evidence if e.detector == NAME]
        report.settings["detectors"].pop(SECOND)
        report.model |= {"modality": modality} if modality else {}
        assert judge(report).verdict == verdict
        assert report.findings[0].target == 4, "it is named all the same"
