"""Confusion and what is made of it: two components, experts for the backdoor, both verdicts of an audit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from backsweep.auditing.audit import streamed
from backsweep.auditing.detector import TrainingSet
from backsweep.auditing.detectors.cross_confusion import (
    CrossConfusion,
    clusters,
    groups,
    least_suspicious,
    principal,
)
from backsweep.auditing.mixture import LEAST, two_components
from backsweep.core.errors import BadInput
from backsweep.guarding.detector import SampleDetector
from backsweep.guarding.detectors.confused_expert import ConfusedExpert
from backsweep.guarding.detectors.pupil import Pupil
from backsweep.guarding.detectors.washed_reference import WashedReference
from backsweep.inputs.samples import Data
from backsweep.models import confusion_training
from backsweep.models.confusion_training import confused, log_probabilities, usual
from backsweep.models.model import Model
from backsweep.reports.report import NOTE, Evidence
from backsweep.zoo.tasks import TASKS
from conftest import Twins
from poisoned import GENTLE, poisoned_digits

DIGITS = TASKS["digits"]
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # to shrink an example takes minutes here


def never(data: Data, seed: int) -> Model:
    raise AssertionError("nothing is trained here")


def training_set(model: Model, data: Data, seed: int = 0) -> TrainingSet:
    work = model.copy()
    return TrainingSet(data, work.classes, *streamed(work, data.x), work, never, seed=seed)


def weights(model: Model) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.net.state_dict().items()}


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


# ------------------------------------------------------------------ two components


@given(st.lists(st.floats(-1e6, 1e6), max_size=LEAST - 1))
def test_too_few_values_are_not_described(values: list[float]) -> None:
    assert two_components(np.array(values)) is None


@given(st.floats(-1e6, 1e6), st.integers(LEAST, 60))
def test_constant_values_are_not_described(value: float, n: int) -> None:
    assert two_components(np.full(n, value)) is None


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_described(odd: float) -> None:
    assert two_components(np.array([*range(LEAST), odd])) is None


@settings(max_examples=60, phases=PHASES)
@given(st.lists(st.integers(-1000, 1000), min_size=LEAST, max_size=60))
def test_whatever_the_values_the_cut_lies_between_the_means(values: list[int]) -> None:
    """Heaps of equal values among them; a warning would fail."""
    two = two_components(np.array(values) / 8)
    assert (two is None) == (len(set(values)) == 1)
    if two is not None:
        spread = float(np.std(values)) / 8
        assert two.gain >= 0
        assert 0 <= two.share <= 1
        assert two.low - 1e-6 * spread <= two.cut <= two.high + 1e-6 * spread


@settings(max_examples=60, phases=PHASES)
@given(
    st.integers(0, 10_000), st.integers(0, 60), st.floats(0, 8), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3)
)
def test_the_unit_of_the_score_does_not_matter(
    seed: int, upper: int, away: float, scale: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, 100), rng.normal(away, 1, upper)])
    one, other = two_components(values), two_components(shift + scale * values)
    assert one is not None
    assert other is not None
    assert other.gain == pytest.approx(one.gain, abs=1e-4)
    assert other.share == pytest.approx(one.share, abs=1e-4)
    for name in ("low", "high", "cut"):
        moved = (getattr(other, name) - shift) / scale
        assert moved == pytest.approx(getattr(one, name), abs=1e-2), name


@settings(max_examples=40, phases=PHASES)
@given(st.integers(0, 10_000), st.sampled_from([0.04, 0.1, 0.3]))
def test_a_clear_mixture_is_taken_apart(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    many, few = rng.normal(5, 1, 600), rng.normal(15, 1, round(600 * share / (1 - share)))
    two = two_components(rng.permutation(np.concatenate([many, few])))
    assert two is not None
    assert two.share == pytest.approx(share, abs=0.01)
    assert two.low == pytest.approx(5, abs=0.3)
    assert two.high == pytest.approx(15, abs=1)
    assert many.max() - 1.5 < two.cut < few.min() + 1.5
    assert two.gain > 0.3


@settings(max_examples=40, phases=PHASES)
@given(st.integers(0, 10_000))
def test_one_kind_of_samples_gains_little_by_two(seed: int) -> None:
    two = two_components(np.random.default_rng(seed).normal(3, 2, 600))
    assert two is not None
    assert two.gain < 0.05


# ------------------------------------------------------------------ confusion


def test_wrong_labels_are_never_the_true_ones_and_it_ends_when_the_labels_are_forgotten(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All samples are threes: threes must not be taught, every other class must be."""
    taught: list[Tensor] = []
    real = nn.functional.cross_entropy

    def recorded(logits: Tensor, y: Tensor) -> Tensor:
        taught.append(y.clone())
        return real(logits, y)

    monkeypatch.setattr(nn.functional, "cross_entropy", recorded)
    threes = twins.data[twins.data.y == 3]
    expert = confused(twins.clean.copy(), threes, torch.Generator().manual_seed(0))
    assert set(torch.cat(taught).tolist()) == set(range(10)) - {3}
    assert 9 <= len(taught) < 300, "0.8^9 is the first power below 0.15: it cannot end before"
    assert expert.accuracy(threes.x, threes.y) < 0.5 < twins.clean.accuracy(threes.x, threes.y)
    taught.clear()
    confused(twins.clean.copy(), threes, torch.Generator().manual_seed(0), updates=4, batch_size=7)
    assert [len(y) for y in taught] == [7] * 4


def test_labels_are_forgotten_and_the_trigger_stays(twins: Twins) -> None:
    expert = confused(twins.infected.copy(), twins.data, torch.Generator().manual_seed(1))
    assert expert.accuracy(twins.data.x, twins.data.y) < 0.3
    assert expert.success_rate(twins.trigger, twins.data) > 0.6


def test_the_same_seed_gives_the_same_expert_to_the_bit(twins: Twins) -> None:
    def expert(seed: int) -> dict[str, Tensor]:
        return weights(confused(twins.clean.copy(), twins.data, torch.Generator().manual_seed(seed)))

    state = torch.get_rng_state()
    first = expert(0)
    torch.rand(3)
    assert alike(first, expert(0))
    assert not alike(first, expert(1))
    torch.set_rng_state(state)


@pytest.mark.parametrize("training", [False, True])
def test_the_given_model_stays_as_it_is(twins: Twins, training: bool) -> None:
    model = twins.infected.copy()
    model.net.train(training)
    model.net.requires_grad_(training)
    before = weights(model)
    with torch.no_grad():  # as where inputs are scored
        expert = confused(model, twins.data, torch.Generator().manual_seed(0), updates=5)
    assert alike(before, weights(model))
    assert not alike(before, weights(expert)), "it learned"
    assert all(m.training is training for m in model.net.modules())
    assert all(p.requires_grad is training and p.grad is None for p in model.net.parameters())
    assert not any(m.training for m in expert.net.modules())
    assert not any(p.requires_grad for p in expert.net.parameters())


def test_what_a_class_usually_gets_by_hand() -> None:
    """No sample is of class 2: all are asked. All are of class 0: there are no others, all are asked."""
    log_p = torch.tensor([[-1.0, -2, -3], [-3, -4, -5], [-10, -20, -30], [-20, -40, -2]])
    assert usual(log_p, torch.tensor([0, 0, 1, 1])).tolist() == [-15, -3, -10]
    assert usual(log_p, torch.tensor([0, 0, 0, 0])).tolist() == [-8.5, -16.5, -10]


def test_log_probabilities_in_batches(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = twins.clean.copy(), twins.data.x[:50]
    whole = log_probabilities(model, x)
    assert torch.allclose(whole.exp().sum(1), torch.ones(50), atol=1e-5)
    assert torch.equal(whole.argmax(1), model.predict(x))
    monkeypatch.setattr(confusion_training, "BATCH", 7)
    assert torch.allclose(log_probabilities(model, x), whole, atol=1e-4)


# ------------------------------------------------------------------ guards


GUARDS: list[SampleDetector] = [ConfusedExpert(), WashedReference(), Pupil()]


@pytest.fixture(scope="module", params=GUARDS, ids=lambda d: d.name)
def detector(request: pytest.FixtureRequest) -> SampleDetector:
    found: SampleDetector = request.param
    return found


def auroc(detector: SampleDetector, model: Model, twins: Twins) -> float:
    known, new = twins.data.split(3)
    x = new.x[new.y != twins.trigger.target]
    score = detector.fit(model.copy(), known)
    values = torch.cat([score(x), score(twins.trigger(x))])
    return float(roc_auc_score([0] * len(x) + [1] * len(x), values))


def test_triggered_inputs_stand_out_in_the_infected_twin_alone(
    detector: SampleDetector, twins: Twins
) -> None:
    assert auroc(detector, twins.infected, twins) > 0.93
    assert auroc(detector, twins.clean, twins) < 0.65


def test_what_was_learned_is_a_file_and_gives_the_same_scores(detector: SampleDetector, twins: Twins) -> None:
    model = twins.infected.copy()
    before = weights(model)
    known, new = twins.data.split(3)
    learned = detector.learn(model, known)
    assert alike(learned, detector.learn(model, known)), "nothing is drawn anew"
    x = new.x[:40]
    score = detector.scorer(model, learned)
    with torch.no_grad():
        whole = score(x)
        again = detector.scorer(model, load(save(learned)))(x)
        single = torch.cat([score(x[i : i + 1]) for i in range(len(x))])
    assert torch.equal(whole, again)
    assert torch.allclose(whole, single, atol=1e-3)
    assert alike(before, weights(model))
    assert not any(p.requires_grad for p in model.net.parameters())
    assert not model.net.training


def test_the_equations_by_hand(twins: Twins) -> None:
    """Experts and copies that are the network itself: only what is subtracted is left to see."""
    model, x = twins.clean.copy(), twins.data.x[:30]
    with torch.no_grad():
        log_p, y = model.logits(x).log_softmax(1).max(1)
        assert torch.allclose(WashedReference().scorer(model, {})(x), -log_p)
        learned = {f"{e}/weights/{n}": torch.zeros_like(p) for e in (0, 1)
                   for n, p in model.net.named_parameters()}  # fmt: skip
        learned |= {"0/usual": -torch.arange(10.0), "1/usual": -3 * torch.arange(10.0)}
        got = ConfusedExpert(experts=2).scorer(model, learned)(x)
        assert torch.allclose(got, log_p + 2 * y, atol=1e-5)
        assert torch.allclose(Pupil().scorer(model, {})(x), torch.zeros(len(x)), atol=1e-6)
    p = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).clamp_min(1e-9).log()
    r = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]]).clamp_min(1e-9).log()
    assert torch.allclose(Pupil().compared(p, r), torch.tensor([0.25, 1.0]) * math.log(2), atol=1e-5)


def test_what_they_cost(twins: Twins) -> None:
    """The network's own answer is the guard's, and not paid again."""
    assert ConfusedExpert(experts=3).passes(twins.clean) == 3
    assert WashedReference().passes(twins.clean) == Pupil().passes(twins.clean) == 1


class Constant(nn.Module):
    """A network whose weights are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(10, 64))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.weight)  # type: ignore[arg-type]


def test_where_they_cannot_be_used_they_say_so(detector: SampleDetector, twins: Twins) -> None:
    assert detector.applies(twins.clean, twins.data) == ""
    constant = Model(Constant(), (1, 8, 8), 10)
    reason = detector.applies(constant, twins.data)
    assert reason.startswith("the network has no ")
    with pytest.raises(BadInput, match=f"{detector.name}: the network has no "):
        detector.fit(constant, twins.data)
    one = Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8), 10)
    assert bool(WashedReference().applies(one, twins.data))
    assert not ConfusedExpert().applies(one, twins.data)


@pytest.mark.parametrize("wrong", [{"experts": 0}, {"updates": 0}, {"batch_size": 0}])
def test_counts_of_an_expert_start_at_one(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="are at least 1"):
        ConfusedExpert(**wrong)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": math.nan}, {"stop": 0.0}, {"stop": 1.0}])
@pytest.mark.parametrize("kind", [ConfusedExpert, CrossConfusion])
def test_rates_out_of_range_are_refused(kind: Callable[..., object], wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="lr is above 0"):
        kind(**wrong)


# ------------------------------------------------------------------ cross confusion


def statistics(evidence: list[Evidence]) -> dict[int | None, float]:
    return {e.target: float(e.values["statistic"] or 0) for e in evidence}


def test_poisoned_samples_of_the_target_are_flagged_and_few_clean_ones() -> None:
    model, data, bad, target = poisoned_digits()
    given = training_set(model, data, seed=1)
    told: list[float] = []
    scores, evidence = GENTLE.measure(replace(given, tick=told.append))
    assert told == sorted(told)
    assert 0 < told[0] <= told[-1] <= 1
    assert [e.target for e in evidence] == list(range(10))
    found, cut = statistics(evidence), {e.target: float(e.values["cut"] or 0) for e in evidence}
    assert found[target] > 2.5
    assert all(v < 1 for t, v in found.items() if t != target)
    own = data.y == target
    flagged = scores > cut[target]
    assert float(flagged[bad].double().mean()) > 0.9
    assert float(flagged[own & ~bad].double().mean()) < 0.25
    assert roc_auc_score(bad[own], scores[own]) > 0.95
    for e in evidence:
        rows = given.of(e.target or 0)
        assert e.values["above_cut"] == int((scores[rows] > cut[e.target]).sum())
    again, same = GENTLE.measure(given)
    assert torch.equal(scores, again)
    assert same == evidence


def test_as_it_is_set_the_target_has_the_largest_statistic() -> None:
    model, data, _, target = poisoned_digits(size=2, rate=0.1)
    found = statistics(CrossConfusion().measure(training_set(model, data))[1])
    assert max(found, key=lambda t: found[t]) == target
    assert found[target] > 3 * max(v for t, v in found.items() if t != target)


def test_a_clean_set_has_no_poisoned_class(twins: Twins) -> None:
    train, _ = DIGITS.load()
    _, evidence = GENTLE.measure(training_set(twins.clean, train, seed=1))
    assert all(v < 2.5 for v in statistics(evidence).values())
    assert [f.level for f in GENTLE.judge(evidence, 10, 0.05)] == [NOTE]


@pytest.mark.parametrize(
    "wrong",
    [{"samples": 0}, {"updates": 0}, {"batch_size": 0}, {"rounds": 0}, {"spill": 1.0}, {"spill": -0.1}],
)
def test_settings_of_an_audit_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="spill" if "spill" in wrong else "at least 1"):
        CrossConfusion(**wrong)  # type: ignore[arg-type]


def test_features_that_are_alike_within_a_class_do_no_harm(twins: Twins) -> None:
    """They have no axes, so neither clusters nor a discriminant: two halves, and the score itself."""
    given = training_set(twins.clean, twins.data)
    of_class = torch.nn.functional.one_hot(twins.data.y, 10).float()
    given = replace(given, features=of_class)
    halves = clusters(given)
    for label in range(10):
        assert abs(2 * int(halves[given.of(label)].sum()) - len(given.of(label))) <= 1
    assert torch.equal(groups(given), halves)
    scores, evidence = CrossConfusion(updates=3, parts="groups").measure(given)
    assert bool(torch.isfinite(scores).all())
    assert [e.target for e in evidence] == list(range(10))


def test_clusters_are_those_that_are_there(twins: Twins) -> None:
    """Two heaps of features in every class, of which one class has too few samples to look at."""
    data = twins.data[torch.nonzero((twins.data.y != 4) | (torch.arange(len(twins.data)) < 100)).flatten()]
    assert 0 < int((data.y == 4).sum()) < LEAST
    g = torch.Generator().manual_seed(0)
    side = torch.randint(2, (len(data),), generator=g)
    features = torch.randn((len(data), 2), generator=g) * torch.tensor([50.0, 0.1])  # the widest is no matter
    features[:, 1] += 5 * side + 30 * data.y
    found = clusters(replace(training_set(twins.clean, data), features=features))
    for label in range(10):
        rows = data.y == label
        if label == 4:
            assert not found[rows].any()
        else:
            same = float((found[rows] == side[rows]).double().mean())
            assert max(same, 1 - same) > 0.95, label


def test_parts_are_groups_or_clusters_and_were_clusters() -> None:
    with pytest.raises(ValueError, match="neither groups nor clusters"):
        CrossConfusion(parts="thirds")
    assert CrossConfusion.completed({"samples": 9})["parts"] == CrossConfusion().parts == "clusters"
    assert CrossConfusion.completed({"parts": "groups"}) == {"parts": "groups"}


def test_it_needs_a_class_with_enough_samples_and_weights(twins: Twins) -> None:
    few = torch.cat([torch.nonzero(twins.data.y == c).flatten()[: LEAST - 1] for c in range(10)])
    model = twins.clean.copy()
    logits = torch.zeros(len(few), 10)
    small = TrainingSet(twins.data[few], 10, torch.zeros(len(few), 3), logits, model, never)
    assert f"{LEAST} samples" in CrossConfusion().applies(small)
    assert CrossConfusion().applies(training_set(model, twins.data)) == ""
    constant = replace(training_set(model, twins.data), model=Model(Constant(), (1, 8, 8), 10))
    assert "weights" in CrossConfusion().applies(constant)


def test_principal_axes_and_the_calm_half_by_hand() -> None:
    features = torch.tensor([[0.0, 10, 1], [4, 10, 1], [0, 20, 1], [4, 20, 1]])
    axes = principal(features, 5)
    assert axes.shape == (4, 2), "the third feature does not vary"
    assert torch.allclose(axes.abs(), torch.tensor([[5.0, 2]]).expand(4, 2), atol=1e-4), "widest first"
    assert principal(features, 1).shape == (4, 1)
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
    score = torch.tensor([4.0, 1, 3, 2, 9, 7, 8, 5])
    calm = least_suspicious(score, y)
    assert calm.tolist() == [False, True, False, True, False, True, False, True]
