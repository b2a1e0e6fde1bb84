"""Two guards: the frequency detector, which never asks the model, and Cognitive Distillation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.fft import dctn
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from backsweep.core.discovery import find
from backsweep.core.errors import BadInput
from backsweep.guarding.detector import SampleDetector, Scorer
from backsweep.guarding.detectors import frequency
from backsweep.guarding.detectors.cognitive_distillation import CognitiveDistillation, total_variation
from backsweep.guarding.detectors.frequency import Frequency, Spectrum, blocks, dct_matrix, inside, triggered
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import acted_on
from backsweep.models.model import Model
from conftest import Twins


def auroc(clean: Tensor, bad: Tensor) -> float:
    return float(roc_auc_score([0] * len(clean) + [1] * len(bad), torch.cat([clean, bad]).numpy()))


def stamped(twins: Twins, count: int) -> tuple[Tensor, Tensor]:
    """Clean inputs and other ones with the trigger."""
    rows = torch.nonzero(acted_on(twins.trigger, twins.data.y, 10)).flatten()[-count:]
    return twins.data.x[:count], twins.trigger(twins.data.x[rows])


def grey(side: int, count: int = 100) -> Tensor:
    return torch.full((count, 1, side, side), 0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------ frequency


@pytest.fixture(scope="module")
def filtered(twins: Twins) -> Scorer:
    return Frequency().fit(twins.infected.copy("cpu"), twins.data)


def test_both_are_detectors_of_samples(twins: Twins) -> None:
    assert find(SampleDetector, "frequency") is Frequency
    assert find(SampleDetector, "cognitive-distillation") is CognitiveDistillation
    assert Frequency().passes(twins.clean) == 0
    assert CognitiveDistillation().passes(twins.clean) == 90, "forward and backward are three"
    assert CognitiveDistillation("paper").passes(twins.clean) == 300
    assert CognitiveDistillation(steps=7).passes(twins.clean) == 21


@pytest.mark.parametrize("n", [1, 2, 8, 28, 33])
def test_the_matrix_is_the_orthonormal_cosine_transform(n: int) -> None:
    d = dct_matrix(n)
    assert torch.allclose(d @ d.T, torch.eye(n), atol=1e-5)
    x = torch.rand((2, 3, 8, n), generator=generator())
    known = dctn((255 * x).round().numpy(), axes=(2, 3), norm="ortho")
    assert torch.allclose(Spectrum(8, n)(x), torch.as_tensor(known), atol=2e-2)
    flat = Spectrum(8, n)(torch.full((1, 1, 8, n), 0.2))
    assert float(flat[0, 0, 0, 0]) == pytest.approx(51 * math.sqrt(8 * n), rel=1e-5)
    assert float(flat.flatten()[1:].abs().max()) < 1e-2


def test_what_lies_between_two_grey_levels_is_not_seen() -> None:
    """Made-up triggers are off the 8-bit grid, clean images on it: that would be an easy tell."""
    x = torch.tensor([100.0, 100.4, 99.6]).reshape(3, 1, 1, 1).expand(-1, 1, 4, 4) / 255
    assert len(Spectrum(4, 4)(x).unique(dim=0)) == 1


def test_the_network_of_the_paper_has_its_size(twins: Twins) -> None:
    colour = Model(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), (3, 32, 32))
    net = Frequency("paper").net(colour)
    state = [t for k, t in net.state_dict().items() if not k.endswith("num_batches_tracked")]
    assert sum(t.numel() for t in state) == 292_898
    assert [m.p for m in net if isinstance(m, nn.Dropout)] == [0.2, 0.3, 0.4]
    assert Frequency("paper").net(twins.clean)(twins.data.x[:3]).shape == (3, 2), "8 x 8: two poolings"


def test_five_triggers_are_made_up_and_each_as_often() -> None:
    x, other = grey(28, 2000), torch.full((1, 1, 28, 28), 0.5)
    out = triggered(x, other, generator())
    assert float(x.min()) == float(x.max()) == 0.5, "the images themselves stay"
    assert bool((out >= 0).all() and (out <= 1).all())
    changed = (out != 0.5).flatten(1).sum(1)
    added = (out - 0.65).abs().flatten(1).amax(1) < 1e-6
    noisy = (changed > 700) & ~added
    white = ((out == 0.5) | (out == 1)).flatten(1).all(1) & (changed <= 49)
    shadow = ((out == 0.5) | (out == 0.25)).flatten(1).all(1) & ~white
    block = (changed <= 49) & ~white & ~shadow
    shares = torch.stack([added, noisy, white, shadow, block]).double().mean(1)
    assert float(shares.sum()) == pytest.approx(1, abs=0.01)
    assert float((shares - 0.2).abs().max()) < 0.04
    rest = out[noisy] - 0.5
    assert float(rest.mean()) * 255 == pytest.approx(25, abs=0.3)
    spread = rest.flatten(1).std(1) * 255
    assert math.sqrt(10) * 0.9 < float(spread.min()) < 4 < 7.5 < float(spread.max()) < math.sqrt(70) * 1.1
    assert bool((out[shadow][:, :, :14] == 0.5).all()), "shadows lie in the lower half"
    assert bool((out[shadow][:, :, 14:] == 0.25).any())


@pytest.mark.parametrize(
    ("side", "sizes", "margins"),
    [(28, (2, 7), 5), (64, (2, 7), 5), (8, (2, 2), 1), (4, (1, 1), 0)],
)
def test_blocks_lie_in_the_four_corners(side: int, sizes: tuple[int, int], margins: int) -> None:
    mask = blocks(grey(side, 1500), generator())[:, 0]
    tall, wide = mask.any(2).sum(1), mask.any(1).sum(1)
    for size in (tall, wide):
        assert (int(size.min()), int(size.max())) == sizes
    assert torch.equal(mask.flatten(1).sum(1), tall * wide)
    rows, columns = mask.any(2).int(), mask.any(1).int()
    top, left = rows.argmax(1), columns.argmax(1)
    down, right = rows.flip(1).argmax(1), columns.flip(1).argmax(1)
    assert torch.equal(torch.minimum(top, down), torch.minimum(left, right)), "one margin for both edges"
    assert int(torch.minimum(top, down).max()) == margins
    corner = 2 * (top > down).int() + (left > right).int()
    assert int(corner.bincount(minlength=4).min()) > 300


def test_a_polygon_is_filled_by_the_even_odd_rule() -> None:
    square = torch.tensor([[1.0, 1.0], [1.0, 3.0], [4.0, 3.0], [4.0, 1.0]])
    wanted = torch.zeros(5, 4, dtype=torch.bool)
    wanted[1:4, 1:3] = True
    assert torch.equal(inside(square, 5, 4), wanted)
    both = inside(torch.stack([square, square + 50]), 5, 4)
    assert both.flatten(1).any(1).tolist() == [True, False]
    star = torch.tensor([[0.0, 5.0], [10.0, 8.0], [4.0, 0.0], [4.0, 10.0], [10.0, 2.0]])
    assert not bool(inside(star, 10, 10)[5, 4]), "wound round twice"
    assert bool(inside(star, 10, 10)[8, 2])


def test_a_pixel_is_seen_in_the_spectrum_of_digits(twins: Twins, filtered: Scorer) -> None:
    """One pixel in a corner where some digits have ink as well; the other images do not stand out without it.

    The network is never asked: with the clean twin's the guard is the same and sees the same pixel.
    """
    clean, bad = stamped(twins, 200)
    assert auroc(filtered(clean), filtered(bad)) > 0.7
    assert 0.4 < auroc(filtered(clean), filtered(twins.data.x[-200:])) < 0.6
    other = Frequency().restored(twins.clean.copy("cpu"), filtered.learned, filtered.clean)
    assert torch.equal(other(bad), filtered(bad))


def test_learning_again_gives_the_same_and_leaves_no_trace(
    twins: Twins, filtered: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frequency, "UPDATES", 12)
    model = twins.infected.copy("cpu")
    before, state = model.digest, torch.random.get_rng_state()
    few = twins.data[torch.arange(60)]
    first, second = (Frequency().learn(model, few) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(state, torch.random.get_rng_state())
    twin = twins.infected.copy("cpu")
    twin._digest = ""
    assert twin.digest == before
    assert all(t.device.type == "cpu" and t.is_contiguous() for t in first.values())
    assert set(first) == set(filtered.learned)
    with torch.no_grad():
        assert set(Frequency().learn(model, few)) == set(first), "gradients are switched on"


def test_the_training_of_the_paper(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adadelta is slow: two epochs in two rounds only show that it learns, and draws anew per round."""
    drawn = []

    def spied(x: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        drawn.append(triggered(x, others, generator))
        return drawn[-1]

    monkeypatch.setattr(frequency, "triggered", spied)
    for name, value in {"ROUNDS": 2, "EPOCHS": 2, "BATCH": 16, "LR": 1.0}.items():
        monkeypatch.setattr(frequency, name, value)
    model, part = twins.clean.copy("cpu"), twins.data[torch.arange(120)]
    scorer = Frequency("paper").restored(model, Frequency("paper").learn(model, part), part)
    assert len(drawn) == 2
    assert not torch.equal(*drawn)
    assert auroc(scorer(part.x), scorer(drawn[-1])) > 0.6


def test_where_the_frequency_detector_cannot_be_used(twins: Twins) -> None:
    model = twins.clean.copy("cpu")
    assert Frequency().applies(model, twins.data) == ""
    assert "20 clean images; it has 16" in Frequency().applies(model, twins.data[torch.arange(30)])
    line = Model(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), (1, 1, 6))
    text = Data(torch.rand(60, 1, 1, 6), torch.arange(60) % 2)
    with pytest.raises(BadInput, match="at least 4 x 4 pixels"):
        Frequency().fit(line, text)
    assert "images" in CognitiveDistillation().applies(line, text)


# ------------------------------------------------------------------ cognitive distillation


class Linear(nn.Module):
    """Class 1 has `weight` times the pixels, class 0 has 0."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        one = (x * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(one), one], 1)


def linear(values: list[float], bad: float = 0.0) -> Model:
    return Model(Linear(torch.tensor(values).reshape(1, 2, 2)), (1, 2, 2)).copy()


def test_total_variation_by_hand() -> None:
    m = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]).reshape(1, 1, 2, 3)
    assert float(total_variation(m)) == pytest.approx((0.25 + 1 + 0.25) / 6)


def test_the_first_steps_of_the_paper_by_hand() -> None:
    """Adam's first step has length lr. Only the pixel with a weight is worth its size; it is kept."""
    model, x = linear([8.0, 0.0, 0.0, 0.0]), torch.ones(1, 1, 2, 2)
    method = CognitiveDistillation("paper", steps=1, beta=0.0)
    kept, gone = ((torch.tensor(1.0 + s).tanh() + 1) / 2 for s in (0.1, -0.1))
    mask = method.mask(model, x).flatten()
    assert torch.allclose(mask, torch.stack([kept, gone, gone, gone]), atol=1e-6)
    assert float(method.scorer(model, {})(x)) == pytest.approx(-float(mask.sum()))
    long = CognitiveDistillation("paper", steps=300, beta=0.0).mask(model, x).flatten()
    assert float(long[0]) > 0.9
    assert float(long[1:].max()) < 0.05


def test_alpha_is_what_a_pixel_has_to_be_worth() -> None:
    """One of two logits moves by 0.1 (1 - delta) (1 - m), on average 0.025 for a pixel: alpha decides."""
    model, x = linear([0.1, 0.0, 0.0, 0.0]), torch.ones(1, 1, 2, 2)
    cheap, dear = (CognitiveDistillation("paper", 300, a, 0.0).mask(model, x).amax() for a in (1e-4, 0.2))
    assert float(cheap) > 0.9
    assert float(dear) < 0.1


def test_beta_makes_the_mask_smooth() -> None:
    model, x = linear([8.0, 0.0, 0.0, 0.0]), torch.ones(1, 1, 2, 2)
    rough, smooth = (CognitiveDistillation("paper", 100, 0.01, b).mask(model, x) for b in (0.0, 100.0))
    assert float(total_variation(smooth)) < 0.1 * float(total_variation(rough))


def test_one_mask_covers_all_channels() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model = Model(net, (3, 2, 2)).copy()
    assert CognitiveDistillation(steps=2).mask(model, torch.rand(5, 3, 2, 2)).shape == (5, 1, 2, 2)


def test_presets_differ_in_what_they_keep() -> None:
    """A higher logit of the class that is served changes the logits and not the class."""
    wanted, logits = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 12.0]])
    assert float(CognitiveDistillation("paper").change(logits, wanted)) == 5
    assert float(CognitiveDistillation().change(logits, wanted)) < 1e-4
    assert float(CognitiveDistillation().change(torch.zeros(1, 2), wanted)) == pytest.approx(math.log(2))


def test_strong_logits_need_a_larger_mask_in_the_paper_and_not_here() -> None:
    """Why the standard preset keeps the class: a trigger that one pixel carries, with logits far apart.

    `bright` has ten times the logits of `dim` and both hang on one pixel, with another that barely counts.
    """
    x = torch.ones(1, 1, 2, 2)
    dim, bright = (linear([8.0 * k, 0.2 * k, 0.2 * k, 0.2 * k]) for k in (1, 10))
    sizes = [
        [-float(CognitiveDistillation(p, 100, 0.08, 0.0).scorer(m, {})(x)) for m in (dim, bright)]
        for p in ("paper", "standard")
    ]
    assert sizes[0][1] > sizes[0][0] + 1
    assert sizes[1][1] <= sizes[1][0] + 0.1


def test_the_infected_twin_needs_less_of_triggered_inputs(twins: Twins) -> None:
    clean, bad = stamped(twins, 100)
    scores = []
    for model in (twins.infected, twins.clean):
        scorer = CognitiveDistillation().fit(model.copy("cpu"), twins.data[torch.arange(40)])
        scores.append(auroc(scorer(clean), scorer(bad)))
        assert len(scorer.clean) == 40, "nothing is learned from them"
        assert scorer.learned == {}
    assert scores[0] > 0.8
    assert scores[1] < 0.65


def test_a_mask_hangs_on_its_input_alone(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = twins.infected.copy("cpu"), twins.data.x[:12]
    for method in (CognitiveDistillation(), CognitiveDistillation("paper", 30)):
        score = method.scorer(model, {})
        together = score(x)
        torch.manual_seed(1)
        # with betas of 0.1 Adam steps by the gradient's sign, even where that is rounding
        alone = torch.cat([score(one) for one in x.split(1)])
        assert torch.allclose(alone, together, atol=0.2, rtol=0.02)
        assert torch.equal(score(x), together), "the colours are drawn from a seed of their own"
        monkeypatch.setattr("backsweep.guarding.detectors.cognitive_distillation.VALUES", 64 * 5)
        assert torch.allclose(score(x), together, atol=0.2, rtol=0.02), "in parts that fit in memory"
        assert bool((together < 0).all() and (together > -64).all())


def test_the_network_stays_as_it_is(twins: Twins) -> None:
    """Neither weights nor gradients, even if the network is not frozen; under no_grad as a guard runs."""
    model = twins.infected
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    for p in model.net.parameters():
        p.grad = None
    with torch.no_grad():
        CognitiveDistillation(steps=3).scorer(model, {})(twins.data.x[:3])
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())
    assert all(p.grad is None for p in model.net.parameters())


def test_a_network_without_gradients_is_refused(twins: Twins) -> None:
    class Steps(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    model = Model(Steps(torch.ones(1, 8, 8)), (1, 8, 8)).copy()
    assert "cannot be differentiated" in CognitiveDistillation().applies(model, twins.data)
    assert CognitiveDistillation().applies(twins.clean, twins.data) == ""


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (Frequency, {"preset": "fast"}),
        (CognitiveDistillation, {"preset": "fast"}),
        (CognitiveDistillation, {"steps": 0}),
        (CognitiveDistillation, {"alpha": -0.1}),
        (CognitiveDistillation, {"beta": math.nan}),
    ],
)
def test_bad_settings_are_refused(cls: type, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        cls(**settings)
