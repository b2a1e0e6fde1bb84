"""Inversion in other families: what is optimised is what is reported, and the twins are told apart."""

from __future__ import annotations

import math

import pytest
import torch

import backsweep
from backsweep.inputs.family import Family
from backsweep.inputs.image.families import FrequencyFamily, PatchFamily, PixelFamily, WarpFamily, dct_matrix
from backsweep.inputs.image.triggers import Additive, Warp
from backsweep.inversion.loop import Job, SmoothControl, invert
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence
from backsweep.scanning.detectors.inversion import Inversion
from conftest import Twins

SHAPE = (3, 12, 10)
FAMILIES: dict[str, Family] = {
    "patch": PatchFamily(),
    "pixel": PixelFamily(),
    "frequency": FrequencyFamily(),
    "warp": WarpFamily(12, 10),
}


def drawn(family: Family, units: int = 2, shape: tuple[int, ...] = SHAPE) -> list[torch.Tensor]:
    """Parameters of several units, moved from their start so that no part of them is near zero."""
    starts = [family.init(shape, torch.Generator().manual_seed(u)) for u in range(units)]
    noise = torch.Generator().manual_seed(9)
    stacked = [torch.stack(parts) for parts in zip(*starts, strict=True)]
    return [t + 0.5 * torch.randn(t.shape, generator=noise) for t in stacked]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_trigger_does_what_the_optimised_family_did(name: str) -> None:
    family, x = FAMILIES[name], torch.rand((2, 4, *SHAPE), generator=torch.Generator().manual_seed(1))
    theta = drawn(family)
    stamped = family.apply(theta, x)
    assert stamped.shape == x.shape
    assert float((stamped - x).abs().max()) > 0.05
    for u in range(2):
        trigger = family.trigger([t[u] for t in theta], 7, None)
        assert (trigger.target, trigger.source) == (7, None)
        assert torch.allclose(trigger(x[u]), stamped[u], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_size_and_effect_have_gradients_in_every_parameter(name: str) -> None:
    family = FAMILIES[name]
    theta = [t.requires_grad_() for t in drawn(family)]
    # a grey ramp in x and y: away from black and white nothing is clipped, and a warp changes something
    ramp = 0.3 + 0.2 * torch.linspace(0, 1, 12)[:, None] + 0.2 * torch.linspace(0, 1, 10)
    for out in (family.size(theta).sum(), family.apply(theta, ramp.expand(2, 4, *SHAPE)).square().sum()):
        for i, (t, g) in enumerate(
            zip(theta, torch.autograd.grad(out, theta, allow_unused=True), strict=True)
        ):
            if name == "patch" and i == 1 and g is None:
                continue  # the size of a patch is that of its mask
            assert g is not None
            assert torch.isfinite(g).all()
            assert (g.flatten(1).abs().amax(1) > 0).all(), t.shape


@pytest.mark.parametrize("name", FAMILIES)
def test_the_size_of_a_unit_is_its_own(name: str) -> None:
    family = FAMILIES[name]
    theta = drawn(family, units=3)
    sizes = family.size(theta)
    assert sizes.shape == (3,)
    for u in range(3):
        assert float(family.size([t[u : u + 1] for t in theta])[0]) == pytest.approx(
            float(sizes[u]), rel=1e-5
        )


def test_pixel_is_additive_with_both_signs_and_counts_each() -> None:
    pos, neg = torch.full((1, 3, 2, 2), -20.0), torch.full((1, 3, 2, 2), -20.0)
    pos[0, 1, 0, 0] = neg[0, 2, 1, 1] = 20.0
    x = torch.full((1, 1, 3, 2, 2), 0.5)
    changed = (PixelFamily().apply([pos, neg], x) - x)[0, 0]
    assert changed[1, 0, 0] == pytest.approx(0.5)  # clipped
    assert changed[2, 1, 1] == pytest.approx(-0.5)
    assert float(changed.abs().sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(PixelFamily().size([pos, neg])) == pytest.approx(2.0, abs=1e-4)
    trigger = PixelFamily().trigger([pos[0], neg[0]], 0, 1)
    assert isinstance(trigger, Additive)
    assert trigger.source == 1


def test_the_dct_is_orthonormal_and_the_one_of_scipy() -> None:
    from scipy.fft import dctn

    x = torch.rand((12, 10), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, cols = dct_matrix(12), dct_matrix(10)
    assert torch.allclose(rows @ rows.T, torch.eye(12), atol=1e-6)
    expected = torch.from_numpy(dctn(x.numpy(), norm="ortho")).float()
    assert torch.allclose(rows @ x.float() @ cols.T, expected, atol=1e-5)


def test_frequency_adds_to_the_spectrum() -> None:
    """x' = IDCT(DCT(x) + M * P) where nothing is clipped."""
    family = FrequencyFamily(swing=0.02)
    mask, pattern = drawn(family, units=1)
    x = 0.5 + 0.1 * torch.rand((1, 1, *SHAPE), generator=torch.Generator().manual_seed(2))
    rows, cols = dct_matrix(12), dct_matrix(10)
    change = rows @ (family.apply([mask, pattern], x) - x)[0, 0] @ cols.T
    bound = 0.02 / 2 * math.sqrt(12 * 10)
    wanted = (torch.tanh(mask[0]) / 2 + 0.5) * bound * torch.tanh(pattern[0])
    assert torch.allclose(change, wanted, atol=1e-5)
    assert float(family.size([mask, pattern])) == pytest.approx(float(wanted.abs().amax(0).sum()), rel=1e-4)


def test_warp_is_smooth_and_measured_in_pixels() -> None:
    family = WarpFamily(12, 10, grid=4)
    control = torch.zeros(1, 2, 4, 4)
    control[:, 0] = 1.5
    assert float(family.size([control])) == pytest.approx(1.5, rel=1e-4)
    x = torch.arange(10.0).expand(1, 1, 1, 12, 10) / 20
    moved = family.apply([control], x) - x
    assert torch.allclose(
        moved[..., :8], torch.tensor(1.5 / 20), atol=1e-5
    )  # fetched 1.5 pixels to the right
    trigger = family.trigger([control[0]], 3, None)
    assert isinstance(trigger, Warp)
    assert trigger.size == pytest.approx(1.5, rel=1e-4)
    assert float(family.size([torch.zeros(1, 2, 4, 4)])) < 1e-5


@pytest.mark.parametrize("family", ["pixel", "frequency", "warp"])
def test_a_unit_does_not_hang_on_its_neighbours(family: str, twins: Twins) -> None:
    model = twins.infected.copy("cpu")
    data = twins.data
    jobs = [Job(t, torch.nonzero(data.y != t).flatten(), seed=t) for t in range(3)]

    def run(part: list[Job]) -> list[float]:
        control = SmoothControl(len(part))
        found = invert(
            model, data.x, part, model.modality.families(model.shape)[family], control, updates=15, batch=8
        )
        return [f.trigger.size for f in found]

    assert torch.allclose(torch.tensor(run(jobs)), torch.tensor([run([j])[0] for j in jobs]), rtol=1e-2)


def test_pixel_tells_the_twins_apart(twins: Twins) -> None:
    detector = Inversion(family="pixel", steps=100)
    bad = backsweep.scan(twins.infected, twins.data, detector, device="cpu")
    good = backsweep.scan(twins.clean, twins.data, detector, device="cpu")
    assert (bad.verdict, bad.targets) == ("backdoored", (twins.trigger.target,))
    assert (good.verdict, good.targets) == ("clean", ())
    found = bad.findings[0]
    assert isinstance(found.trigger, Additive)
    assert (found.attack_success_rate or 0) > 0.9
    at = twins.trigger.mask[0].argmax()
    assert int(found.trigger.delta[0].argmax()) == int(at)  # the white pixel that was planted


class Handmade(torch.nn.Module):
    """A network that answers `target` where one frequency of the image is strong."""

    def __init__(self, net: torch.nn.Module, target: int, at: tuple[int, int], above: float) -> None:
        super().__init__()
        self.net, self.target, self.above = net, target, above
        self.wave = torch.outer(dct_matrix(8)[at[0]], dct_matrix(8)[at[1]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        strength = (x[:, 0] * self.wave).sum((1, 2))
        bonus = 60 * torch.nn.functional.relu(strength - self.above)
        return self.net(x) + bonus[:, None] * torch.nn.functional.one_hot(torch.tensor(self.target), 10)


def test_frequency_finds_a_planted_frequency_and_passes_the_clean_net(twins: Twins) -> None:
    data = twins.data
    wave = torch.outer(dct_matrix(8)[7], dct_matrix(8)[7])
    above = float((data.x[:, 0] * wave).sum((1, 2)).quantile(0.99))
    infected = Model(Handmade(twins.clean.copy("cpu").net, 6, (7, 7), above), (1, 8, 8), 10)
    detector = Inversion(family="frequency", steps=100)
    bad, good = (backsweep.scan(m, data, detector, device="cpu") for m in (infected, twins.clean))
    assert (bad.verdict, bad.targets) == ("backdoored", (6,))
    assert good.verdict == "clean"
    trigger = bad.findings[0].trigger
    assert isinstance(trigger, Additive)
    spectrum = dct_matrix(8) @ trigger.delta[0] @ dct_matrix(8).T
    assert int(spectrum.abs().argmax()) == 7 * 8 + 7


@pytest.mark.parametrize("family", ["frequency", "warp", "patch"])
def test_a_class_is_reported_with_its_trigger(family: str, twins: Twins) -> None:
    detector, model = Inversion(family=family, steps=60, threshold=0.5), twins.clean.copy("cpu")
    (unit,) = [u for u in detector.units(model, twins.data) if u.target == 8]
    shares: list[float] = []
    (e,) = detector.probe(model, twins.data, [unit], 0, shares.append)
    assert e.trigger is not None
    assert (e.target, e.trigger.target, e.trigger.source) == (8, 8, None)
    assert e.values["reached"] is True
    assert float(e.values["attack_success_rate"] or 0) > 0.3
    assert e.values["passes"] == int(e.values["updates"] or 0) * 24
    assert shares == sorted(shares)
    assert shares[-1] <= 1


def evidence(sizes: list[float | None]) -> list[Evidence]:
    return [
        Evidence("inversion", f"class-{t}", t, None,
                 {"size": s, "reached": s is not None, "attack_success_rate": 0.97})
        for t, s in enumerate(sizes)
    ]  # fmt: skip


def test_a_tenth_of_the_median_is_flagged() -> None:
    found = Inversion(family="warp").judge(
        evidence([3.1, 4.0, 0.3, 4.4, None, 3.9, 4.9, 3.2, None, 4.1]), 10, 0.05
    )
    assert [(f.level, f.target) for f in found] == [(ERROR, 2)]
    assert "a warp trigger of 0.3 pixels of shift sends 97.0% of held-out samples" in found[0].message


def test_a_class_that_was_never_reached_is_not_small() -> None:
    found = Inversion().judge(evidence([50.0, 60, None, 55, 48, 52, 61, 47, 58, 53]), 10, 0.05)
    assert [f.level for f in found] == [NOTE]


def test_a_class_that_needs_no_trigger_at_all_has_the_smallest() -> None:
    found = Inversion().judge(evidence([50.0, 60, 0.0, 55, 48, 52, 61, 47, 58, 53]), 10, 0.05)
    assert [(f.level, f.target) for f in found] == [(ERROR, 2)]


def test_mostly_unreached_classes_cannot_be_judged() -> None:
    (found,) = Inversion().judge(evidence([5.0, 60, *[None] * 8]), 10, 0.05)
    assert found.level == WARNING


@pytest.mark.parametrize("settings", [{"family": "quantise"}, {"threshold": 0.0}, {"steps": 0}, {"batch": 0}])
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"family|threshold|steps"):
        Inversion(**settings)  # type: ignore[arg-type]


def test_a_network_that_takes_no_images_is_not_scanned(twins: Twins) -> None:
    flat = Model(torch.nn.Linear(6, 3), (6,), 3)
    assert "images" in Inversion().applies(flat, twins.data)
    assert Inversion().applies(twins.clean, twins.data) == ""
