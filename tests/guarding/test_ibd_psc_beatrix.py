"""Two guards: IBD-PSC scales the network's parameters, Beatrix compares Gram matrices of its features."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats import exported
from backsweep.guarding.detector import SampleDetector
from backsweep.guarding.detectors.beatrix import Beatrix, grams, outside
from backsweep.guarding.detectors.ibd_psc import IbdPsc, amplified, nines, norms
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.models.architectures import gap_cnn, resnet8, small_vit
from backsweep.models.model import Model
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.tasks import TASKS
from conftest import Twins

TASK = TASKS["digits"]
LEARNED = 400  # of the test images; the rest is judged on


def twins_of(arch: str) -> Twins:
    """A clean and an infected network with BatchNorm, and a patch of four pixels."""
    train, test = TASK.load()
    setup = TASK.setup(train, 0, replace(TASK.recipe, epochs=8), arch)
    infected = setup.net(0)
    (trigger,) = BadNets(size=2, margin=0).plant(infected, setup)
    assert isinstance(trigger, Patch)
    models = [Model(net, TASK.shape, TASK.classes) for net in (setup.clean(), infected)]
    return Twins(models[0], models[1], trigger, test)


@pytest.fixture(scope="module")
def deep() -> Twins:
    """Nine BatchNorm layers."""
    return twins_of("resnet8")


@pytest.fixture(scope="module")
def plain() -> Twins:
    """Four of them."""
    return twins_of("gap_cnn")


def auroc(detector: SampleDetector, model: Model, trigger: Trigger, data: Data) -> float:
    """How well triggered images are told from others."""
    model, rest = model.copy("cpu"), data[LEARNED:]
    scorer = detector.fit(model, data[:LEARNED])
    triggered = trigger(rest.x[acted_on(trigger, rest.y, model.classes)])
    truth = [0] * len(rest) + [1] * len(triggered)
    return float(roc_auc_score(truth, torch.cat([scorer(rest.x), scorer(triggered)])))


def check_scorer(detector: SampleDetector, model: Model, data: Data) -> None:
    """One by one as in a batch, the same twice, nothing changed."""
    model = model.copy("cpu")
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    scorer, again = detector.fit(model, data[:LEARNED]), detector.fit(model, data[:LEARNED])
    x = data.x[-8:]
    scores = scorer(x)
    assert scores.shape == (8,)
    assert len(set(scores.tolist())) > 1
    torch.testing.assert_close(torch.cat([scorer(one) for one in x.split(1)]), scores, rtol=1e-3, atol=1e-4)
    assert torch.equal(again(x), scores)
    restored = detector.restored(model, {k: v.clone() for k, v in scorer.learned.items()}, scorer.clean)
    assert torch.equal(restored(x), scores), "what was learned is all that a guard needs"
    assert all(v.is_contiguous() and v.device.type == "cpu" for v in scorer.learned.values())
    for k, v in model.net.state_dict().items():
        assert torch.equal(v, before[k]), "the model is as it was"


# ------------------------------------------------------------------ IBD-PSC


def test_ibd_psc_tells_triggered_inputs(deep: Twins) -> None:
    assert deep.infected.success_rate(deep.trigger, deep.data) > 0.9
    assert auroc(IbdPsc(), deep.infected, deep.trigger, deep.data) > 0.9
    assert auroc(IbdPsc(), deep.clean, deep.trigger, deep.data) < 0.6


def test_ibd_psc_leaves_the_model_as_it_was(deep: Twins) -> None:
    check_scorer(IbdPsc(), deep.infected, deep.data)


def chain(means: list[float], bias: float = 0.0) -> Model:
    """BatchNorm layers in a row on two pixels: they take `means` from the first one, and add `bias` to it."""
    layers = []
    for mean in means:
        norm = nn.BatchNorm1d(2, eps=0.0)
        norm.running_mean = torch.tensor([mean, 0.0])
        norm.bias.data[0] = bias
        layers.append(norm)
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.eye(2)
    return Model(nn.Sequential(nn.Flatten(), *layers, head), (1, 1, 2), 2).copy("cpu")


def pixels(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows).reshape(-1, 1, 1, 2)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_psc_is_the_mean_confidence_of_the_amplified_copies() -> None:
    """Two layers: gamma and beta of the last one, then of both, are multiplied by 1.5."""
    model = chain([0.0, 0.0], bias=0.2)
    score = IbdPsc().scorer(model, {"k": torch.tensor(1)})(pixels((0.5, 0.1)))
    one = 1.5 * (0.5 + 0.2 + 0.2) - 1.5 * 0.1
    two = 1.5 * (1.5 * (0.5 + 0.2) + 0.2) - 1.5 * 1.5 * 0.1
    assert score.tolist() == pytest.approx([-math.log10(1 - (sigmoid(one) + sigmoid(two)) / 2)])
    both = IbdPsc().scorer(model, {"k": torch.tensor(2)})(pixels((0.5, 0.1)))
    assert both.tolist() == pytest.approx([-math.log10(1 - sigmoid(two))]), "there are no further layers"
    first = IbdPsc(n=1).scorer(model, {"k": torch.tensor(1)})(pixels((0.5, 0.1)))
    assert first.tolist() == pytest.approx([-math.log10(1 - sigmoid(one))])


def test_the_class_is_that_of_the_network_and_not_of_its_copies() -> None:
    """-0.3 against 0 is class 1; with two layers amplified it is 1.5 (1.05 - 1) against 0, class 0."""
    score = IbdPsc(n=1).scorer(chain([0.0, 1.0]), {"k": torch.tensor(2)})(pixels((0.7, 0.0)))
    assert score.tolist() == pytest.approx([-math.log10(1 - sigmoid(-1.5 * 0.05))])


def test_the_start_is_the_smallest_count_whose_clean_error_exceeds_xi() -> None:
    """The last layer scales the logits. Below it, 1.5 * 0.7 - 1 leaves class 1; two of four samples do."""
    model = chain([0.0, 0.0, 1.0])
    flips = Data(pixels(*[(0.7, 0.0)] * 4), torch.ones(4, dtype=torch.long))
    half = Data(pixels(*[(0.7, 0.0), (0.0, 0.9)] * 2), torch.ones(4, dtype=torch.long))
    for data, detector, k in ((flips, IbdPsc(), 2), (half, IbdPsc(), 3), (half, IbdPsc(xi=0.4), 2)):
        assert int(detector.learn(model, data)["k"]) == k


def test_saturated_confidences_keep_their_order() -> None:
    """In float32 both are 1: no threshold could tell them, nor the clean inputs that are as sure."""
    logits = torch.tensor([[100.0, 0.0], [200.0, 0.0], [0.0, 50.0]])
    assert logits.softmax(1)[:2, 0].tolist() == [1.0, 1.0]
    found = nines([logits], torch.tensor([0, 0, 0]))
    assert found.tolist() == pytest.approx([100 / math.log(10), 200 / math.log(10), 0.0])
    psc = torch.tensor([[math.log(9.0), 0.0]])  # a probability of 0.9
    assert nines([psc, psc], torch.tensor([0])).tolist() == pytest.approx([1.0], rel=1e-5)


def test_copies_share_what_is_not_amplified() -> None:
    model = Model(gap_cnn(), (1, 8, 8), 10).copy("cpu")
    twin = amplified(model, norms(model)[-1:], 1.5)
    a, b = dict(model.net.named_parameters()), dict(twin.net.named_parameters())
    changed = [n for n in a if a[n] is not b[n]]
    assert changed == ["10.weight", "10.bias"]
    assert torch.equal(b["10.weight"], 1.5 * a["10.weight"])
    assert all(p is q for p, q in zip(model.net.buffers(), twin.net.buffers(), strict=True))


def test_layers_come_in_the_order_in_which_they_run() -> None:
    model = Model(resnet8(), (3, 16, 16), 10).copy("cpu")
    weights = [layer[0].removesuffix(".weight") for layer in norms(model)]
    assert weights[0] == "stem.1"
    assert weights[-3:] == ["body.2.bn1", "body.2.bn2", "body.2.skip.1"]
    assert len(weights) == 9


class Tokens(nn.Module):
    """Rows of the image are tokens, with LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.one(x.flatten(1, 2))).mean(1))
        return out


def test_layer_norm_is_amplified_too_unless_the_paper_is_wanted() -> None:
    data = Data(torch.rand((40, 1, 8, 8)), torch.arange(40) % 10)
    model = Model(Tokens(), (1, 8, 8), 10).copy("cpu")
    assert norms(model) == [("norm.weight", "norm.bias")]
    assert IbdPsc().applies(model, data) == ""
    assert "this network has LayerNorm" in IbdPsc(what="batch").applies(model, data)
    read = Beatrix().learn(model, data)
    assert read["median"].shape == (10, 8, 16 * 17 // 2), "tokens are the places of 16 channels"


def test_the_layer_norms_of_a_transformer() -> None:
    pytest.importorskip("transformers")
    model = Model(small_vit(10, 1, 8), (1, 8, 8), 10).copy("cpu")
    assert len(norms(model)) == 9, "two in each of four layers, and the last"
    assert norms(model, "batch") == []


def test_without_such_layers_it_says_so(twins: Twins) -> None:
    """GroupNorm takes out again what was put in: it is not amplified."""
    assert "this network has none" in IbdPsc().applies(twins.infected, twins.data)
    with pytest.raises(BadInput, match="ibd_psc: it needs BatchNorm or LayerNorm"):
        IbdPsc().fit(twins.infected.copy("cpu"), twins.data)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 10))
    assert "this network has none" in IbdPsc().applies(Model(net, (1, 8, 8), 10).copy("cpu"), twins.data)


def program(model: Model) -> Model:
    """The network as an exported program, which has no modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.rand(2, *model.shape),)
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        blob = io.BytesIO()
        torch.export.save(torch.export.export(model.net.eval(), example, dynamic_shapes=shapes), blob)
    return Model(exported.read(blob.getvalue()), model.shape, model.classes).copy("cpu")


def test_both_work_on_an_exported_program(plain: Twins) -> None:
    model, data = plain.infected.copy("cpu"), plain.data
    read = program(model)
    assert norms(read, "batch") == norms(model, "batch")
    for detector in (IbdPsc(), Beatrix(), Beatrix(layer=-2)):
        a, b = detector.fit(model, data[:LEARNED]), detector.fit(read, data[:LEARNED])
        torch.testing.assert_close(a(data.x[-8:]), b(data.x[-8:]), rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------ Beatrix


def test_beatrix_tells_triggered_inputs(plain: Twins) -> None:
    """Not the one pixel of `twins`, which hardly shows among the features of so small a network."""
    assert auroc(Beatrix(), plain.infected, plain.trigger, plain.data) > 0.85
    assert auroc(Beatrix(), plain.clean, plain.trigger, plain.data) < 0.7


def test_beatrix_leaves_the_model_as_it_was(twins: Twins) -> None:
    check_scorer(Beatrix(), twins.infected, twins.data)
    check_scorer(Beatrix(layer=-2, channels=8), twins.infected, twins.data)


def test_the_order_is_in_the_features_and_not_in_the_root_alone() -> None:
    """F = (1 2; 3 0): F^2 = (1 4; 9 0), its Gram matrix (17 9; 9 81), whose root is G_2.

    Public code takes the root of the first Gram matrix (5 3; 3 9).
    """
    first, second = grams(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), 2)
    assert first[0].tolist() == pytest.approx([5, 3, 9])
    assert second[0].tolist() == pytest.approx([math.sqrt(17), 3, 9])
    assert second[0, 0] != pytest.approx(math.sqrt(5))


def test_high_orders_of_large_and_of_silent_features_are_finite() -> None:
    maps = torch.rand((3, 4, 5), generator=torch.Generator().manual_seed(0))
    maps[2] = 0
    for small, large in zip(grams(maps, 8), grams(1e4 * maps, 8), strict=True):
        torch.testing.assert_close(large, 1e8 * small, rtol=1e-6, atol=0)
        assert small[2].tolist() == [0] * 10


def test_the_deviation_is_measured_in_the_bound_that_is_passed() -> None:
    g, low, high = torch.tensor([1.0, 5.0, 12.0]), torch.tensor(4.0), torch.tensor(10.0)
    assert outside(g, low, high, 1e-9).tolist() == pytest.approx([0.75, 0, 0.2])
    assert outside(g, -g, torch.tensor(0.0), 2.0).tolist() == pytest.approx([0.5, 2.5, 6.0]), "a floor"


def reading(rows: list[tuple[float, float]], labels: list[int]) -> tuple[Model, Data]:
    """Two pixels are the features that enter the head, which reads the larger one."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    net.load_state_dict({"1.weight": torch.eye(2)})
    return Model(net, (1, 1, 2), 2).copy("cpu"), Data(pixels(*rows), torch.tensor(labels))


def test_a_band_is_the_median_and_ten_deviations_of_the_predicted_class() -> None:
    """Class 0 has f_0^2 = 0.25, 0.36, 0.49; f_0 f_1 = 0.05, 0.06, 0.07; f_1^2 = 0.01."""
    rows = [(0.5, 0.1), (0.6, 0.1), (0.7, 0.1), (0.1, 0.9)]
    detector = Beatrix(least=2, orders=1)
    model, data = reading(rows, [1, 1, 1, 1])
    learned = detector.learn(model, data)
    assert learned["median"][0, 0].tolist() == pytest.approx([0.36, 0.06, 0.01])
    assert learned["mad"][0, 0].tolist() == pytest.approx([0.11, 0.01, 0], abs=1e-6)
    # one clean sample is not enough for class 1: all four, of whose middle ones torch takes the smaller
    assert learned["median"][1, 0].tolist() == pytest.approx([0.25, 0.06, 0.01])
    score = detector.scorer(model, learned)
    # 1 is inside 0.36 +- 1.1; 0.4 and 0.16 are above 0.06 + 0.1 and above 0.01
    found = score(pixels((1.0, 0.4), (0.6, 0.1)))
    assert found.tolist() == pytest.approx([((0.4 - 0.16) / 0.16 + (0.16 - 0.01) / 0.01) / 3, 0], rel=1e-4)


def test_a_flattened_feature_map_gets_its_places_back(twins: Twins) -> None:
    """32 maps of 4 x 4 enter the first fully connected layer; 64 neurons enter the head."""
    model, data = twins.infected.copy("cpu"), twins.data
    for layer, channels in ((-1, 64), (-2, 32), (-3, 16)):
        learned = Beatrix(layer=layer).learn(model, data[:100])
        assert learned["median"].shape == (10, 8, channels * (channels + 1) // 2)
    few = Beatrix(channels=5, orders=3).learn(model, data[:100])
    assert few["mad"].shape == (10, 3, 15)


def test_beatrix_says_what_it_needs(twins: Twins) -> None:
    assert "has 4 affine operations" in Beatrix(layer=-5).applies(twins.infected, twins.data)
    assert "at least 10 clean samples" in Beatrix().applies(twins.infected, twins.data[:12])
    assert Beatrix().applies(twins.infected, twins.data) == ""


def test_a_network_that_answers_with_probabilities(twins: Twins) -> None:
    """Features and class are still read in one pass."""
    model = Model(nn.Sequential(twins.infected.net, nn.Softmax(1)), TASK.shape, TASK.classes).copy("cpu")
    plain, soft = (Beatrix().fit(m.copy("cpu"), twins.data[:LEARNED]) for m in (twins.infected, model))
    torch.testing.assert_close(plain(twins.data.x[-8:]), soft(twins.data.x[-8:]))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"omega": 1.0}, "does not amplify"), ({"xi": 1.0}, "not an error rate"),
        ({"n": 0}, "at least 1"), ({"what": "affine"}, "neither 'batch' nor 'auto'"),
    ],
)  # fmt: skip
def test_wrong_settings_of_ibd_psc(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        IbdPsc(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layer": 0}, "counted from the end"), ({"orders": 0}, "lowest order"),
        ({"band": 0.0}, "above zero"), ({"least": 31}, "between 2 and per_class"),
        ({"channels": 0}, "at least 1"),
    ],
)  # fmt: skip
def test_wrong_settings_of_beatrix(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Beatrix(**settings)  # type: ignore[arg-type]
