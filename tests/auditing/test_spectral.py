"""Spectral signatures and SPECTRE: their equations, the mistakes of public code, and both verdicts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from backsweep.auditing.audit import streamed
from backsweep.auditing.detector import SetDetector, TrainingSet
from backsweep.auditing.detectors import spectre
from backsweep.auditing.detectors.spectral_signatures import SpectralSignatures, projections, suspicious_side
from backsweep.auditing.detectors.spectre import Spectre
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.reports.report import ERROR, NOTE
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.tasks import TASKS
from conftest import Twins

CLASSES, SAMPLES, TARGET = 10, 400, 3
Made = tuple[TrainingSet, Tensor]


def train(data: Data, seed: int) -> Model:
    raise AssertionError("neither method trains anything")


def made(
    twins: Twins, poisoned: int, axis: int, shift: float, dimensions: int = 40, many: bool = True
) -> Made:
    """Normal features; `poisoned` of the samples labelled 3 are shifted along an axis.

    Second choices: clean samples one of two classes; poisoned ones any other class, or class 7 alone.
    """
    g = torch.Generator().manual_seed(1)
    y = torch.arange(CLASSES).repeat_interleave(SAMPLES)
    features = torch.randn((len(y), dimensions), generator=g) * torch.linspace(2, 0.5, dimensions) + 5
    other = (y + 1 + torch.randint(2, y.shape, generator=g)) % CLASSES
    rows = torch.nonzero(y == TARGET).flatten()[:poisoned]
    features[rows, axis] += shift
    wide = (y[rows] + torch.randint(1, CLASSES, rows.shape, generator=g)) % CLASSES
    other[rows] = wide if many else 7
    logits = torch.zeros(len(y), CLASSES)
    place = torch.arange(len(y))
    logits[place, y], logits[place, other] = 10 + torch.randn(len(y), generator=g), 3.0
    bad = torch.zeros(len(y), dtype=torch.bool)
    bad[rows] = True
    data = Data(torch.zeros(len(y), 1, 1, 1), y)
    return TrainingSet(data, CLASSES, features, logits, twins.clean, train), bad


def found(detector: SetDetector, given: TrainingSet) -> tuple[list[int | None], Tensor]:
    """The classes found poisoned, and which samples are flagged in them."""
    scores, evidence = detector.measure(given)
    errors = [f.target for f in detector.judge(evidence, CLASSES, 0.05) if f.level == ERROR]
    cut = {e.target: float(e.values["cut"] or 0) for e in evidence}
    flagged = torch.zeros(len(scores), dtype=torch.bool)
    for label in errors:
        flagged |= (given.data.y == label) & (scores > cut[label])
    return errors, flagged


# ------------------------------------------------------------------ spectral signatures


def test_the_product_is_centred() -> None:
    """Worked out by hand: around the mean (100, 7) both ends are equally far; uncentred, 103 beats 97."""
    features = torch.tensor([[97.0, 7], [99, 7], [101, 7], [103, 7]])
    p, share = projections(features)
    assert torch.allclose(p * p, torch.tensor([9.0, 1, 1, 9], dtype=torch.double))
    assert share == pytest.approx(1)


@pytest.mark.parametrize("poisoned", [0, 12])
def test_the_paper_removes_its_budget_from_every_class(twins: Twins, poisoned: int) -> None:
    """ceil(1.5 * 0.05 * 400) = 30 of each class, whether there is poison or not."""
    given, bad = made(twins, poisoned, axis=0, shift=25)
    errors, flagged = found(SpectralSignatures(preset="paper"), given)
    assert errors == list(range(CLASSES))
    assert flagged.reshape(CLASSES, SAMPLES).sum(1).tolist() == [30] * CLASSES
    assert flagged[bad].all()


@pytest.mark.parametrize(("poisoned", "many"), [(100, True), (260, True), (80, False)])
@pytest.mark.parametrize("shift", [-12.0, 12.0])
def test_the_suspicious_side_is_found_be_it_the_larger_one(
    twins: Twins, poisoned: int, many: bool, shift: float
) -> None:
    given, bad = made(twins, poisoned, axis=5, shift=shift, many=many)
    errors, flagged = found(SpectralSignatures(), given)
    assert errors == [TARGET]
    assert flagged[bad].double().mean() > 0.95
    assert flagged[~bad].double().mean() < 0.005


@pytest.mark.parametrize("detector", [SpectralSignatures(), Spectre()])
def test_without_poison_nothing_is_found(twins: Twins, detector: SetDetector) -> None:
    given, _ = made(twins, 0, axis=0, shift=0)
    _, evidence = detector.measure(given)
    findings = detector.judge(evidence, CLASSES, 0.05)
    assert [f.level for f in findings] == [NOTE]


def test_a_class_whose_features_are_all_alike_has_no_side() -> None:
    assert suspicious_side(torch.zeros(30), torch.zeros(30, dtype=torch.long), 3, 1.0) is None


# ------------------------------------------------------------------ SPECTRE


def test_quantum_scores_take_the_matrix_exponential() -> None:
    """Sigma = [[2, -1], [-1, 2]], norm 3: Q is exp of 2 [[1, -1], [-1, 1]], whose eigenvalues are 4 and 0."""
    white = math.sqrt(1.5) * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.double)
    sigma = torch.tensor([[2.0, -1], [-1, 2]], dtype=torch.double)
    w = white @ torch.linalg.cholesky(sigma).T
    assert torch.allclose(torch.cov(w.T), sigma)
    tau, op = spectre.quantum(w, 4.0)
    e = math.exp(4)
    q = torch.tensor([[e + 1, 1 - e], [1 - e, e + 1]], dtype=torch.double) / (2 * (e + 1))
    assert torch.allclose(tau, torch.einsum("ni,ij,nj->n", w, q, w))
    assert op == pytest.approx((3 * e + 1) / (e + 1))
    elementwise = torch.exp(4 * (sigma - torch.eye(2)) / 2)  # what one port does
    elementwise = elementwise / elementwise.trace()
    assert not torch.allclose(tau, torch.einsum("ni,ij,nj->n", w, elementwise, w), rtol=0.1)


def test_white_samples_get_no_preferred_direction() -> None:
    white = math.sqrt(1.5) * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.double)
    assert torch.allclose(spectre.quantum(white, 4.0)[0], torch.full((4,), 0.75, dtype=torch.double))


def test_the_fourth_moment_is_that_of_the_operator_written_out() -> None:
    p = torch.randn((400, 3), generator=torch.Generator().manual_seed(0), dtype=torch.double)
    p[:8, 1] += 6
    y = p @ spectre.inverse_root(p.T @ p / len(p))
    flat = torch.einsum("ni,nj->nij", y, y).reshape(len(y), 9)
    unit = torch.eye(3, dtype=torch.double).flatten()
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(y) - torch.outer(unit, unit))
    value, v = spectre.fourth_moment(y, None)
    assert value == pytest.approx(float(values[-1]), rel=0.05)
    assert abs(float(v.flatten() @ vectors[:, -1])) > 0.99


def test_the_filter_counts_the_samples_beyond_not_below() -> None:
    """eps 0.3: at T = 25 the bound is 0.9 / (25 ln 25)^2 = 1.4e-4; 1 of 100,000 is less, 20 are more."""
    far = torch.zeros(100_000)
    far[0] = 28
    assert spectre.tail_cut(far, 0.3) is None  # the share below would be 99,999 of 100,000
    far[:20] = 28
    assert spectre.tail_cut(far, 0.3) == pytest.approx(25)


def test_the_filter_drops_the_planted_ones_within_its_limit() -> None:
    p = torch.randn((2000, 20), generator=torch.Generator().manual_seed(0), dtype=torch.double)
    assert len(spectre.robust_subset(p, 0.02)) == 2000
    p[:20, 3] += 14
    kept = spectre.robust_subset(p, 0.02)
    assert int((kept < 20).sum()) == 0
    assert len(kept) >= 2000 - 80


def test_poison_beyond_the_first_axes_needs_many_axes(twins: Twins) -> None:
    """Along the 31st of 40 axes; two axes, as in one port, or a single direction, do not see it."""
    given, bad = made(twins, 12, axis=30, shift=9)
    target = given.data.y == TARGET
    auroc = {}
    for name, detector in {
        "all": Spectre(), "two": Spectre(dimensions=2), "one": SpectralSignatures(preset="paper")
    }.items():  # fmt: skip
        auroc[name] = roc_auc_score(bad[target], detector.measure(given)[0][target])
    assert auroc["all"] > 0.99
    assert auroc["two"] < 0.8
    assert auroc["one"] < 0.8
    scores, evidence = Spectre().measure(given)
    top = max(evidence, key=lambda e: float(e.values["statistic"] or 0))
    assert top.target == TARGET
    flagged = target & (scores > float(top.values["cut"] or 0))
    assert flagged[bad].double().mean() > 0.9
    assert flagged[~bad].double().mean() < 0.01


@pytest.mark.parametrize("poisoned", [0, 12])
def test_the_paper_flags_the_class_with_the_largest_op(twins: Twins, poisoned: int) -> None:
    given, _ = made(twins, poisoned, axis=30, shift=9)
    errors, flagged = found(Spectre(preset="paper"), given)
    assert len(errors) == 1
    assert errors == [TARGET] or not poisoned
    assert int(flagged.sum()) == 60  # ceil(1.5 * 0.1 * 400)


def test_surer_is_the_gap_of_the_margins_in_deviations() -> None:
    logits = torch.tensor([[3.0, 1, 0], [3, 1, 0], [5, 1, 0], [5, 1, 0]])
    upper = torch.tensor([False, False, True, True])
    assert spectre.surer(logits, 0, upper) == pytest.approx(2 / math.sqrt(4 / 3))
    assert spectre.surer(logits, 0, ~upper) == pytest.approx(-2 / math.sqrt(4 / 3))
    assert spectre.surer(logits, 0, torch.zeros(4, dtype=torch.bool)) == 0


# ------------------------------------------------------------------ both


def test_poisoned_digits_stand_out_in_the_infected_network_alone(twins: Twins) -> None:
    """A third of the target class of the tiny network is poisoned, and the filter may leave out so many.

    The clean twin knows the poisoned samples by their true classes, among which they are like any other.
    """
    task, attack = TASKS["digits"], BadNets(size=1, margin=0, rate=0.05)
    clean = task.load()[0]
    setup = task.setup(clean, seed=0)
    data, rows = attack.poison(setup, attack.triggers(setup))
    bad = torch.zeros(len(data), dtype=torch.bool)
    bad[rows] = True
    net = fit(task.net(0), data, replace(task.recipe, epochs=40), 0)  # long enough to learn so few of them
    infected = Model(net, task.shape, task.classes)
    detector, auroc = Spectre(eps=0.3), []
    for model, y in ((infected, data.y), (twins.clean, clean.y)):
        features, logits = streamed(model, data.x)
        given = TrainingSet(Data(data.x, y), CLASSES, features, logits, model, train)
        before = {k: v.clone() for k, v in model.net.state_dict().items()}
        scores, _ = detector.measure(given)
        assert torch.equal(scores, detector.measure(given)[0])
        assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())
        both = [y == c for c in range(CLASSES) if len(bad[y == c].unique()) == 2]
        auroc.append(sum(roc_auc_score(bad[r], scores[r]) for r in both) / len(both))
    assert auroc[0] > 0.7
    assert abs(auroc[1] - 0.5) < 0.12


@pytest.mark.parametrize("detector", [SpectralSignatures(), Spectre()])
def test_features_that_are_not_finite_are_refused(twins: Twins, detector: SetDetector) -> None:
    given, _ = made(twins, 0, axis=0, shift=0)
    assert detector.applies(given) == ""
    given.features[0, 0] = math.nan
    assert "finite" in detector.applies(given)


@pytest.mark.parametrize("settings", [{"preset": "best"}, {"eps": 0.0}, {"eps": 0.9}])
@pytest.mark.parametrize("method", [SpectralSignatures, Spectre])
def test_wrong_settings_are_refused(method: type[SetDetector], settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"preset|eps"):
        method(**settings)


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"dimensions": 0}])
def test_wrong_settings_of_spectre_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="alpha is above 0"):
        Spectre(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "detector", [SpectralSignatures(), SpectralSignatures("paper"), Spectre(), Spectre("paper")]
)
def test_small_and_flat_classes_do_no_harm(twins: Twins, detector: SetDetector) -> None:
    """19 samples of class 0, none of class 1, 30 equal ones of class 2."""
    y = torch.tensor([0] * 19 + [2] * 30 + [3] * 30)
    features = torch.randn((len(y), 8), generator=torch.Generator().manual_seed(0))
    features[y == 2] = 1.0
    data = Data(torch.zeros(len(y), 1, 1, 1), y)
    given = TrainingSet(data, 4, features, torch.zeros(len(y), 4), twins.clean, train)
    scores, evidence = detector.measure(given)
    assert torch.isfinite(scores).all()
    assert 3 in {e.target for e in evidence} <= {2, 3}
    assert all(math.isfinite(float(e.values["statistic"] or 0)) for e in evidence)
