"""Activation clustering and SCAn: what splits a class in two, and what is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet
from backsweep.auditing.detectors.activation_clustering import ActivationClustering, relabelled
from backsweep.auditing.detectors.contamination_analyzer import ContaminationAnalyzer, decomposed
from backsweep.auditing.detectors.reclassification import Reclassification
from backsweep.auditing.mixture import separation
from backsweep.auditing.untangling import scatter, untangled, whitened
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.reports.report import ERROR, NOTE
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.tasks import TASKS
from conftest import Twins

TARGET = 0  # a class of one kind; the ones and the nines of the digits are written in two ways each


def _train(data: Data, seed: int) -> Model:
    task = TASKS["digits"]
    return Model(fit(task.net(seed), data, task.recipe, seed), task.shape, task.classes).copy()


@torch.no_grad()
def _given(model: Model, data: Data, clean: Data) -> TrainingSet:
    work = model.copy()
    logits, features = work.logits_and_embedded(data.x, None)
    return TrainingSet(data, model.classes, features, logits, work, _train, clean)


@pytest.fixture(scope="module")
def audited(twins: Twins) -> tuple[TrainingSet, TrainingSet, Tensor]:
    """A poisoned training set with its network, the clean twin's set, and which rows are poisoned."""
    task, attack = TASKS["digits"], BadNets(size=2, margin=0, target=TARGET)
    train, _ = task.load()
    setup = task.setup(train, seed=0)
    poisoned, rows = attack.poison(setup, attack.triggers(setup))
    bad = torch.zeros(len(train), dtype=torch.bool)
    bad[rows] = True
    infected = _given(_train(poisoned, 0), poisoned, twins.data)
    return infected, _given(twins.clean, train, twins.data), bad


DETECTORS: list[SetDetector] = [
    ActivationClustering(), ContaminationAnalyzer(clean=True), ContaminationAnalyzer(clean=False),
    Reclassification(),
]  # fmt: skip
NAMES = ["clusters", "scan", "scan without clean samples", "reclassification"]


@pytest.mark.parametrize("detector", DETECTORS, ids=NAMES)
def test_the_poison_of_the_infected_twin_stands_apart(
    detector: SetDetector, audited: tuple[TrainingSet, TrainingSet, Tensor]
) -> None:
    given, clean, bad = audited
    weights = given.model.digest
    assert detector.applies(given) == ""
    scores, evidence = detector.measure(given)
    inside = given.data.y == TARGET
    assert roc_auc_score(bad[inside], scores[inside]) > 0.98
    (e,) = [e for e in evidence if e.target == TARGET]
    flagged = inside & (scores > float(e.values["cut"] or 0))
    assert float(bad[flagged].double().mean()) > 0.9
    assert float(flagged[bad].double().mean()) > 0.9
    assert torch.equal(scores, detector.measure(given)[0])
    assert Model(given.model.net, given.model.shape, given.model.classes).digest == weights
    # the class falls apart as the clean twin's does not, and as few classes do
    statistics = torch.tensor([float(e.values["statistic"] or 0) for e in evidence])
    (usual,) = [e for e in detector.measure(clean)[1] if e.target == TARGET]
    assert float(statistics[TARGET]) > 2 * float(usual.values["statistic"] or 0)
    assert float(statistics[TARGET]) > 2 * float(statistics.median())
    if isinstance(detector, ContaminationAnalyzer | Reclassification):
        assert int(statistics.argmax()) == TARGET


def _set(
    features: Tensor,
    y: Tensor,
    classes: int = 2,
    train: Callable[[Data, int], Any] | None = None,
    clean: Data | None = None,
    x: Tensor | None = None,
) -> TrainingSet:
    """A hand-made set; the logits know nothing."""
    x = torch.zeros(len(y), 1, 1, 1) if x is None else x
    nothing = cast(Any, None)
    data = Data(x, y)
    return TrainingSet(
        data, classes, features, torch.zeros(len(y), classes), nothing, train or nothing, clean
    )


def _heaps(*heaps: tuple[int, float, float], seed: int = 0) -> Tensor:
    """Normal heaps (count, x, y) of width 1 in the plane."""
    g = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(n, 2, generator=g) + torch.tensor([a, b]) for n, a, b in heaps])


Y = torch.tensor([0] * 100 + [1] * 100)


def test_the_separation_of_a_line() -> None:
    line = torch.tensor([-1.1, -0.9, 0.9, 1.1], dtype=torch.float64)
    # T = 1.01, W = 0.01, H = log 2
    assert separation(line) == pytest.approx(101 / 4)
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.0005, 0.9995, 1000))
    assert separation(normal) == pytest.approx(0.25 / (1 - 2 / math.pi), rel=0.02)
    assert separation(-line.abs()) < 0.01


@pytest.mark.parametrize("reduction", ["pca", "ica"])
def test_the_smaller_cluster_is_flagged_and_its_sibling_is_not(reduction: str) -> None:
    given = _set(_heaps((80, 0, 0), (20, 12, 0), (100, 0, 20)), Y)
    for judging in ("size", "silhouette"):
        detector = ActivationClustering(reduction=reduction, judging=judging)
        scores, evidence = detector.measure(given)
        assert (scores[:100] > 0).tolist() == [False] * 80 + [True] * 20
        assert evidence[0].values["share"] == pytest.approx(0.2)
        assert float(scores[80:100].mean()) == pytest.approx(1, abs=0.01)
        values = [float(e.values["statistic"] or 0) for e in evidence]
        assert values[0] > values[1]
        if judging == "silhouette":
            detector = replace(detector, silhouette=sum(values) / 2)
            assert replace(detector, silhouette=0.99).judge(evidence, 2, 0.05)[0].level == NOTE
        assert {f.target: f.level for f in detector.judge(evidence, 2, 0.05)} == {0: ERROR}


def test_poison_that_is_most_of_its_class_is_known_by_what_it_was() -> None:
    y = torch.cat((Y, torch.tensor([2] * 100)))
    given = _set(_heaps((40, 0, 0), (60, 12, 0), (100, 0, 20), (100, 20, 20)), y, 3)
    logits = torch.zeros(300, 3)
    logits[:40, 1] = 1  # clean samples of class 0 resemble class 1
    logits[40:100][torch.arange(60), 1 + torch.arange(60) % 2] = 1  # the poison is of both other classes
    scores, evidence = ActivationClustering().measure(replace(given, logits=logits))
    assert (scores[:100] > 0).tolist() == [False] * 40 + [True] * 60
    assert evidence[0].values["share"] == pytest.approx(0.6)


def test_the_distance_rule() -> None:
    """Class 0 has 30 samples that lie where class 1 is; the 70 others lie at home."""
    given = _set(_heaps((70, 0, 0), (30, 0, 19), (100, 0, 20)), Y)
    detector = ActivationClustering(judging="distance")
    scores, evidence = detector.measure(given)
    assert (scores[:100] > 0).tolist() == [False] * 70 + [True] * 30
    assert evidence[0].values["source_class"] == 1
    assert [(f.target, f.level) for f in detector.judge(evidence, 2, 0.05)] == [(0, ERROR)]
    apart = _set(_heaps((70, 0, 0), (30, 0, -9), (100, 0, 20)), Y)  # two clusters, both at home
    assert detector.judge(detector.measure(apart)[1], 2, 0.05)[0].level == NOTE


class Fresh:
    """What a network trained without the left-out samples says: a pixel holds what they are, in tenths.

    A class of which it saw no genuine sample is not recognised: such inputs get class 2, half-heartedly.
    """

    device = torch.device("cpu")

    def __init__(self, data: Data) -> None:
        kind = (data.x[:, 0, 0, 0] * 10).round().long()
        self.known = kind[kind == data.y].unique()

    def logits(self, x: Tensor) -> Tensor:
        kind = (x[:, 0, 0, 0] * 10).round().long()
        known = torch.isin(kind, self.known)
        return torch.eye(3)[torch.where(known, kind, 2)] * torch.where(known, 9.0, 0.5)[:, None]


@pytest.mark.parametrize("poison", [20, 40, 60])
def test_exclusionary_reclassification(poison: int) -> None:
    """Poison of class 1 under label 0: less than half of it, about half, more than half."""
    asked: list[Data] = []

    def train(data: Data, seed: int) -> Fresh:
        asked.append(data)
        return Fresh(data)

    y = torch.tensor([0] * 100 + [1] * 100 + [2] * 100)
    kind = y.clone()
    kind[100 - poison : 100] = 1
    features = _heaps((100 - poison, 0, 0), (poison, 12, 0), (100, 0, 20), (100, 20, 20))
    given = _set(features, y, 3, train, x=(kind / 10).reshape(-1, 1, 1, 1))
    detector = ActivationClustering(judging="exclusionary")
    scores, evidence = detector.measure(given)
    assert 1 <= len(asked) <= 2, "one training for all classes, one more for clusters alike in size"
    left_out = 300 - len(asked[0])
    shares = [float(e.values["share"] or 0) for e in evidence]
    assert left_out == round(sum(min(s, 1 - s) * 100 for s in shares))
    assert (scores[:100] > 0).tolist() == [False] * (100 - poison) + [True] * poison
    assert (evidence[0].values["own"], evidence[0].values["other"]) == (0, poison)
    assert evidence[0].values["source_class"] == 1
    assert [(f.target, f.level) for f in detector.judge(evidence, 3, 0.05)] == [(0, ERROR)]

    mended = relabelled(given.data, (scores > 0) & (given.data.y == 0), {0: 1})
    assert torch.equal(mended.y, kind)
    assert torch.equal(given.data.y, y), "what was given stays as it was"
    assert len(relabelled(given.data, (scores > 0) & (given.data.y == 0), {})) == 300 - poison


def test_reclassification_with_real_training(audited: tuple[TrainingSet, TrainingSet, Tensor]) -> None:
    given, _, bad = audited
    scores, evidence = ActivationClustering(judging="exclusionary").measure(given)
    inside = given.data.y == TARGET
    assert abs(float(roc_auc_score(bad[inside], scores[inside])) - 0.5) > 0.4
    statistics = torch.tensor([float(e.values["statistic"] or 0) for e in evidence])
    assert float(statistics[TARGET]) > float(statistics.median())
    assert all(int(e.values["own"] or 0) + int(e.values["other"] or 0) > 0 for e in evidence)


def test_the_decomposition_of_representations() -> None:
    """r = mu_c + e with S_mu = diag(9, 1) and S_e = diag(1, 4)."""
    g = torch.Generator().manual_seed(0)
    s_mu, s_e = torch.tensor([9.0, 1.0]).double(), torch.tensor([1.0, 4.0]).double()
    y = torch.arange(400).repeat_interleave(5)
    mu = torch.randn(400, 2, generator=g, dtype=torch.float64) * s_mu.sqrt()
    r = mu[y] + torch.randn(2000, 2, generator=g, dtype=torch.float64) * s_e.sqrt()
    found_mu, found_e = decomposed(r, y, 100, 1e-5)
    assert torch.allclose(found_e, torch.diag(s_e), atol=0.3)
    assert torch.allclose(found_mu, torch.diag(s_mu), atol=1.0)
    # the scatter about the sample means alone falls short by a fifth
    assert float(scatter(r, y)[1, 1]) < 0.9 * float(found_e[1, 1])


def test_the_likelihood_ratio_by_hand() -> None:
    """Means at 3 and -1 with 2 and 6 samples: J = p (1 - p) times their squared distance, p = 1/4."""
    z = torch.tensor([3.0] * 2 + [-1.0] * 6, dtype=torch.float64)[:, None]
    best = untangled(z, known=True)
    assert best.ratio == pytest.approx(0.25 * 0.75 * 16)
    assert min(best.share, 1 - best.share) == 0.25
    assert best.distance == pytest.approx(4)
    assert best.position.abs().tolist() == pytest.approx([1.0] * 8)
    r = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    assert whitened(r, torch.tensor([[4.0]], dtype=torch.float64)).flatten().tolist() == pytest.approx(
        [1, -1], rel=0.01
    )


def test_the_rule_of_the_paper() -> None:
    y = torch.arange(10).repeat_interleave(100)
    features = _heaps(*[(100, 30.0 * c, 0.0) for c in range(10)])
    poisoned = features.clone()
    poisoned[300:320, 1] += 12
    clean = _set(_heaps(*[(100, 30.0 * c, 0.0) for c in range(10)], seed=1), y, 10)

    class Identity:
        device = torch.device("cpu")

        def features(self, x: Tensor) -> Tensor:
            return clean.features[(x[:, 0, 0, 0] * 1000).round().long()]

    known = Data((torch.arange(1000) / 1000).reshape(-1, 1, 1, 1), y)
    detector = ContaminationAnalyzer(preset="paper", clean=True)
    assert detector.threshold == pytest.approx(7.389, abs=1e-3)
    for given, wanted in ((features, (NOTE, None)), (poisoned, (ERROR, 3))):
        model = cast(Any, Identity())
        scores, evidence = detector.measure(replace(_set(given, y, 10, clean=known), model=model))
        j = torch.tensor([float(e.values["likelihood_ratio"] or 0) for e in evidence]).double()
        (finding,) = detector.judge(evidence, 10, 0.05)
        mad = 1.4826 * (j - j.quantile(0.5)).abs().quantile(0.5)
        assert finding.score == pytest.approx(float((j.max() - j.quantile(0.5)) / mad), rel=1e-4)
        assert finding.level == wanted[0]
        assert wanted[1] in (None, finding.target)
    assert (scores[300:400] > 0).tolist() == [True] * 20 + [False] * 80
    # a class that is more of one piece than the others is not suspicious
    e = [replace(e, values={**e.values, "statistic": 1.0 + 0.01 * i}) for i, e in enumerate(evidence)]
    e[5] = replace(e[5], values={**e[5].values, "statistic": 0.01})
    assert [f.level for f in detector.judge(e, 10, 0.05)] == [NOTE]


@pytest.mark.parametrize("detector", [ActivationClustering(), ContaminationAnalyzer(clean=False)])
def test_small_and_dead_classes(detector: SetDetector) -> None:
    few = _set(_heaps((100, 0, 0), (19, 9, 0)), torch.tensor([0] * 100 + [1] * 19))
    scores, evidence = detector.measure(few)
    assert [e.target for e in evidence] == [0]
    assert bool((scores[100:] == -1).all())
    dead = _set(torch.ones(200, 3), Y)
    scores, evidence = detector.measure(dead)
    assert [e.target for e in evidence] == [0, 1]
    assert not bool((scores > 0).any())
    assert "at least 20" in detector.applies(_set(torch.ones(10, 3), Y[95:105]))


def test_what_scan_needs() -> None:
    given = _set(_heaps((100, 0, 0), (100, 9, 0)), Y)
    assert "clean samples" in ContaminationAnalyzer(clean=True).applies(given)
    assert ContaminationAnalyzer(clean=False).applies(given) == ""
    few = replace(given, clean=given.data[:40])
    assert "at least 50" in ContaminationAnalyzer(clean=True).applies(few)
    assert ContaminationAnalyzer(clean=True).applies(replace(given, clean=given.data[50:150])) == ""


def test_wrong_settings() -> None:
    for wrong in (
        {"reduction": "umap"}, {"judging": "smaller"}, {"dimensions": 0}, {"share": 0.6}, {"ratio": 0.0},
        {"silhouette": 1.0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(str(v) for v in wrong.values())):
            ActivationClustering(**cast(Any, wrong))
    for bad in ({"preset": "oracle"}, {"dimensions": 0}, {"iterations": 0}, {"threshold": 0.0}):
        with pytest.raises(ValueError, match=str(next(iter(bad)))):
            ContaminationAnalyzer(**cast(Any, bad))
