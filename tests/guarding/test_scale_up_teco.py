"""SCALE-UP, TeCo and the corruptions that TeCo needs.

On the 8 x 8 digits both are weak (a trigger of one pixel; digits that survive multiplication), so the
twins are told apart by a margin only; what the methods can do is tested on networks made by hand.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from backsweep.core.discovery import find
from backsweep.guarding.detector import SampleDetector
from backsweep.guarding.detectors import teco
from backsweep.guarding.detectors.scale_up import LEAST_SPREAD, ScaleUp
from backsweep.guarding.detectors.teco import TeCo, flips
from backsweep.inputs.image.corruptions import CORRUPTIONS, corrupt
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import acted_on
from backsweep.models.model import Model
from conftest import Twins

FACTORS = (3, 5, 7, 9, 11)


def auroc(clean: Tensor, triggered: Tensor) -> float:
    truth = [0] * len(clean) + [1] * len(triggered)
    return float(roc_auc_score(truth, torch.cat([clean, triggered]).numpy()))


def grey(*values: float) -> Tensor:
    """Images of one pixel."""
    return torch.tensor(values).reshape(-1, 1, 1, 1)


class Pixel(nn.Module):
    """Class 1 from a half on; class 2 far above what a pixel can be."""

    def __init__(self, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.shift, self.scale, self.seen = shift, scale, 0
        self.weight = nn.Parameter(torch.tensor([0.0, 10.0, 1000.0]))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        v = x.flatten(1)[:, :1] * self.scale + self.shift
        return self.weight * (v - torch.tensor([0.0, 0.5, 1.5]))


class Corner(nn.Module):
    """Class 0 or 1 by `plain`; class 2 where the last pixel is bright, if there is a backdoor."""

    def __init__(self, plain: Tensor, bias: float, backdoor: float) -> None:
        super().__init__()
        self.plain, self.bias = nn.Parameter(plain), bias
        self.backdoor = nn.Parameter(torch.tensor(backdoor))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        score = z @ self.plain + self.bias
        return torch.stack([-score, score, self.backdoor * (z[:, -1] - 0.7) - 10], 1)


# ------------------------------------------------------------------ SCALE-UP


def test_spc_counts_the_factors_at_which_the_label_stays() -> None:
    model = Model(Pixel(), (1, 1, 1)).copy()
    # .09: 3 and 5 times stay below a half; .2: none; .04: all; .6 is clipped to 1 and keeps class 1
    labels, spc = ScaleUp(form="hard").consistency(model, grey(0.09, 0.2, 0.04, 0.6))
    assert labels.tolist() == [0, 0, 0, 1]
    assert spc.tolist() == pytest.approx([0.4, 0, 1, 1])
    assert ScaleUp(form="hard", largest=5).consistency(model, grey(0.09, 0.2))[1].tolist() == [1, 0]


def test_the_soft_form_is_the_mean_probability_of_the_label() -> None:
    model = Model(Pixel(), (1, 1, 1)).copy()
    _, spc = ScaleUp(form="soft").consistency(model, grey(0.09))
    values = [min(n * 0.09, 1) for n in FACTORS]
    by_hand = [1 / (1 + math.exp(10 * (v - 0.5)) + math.exp(1000 * (v - 1.5))) for v in values]
    assert float(spc) == pytest.approx(sum(by_hand) / 5, rel=1e-4)


def test_pixels_are_multiplied_before_the_normalisation_and_clipped() -> None:
    """A network that wants (x - mean) / std gets the multiplied pixel, not the multiplied network input."""
    model = Model(Pixel(shift=0.4, scale=0.2), (1, 1, 1), mean=[0.4], std=[0.2]).copy()
    _, spc = ScaleUp(form="hard").consistency(model, grey(0.09, 0.2, 0.04, 0.6))
    assert spc.tolist() == pytest.approx([0.4, 0, 1, 1])


def test_the_data_limited_form_compares_with_clean_samples_of_the_predicted_class() -> None:
    model = Model(Pixel(), (1, 1, 1)).copy()
    # six that are predicted 0 (SPC .4 and 1), two that are predicted 1: too few; the labels all say 1
    data = Data(grey(0.09, 0.09, 0.09, 0.04, 0.04, 0.04, 0.6, 0.6), [1] * 8)
    detector = ScaleUp(form="hard")
    learned = detector.learn(model, data)
    scores = detector.scorer(model, learned)(grey(0.04, 0.2, 0.6))
    pooled = torch.tensor([0.4] * 3 + [1.0] * 5)
    last = float((1 - pooled.mean()) / pooled.std(correction=0))
    assert scores.tolist() == pytest.approx([(1 - 0.7) / 0.3, -0.7 / 0.3, last], rel=1e-4)


def test_a_class_whose_clean_samples_all_agree_gives_finite_scores() -> None:
    model = Model(Pixel(), (1, 1, 1)).copy()
    data = Data(grey(*[0.04] * 10, *[0.6] * 10), [0, 1] * 10)
    detector = ScaleUp(form="hard")
    scores = detector.scorer(model, detector.learn(model, data))(grey(0.04, 0.2))
    assert scores.tolist() == pytest.approx([0, -1 / LEAST_SPREAD])


@pytest.mark.parametrize("mode", ["data_limited", "data_free"])
@pytest.mark.parametrize("form", ["hard", "soft"])
def test_scale_up_tells_a_backdoor_whose_label_stays(mode: str, form: str) -> None:
    x = 0.05 + 0.25 * torch.rand((200, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    triggered = x.clone()
    triggered[..., -1, -1] = 1
    detector, rates = ScaleUp(mode, form), []
    for backdoor in (100.0, 0.0):
        model = Model(Corner(torch.full((16,), 0.5), -2.4, backdoor), (1, 4, 4)).copy()
        scorer = detector.fit(model, Data(x[:100], [0, 1] * 50))
        assert bool((model.predict(triggered) == 2).all()) == (backdoor > 0)
        rates.append(auroc(scorer(x[100:]), scorer(triggered[100:])))
    assert rates[0] > 0.95
    assert rates[1] < 0.65


# ------------------------------------------------------------------ TeCo


def fake(x: Tensor, name: str, severity: int) -> Tensor:
    """Lights the pixel from the severity on that the name says."""
    return torch.ones_like(x) if severity >= int(name) else x.clone()


def test_teco_is_the_deviation_of_the_severities_at_which_labels_flip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Pixel()
    model = Model(net, (1, 1, 1)).copy()
    monkeypatch.setattr(teco, "corrupt", fake)
    monkeypatch.setitem(teco.PRESETS, "paper", ("2", "6", "1"))
    x = grey(0.1, 0.9)
    assert flips(model, x, ("2", "6", "1")).tolist() == [[2, 6, 1], [6, 6, 6]]
    scores = TeCo().scorer(model, {})(x)
    assert scores.tolist() == pytest.approx([math.sqrt(14 / 3), 0])  # mean 3: squares 1 + 9 + 4 over 3


def test_no_pass_is_spent_on_a_label_that_has_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(Pixel(), (1, 1, 1)).copy()
    net = model.net
    assert isinstance(net, Pixel)
    monkeypatch.setattr(teco, "corrupt", fake)
    net.seen = 0
    flips(model, grey(0.1, 0.2), ("1", "3"))
    assert net.seen == 2 + 2 * 1 + 2 * 3
    net.seen = 0
    flips(model, grey(0.1, 0.9), ("1", "3"))
    assert net.seen == 2 + (1 + 5) + (3 + 5)


def test_the_original_is_corrupted_each_time() -> None:
    """Public code corrupts in place, so severities and corruptions add up."""
    model = Model(Pixel(), (1, 1, 1)).copy()
    x = grey(0.05)
    # severities raise it by .1 .2 .3 .4 .5: alone only the last goes beyond a half, added up the third does
    assert flips(model, x, ["brightness", "brightness"]).tolist() == [[5, 5]]
    assert torch.equal(x, grey(0.05))


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_teco_tells_a_backdoor_that_some_corruptions_break(preset: str) -> None:
    """Classes are left or right, which all corruptions leave; the trigger is one pixel, which blurs break."""
    generator = torch.Generator().manual_seed(0)
    left = torch.zeros(8, 8)
    left[:, :4], left[:, 4:] = 1.0, -1.0
    right = torch.rand(60, generator=generator) < 0.5
    x = 0.05 + 0.2 * torch.rand((60, 1, 8, 8), generator=generator)
    x[right, :, :, 4:] += 0.5
    x[~right, :, :, :4] += 0.5
    triggered = x.clone()
    triggered[..., -2:, -2:] = 0.05
    triggered[..., -1, -1] = 1
    rates = []
    for backdoor in (200.0, 0.0):
        model = Model(Corner(left.flatten(), 0.0, backdoor), (1, 8, 8)).copy()
        assert bool((model.predict(triggered) == 2).all()) == (backdoor > 0)
        scorer = TeCo(preset).fit(model, Data(x, right.long()))
        rates.append(auroc(scorer.clean, scorer(triggered)))
    assert rates[0] > 0.9
    assert rates[1] < 0.65


# ------------------------------------------------------------------ both


def test_both_are_detectors_of_samples() -> None:
    assert find(SampleDetector, "scale-up") is ScaleUp
    assert find(SampleDetector, "teco") is TeCo


@pytest.mark.parametrize("detector", [ScaleUp(), TeCo()], ids=["scale_up", "teco"])
def test_the_infected_twin_is_told_from_the_clean_one(detector: SampleDetector, twins: Twins) -> None:
    rates = []
    for twin in (twins.infected, twins.clean):
        model = twin.copy()
        clean, test = twins.data.split(0)
        scorer = detector.fit(model, clean)
        triggered = twins.trigger(test.x[acted_on(twins.trigger, test.y, model.classes)])
        rates.append(auroc(scorer(test.x), scorer(triggered)))
    assert rates[0] > 0.53
    assert abs(rates[1] - 0.5) < 0.08
    assert rates[0] > rates[1] + 0.04


@pytest.mark.parametrize("detector", [ScaleUp(), ScaleUp("data_free"), TeCo(), TeCo("fast")], ids=repr)
def test_an_input_has_one_score_and_the_model_stays(detector: SampleDetector, twins: Twins) -> None:
    model = twins.infected.copy()
    before, state = twins.data.x.clone(), torch.get_rng_state()
    weights = {k: v.clone() for k, v in model.net.state_dict().items()}
    scorer = detector.fit(model, twins.data[:60])
    x = twins.data.x[60:70]
    together, alone = scorer(x), torch.cat([scorer(one[None]) for one in x])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.allclose(scorer(x.flip(0)).flip(0), together, atol=1e-4)
    assert scorer(x[:0]).shape == (0,)
    assert len(together.unique()) > 1
    assert torch.equal(twins.data.x, before)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the global generator"
    assert all(torch.equal(v, weights[k]) for k, v in model.net.state_dict().items())


def test_what_they_cost_and_where_they_do_not_work() -> None:
    model = Model(nn.Linear(6, 2), (6,)).copy()
    data = Data(torch.rand(4, 1, 2, 3), [0, 1, 0, 1])
    assert (ScaleUp().passes(model), ScaleUp(largest=5).passes(model)) == (5, 2)
    assert (TeCo().passes(model), TeCo("fast").passes(model)) == (75, 25)
    assert "corrupts images" in TeCo().applies(model, data)
    assert ScaleUp().applies(model, data) == ""


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (ScaleUp, {"mode": "free"}),
        (ScaleUp, {"form": "mild"}),
        (ScaleUp, {"largest": 1}),
        (ScaleUp, {"largest": 10}),
        (TeCo, {"preset": "quick"}),
    ],
)
def test_bad_settings_are_refused(cls: type, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        cls(**settings)


# ------------------------------------------------------------------ corruptions


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 33), (2, 5, 7), (3, 1, 1)], ids=str)
def test_a_corruption_takes_images_of_any_size(name: str, shape: tuple[int, ...]) -> None:
    x = torch.rand((4, *shape), generator=torch.Generator().manual_seed(1))
    before, state = x.clone(), torch.get_rng_state()
    for severity in (1, 5):
        z = corrupt(x, name, severity)
        assert z.shape == x.shape
        assert z.dtype == x.dtype
        assert float(z.min()) >= 0
        assert float(z.max()) <= 1
        assert torch.equal(corrupt(x, name, severity), z), "the draw is fixed"
        alone = torch.cat([corrupt(one[None], name, severity) for one in x])
        assert torch.allclose(alone, z, atol=1e-5), "and shared by all images"
    assert corrupt(x[:0], name, 1).shape == (0, *shape)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_higher_severity_is_further_from_the_original(name: str, channels: int) -> None:
    coarse = torch.rand((4, channels, 11, 11), generator=torch.Generator().manual_seed(2))
    x = 0.1 + 0.5 * nn.functional.interpolate(coarse, (28, 28), mode="bilinear")
    away = [float((corrupt(x, name, s) - x).abs().mean()) for s in range(1, 6)]
    assert away == sorted(away)
    assert away[0] > 0
    assert away[4] > 1.3 * away[0]


def test_counts_of_shot_noise_are_poisson() -> None:
    """The mean is the image, the variance the image over the rate (12 at severity 3)."""
    z = corrupt(torch.full((1, 3, 64, 64), 0.3), "shot_noise", 3)
    assert float(z.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(z.var()) == pytest.approx(0.3 / 12, rel=0.1)
    assert torch.equal((z * 12).round() / 12, z)


def test_brightness_contrast_pixelate_and_impulse_noise_by_hand() -> None:
    x = torch.tensor([0.2, 0.4, 0.0]).reshape(1, 3, 1, 1)
    assert corrupt(x, "brightness", 2).flatten().tolist() == pytest.approx([0.3, 0.6, 0.0]), "hue stays"
    assert corrupt(0 * x, "brightness", 2).flatten().tolist() == pytest.approx([0.2] * 3), "black gets grey"
    two = torch.tensor([0.2, 0.6]).reshape(1, 1, 1, 2)
    assert corrupt(two, "contrast", 1).flatten().tolist() == pytest.approx([0.32, 0.48])
    checks = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).tile(4, 4)[None, None]
    assert torch.allclose(corrupt(checks, "pixelate", 5), torch.full_like(checks, 0.5))
    z = corrupt(torch.full((1, 3, 64, 64), 0.5), "impulse_noise", 5)
    assert float((z == 0).float().mean()) == pytest.approx(0.135, abs=0.02)
    assert float((z == 1).float().mean()) == pytest.approx(0.135, abs=0.02)


@pytest.mark.parametrize(("name", "severity"), [("gaussian", 1), ("snow", 0), ("snow", 6)])
def test_unknown_corruptions_are_refused(name: str, severity: int) -> None:
    with pytest.raises(ValueError, match="corruption 'gaussian'" if name == "gaussian" else "severity"):
        corrupt(torch.zeros(1, 1, 2, 2), name, severity)


@pytest.mark.parametrize("page", ["scale-up", "teco"])
def test_the_pages_have_a_place_for_our_table(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods" / f"{page}.md").read_text(encoding="utf-8")
    assert "## Measured\n" in text
