"""UNICORN: its equations, and what it tells about a planted shortcut and its clean twin."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsweep
from backsweep.core.errors import BadInput
from backsweep.inputs.image.learned_space import Transformed, blend, box, inside, ssim, unet, unet_weights
from backsweep.inputs.trigger import Trigger
from backsweep.inversion.learned_space import Search
from backsweep.models.architectures import gap_cnn
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Report
from backsweep.scanning.detectors.unicorn import Unicorn, batches, constrained, need
from conftest import Twins

QUICK = Unicorn(steps=12, pretrain=250)


class Shortcut(nn.Module):
    """A clean digits network with one more feature, the grey of the left edge, that votes for a class.

    A backdoor made by hand: `strength` 0 is the clean twin.
    """

    def __init__(self, net: nn.Module, target: int, strength: float) -> None:
        super().__init__()
        assert isinstance(net, nn.Sequential)
        self.body, head = net[:-1], net[-1]
        assert isinstance(head, nn.Linear)
        vote = strength * torch.eye(10)[target]
        self.weight = nn.Parameter(torch.cat([head.weight.detach(), vote[:, None]], 1))
        self.bias = nn.Parameter(head.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        lit = x[:, 0, :, 0].mean(1)
        return F.linear(torch.cat([self.body(x), lit[:, None]], 1), self.weight, self.bias)


def scan(twins: Twins, strength: float) -> Report:
    model = Model(Shortcut(twins.clean.net, 4, strength), (1, 8, 8), 10)
    return backsweep.scan(model, twins.data, QUICK, device="cpu")


def test_a_planted_shortcut_comes_first_and_its_twin_passes(twins: Twins) -> None:
    """On 8x8 images the first epoch changes as much as natural triggers do: no verdict, but an order."""
    bad, good = scan(twins, 150.0), scan(twins, 0.0)
    found = bad.findings[0]
    assert found.target == 4
    scores = [r.findings[0].score or 0.0 for r in (bad, good)]
    assert scores[0] > max(2, scores[1] + 0.5)
    assert good.verdict == "clean"
    mixed = [float(e.values["mixed_success"] or 0) for e in bad.evidence]
    assert mixed[4] > 0.9, "the features of m' alone send others there"
    assert all(m < 0.5 for m in mixed[:4] + mixed[5:])
    assert all(float(e.values["mixed_success"] or 0) < 0.9 for e in good.evidence)
    assert found.attack_success_rate is not None
    assert found.attack_success_rate > 0.9
    trigger = found.trigger
    assert isinstance(trigger, Transformed)
    x = twins.data.x[twins.data.y != 4]
    assert float((trigger(x) - x)[..., 0].mean()) > 0.03, "the edge is lit"


def test_one_pixel_of_badnets_comes_first(twins: Twins) -> None:
    detector = Unicorn(steps=20, pretrain=500)
    report = backsweep.scan(twins.infected, twins.data, detector, device="cpu")
    needs = [float(e.values["need"] or 0) for e in report.evidence]
    assert min(range(10), key=needs.__getitem__) == twins.trigger.target


def test_ssim() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2, 3, 16, 16), generator=generator)
    assert float(ssim(x, x)) == pytest.approx(1)
    assert float(ssim(x, 1 - x)) < 0
    small, large = (x + d * torch.randn(x.shape, generator=generator) for d in (0.05, 0.5))
    assert 1 > float(ssim(x, small)) > float(ssim(x, large))
    # flat images: (2 a b + C1) / (a^2 + b^2 + C1), the variances are 0
    a, b = (
        torch.full((1, 1, 4, 4), 0.2, dtype=torch.double),
        torch.full((1, 1, 4, 4), 0.6, dtype=torch.double),
    )
    assert float(ssim(a, b)) == pytest.approx((0.24 + 1e-4) / (0.4 + 1e-4), rel=1e-3)


@pytest.mark.parametrize("side", [1, 5, 8, 30])
def test_a_unet_takes_any_size(side: int) -> None:
    x = torch.rand(2, 3, side, side + 1)
    weights = unet_weights(3, 4, 3, torch.Generator().manual_seed(1))
    y = unet(weights, x, 4, 3)
    assert y.shape == x.shape
    assert torch.allclose(unet(weights, x[:1], 4, 3), y[:1], atol=1e-5), "an input is treated alone"


def test_blend_is_the_scaled_equation() -> None:
    z, mask, pattern = torch.randn(4, 1, 3, 3), torch.rand(1, 3, 3), torch.rand(1, 3, 3)
    low, high = z.min(), z.max()
    scaled = (1 - mask) * (z - low) / (high - low) + mask * pattern
    assert torch.allclose(blend(z, mask, pattern, low, high), scaled * (high - low) + low, atol=1e-5)


def test_box_and_inside() -> None:
    assert float(box(torch.tensor(0.0))) == 0.5
    assert 0.87 < float(box(torch.tensor(1.0))) < 0.89
    x = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    y = inside(x)
    assert y.tolist() == [0, 0.5, 1]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1]


def trigger(target: int = 2) -> Transformed:
    generator = torch.Generator().manual_seed(2)
    into, back = (unet_weights(3, 4, 2, generator) for _ in range(2))
    mask, pattern = (torch.rand((3, 9, 9), generator=generator) for _ in range(2))
    return Transformed(
        target, None, into, back, 4, 2, mask, pattern, -0.5, 1.5, torch.rand((3, 9, 9), generator=generator)
    )


def test_the_trigger_is_saved_and_read_by_its_family(tmp_path: Path) -> None:
    made, x = trigger(), torch.rand(5, 3, 9, 9)
    made.save(tmp_path / "t.safetensors")
    read = Trigger.load(tmp_path / "t.safetensors")
    assert isinstance(read, Transformed)
    assert torch.equal(read(x), made(x))
    assert torch.allclose(made(x[:1]), made(x)[:1], atol=1e-5)
    assert 0 <= float(made(x).min()) <= float(made(x).max()) <= 1
    assert read.size == made.size > 0
    assert read.picture().size == (9, 9)
    assert made(x[:0]).shape == (0, 3, 9, 9)


@pytest.mark.parametrize("arch", ["digits", "gap"])
def test_the_head_maps_features_to_logits(arch: str, twins: Twins) -> None:
    model = twins.clean if arch == "digits" else Model(gap_cnn(7, 3, 16).eval(), (3, 16, 16), 7)
    x = torch.rand(6, *model.shape)
    weight, bias = model.head()
    assert weight.shape == (model.classes, model.features(x).shape[1])
    assert torch.allclose(F.linear(model.features(x), weight, bias), model.logits(x), atol=1e-4)
    assert not weight.requires_grad
    assert not bias.requires_grad


def test_the_head_of_a_network_with_softmax() -> None:
    last = nn.Linear(5, 3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), last, nn.Softmax(1))
    weight, bias = Model(net, (1, 4, 4), 3).head()
    assert torch.allclose(weight, last.weight, atol=1e-5)
    assert torch.allclose(bias, last.bias, atol=1e-5)


def test_a_network_without_an_affine_head_is_refused(twins: Twins) -> None:
    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1)).mul(3).tanh()

    model = Model(Bent(), (1, 4, 4), 3)
    with pytest.raises(BadInput, match="not an affine map"):
        model.head()
    assert "not an affine map" in Unicorn().applies(model, twins.data)
    assert Unicorn().applies(twins.clean, twins.data) == ""


def test_mixed_logits_take_the_masked_features_of_the_trigger(twins: Twins) -> None:
    model = twins.clean.copy()
    nets = [unet_weights(1, 2, 1, torch.Generator().manual_seed(0)) for _ in range(2)]
    search = Search(model, nets, (2, 1), 3)
    z, other = (model.features(torch.rand(4, 1, 8, 8)) for _ in range(2))
    one, none = torch.ones(64), torch.zeros(64)
    assert torch.allclose(search.mixed(z, other, one), F.linear(z, *model.head()), atol=1e-4)
    assert torch.allclose(search.mixed(z, other, none), F.linear(other, *model.head()), atol=1e-4)


def test_both_masks_are_pushed_below_their_bound(twins: Twins) -> None:
    model, x = twins.clean.copy(), twins.data.x[:32]
    nets = [unet_weights(1, 4, 1, torch.Generator().manual_seed(i)) for i in range(2)]
    search = Search(model, nets, (4, 1), 3)
    before = search.measure(search.trigger(x), x)
    with torch.no_grad():
        other = model.features(x.flip(0))
    for _ in range(6):
        search.step(x, other, other.mean(0), 5)
    after = search.measure(search.trigger(x), x)
    assert before["mask_share"] == pytest.approx(0.88, abs=0.01)
    assert before["feature_share"] == pytest.approx(0.88, abs=0.01)
    assert after["mask_share"] < 0.25
    assert after["feature_share"] < 0.3


def test_need_and_the_papers_rule() -> None:
    works = {"change": 2.0, "success": 0.95}
    assert need(works) == pytest.approx(math.log(2))
    assert need(works | {"success": 0.45}) == pytest.approx(math.log(2) + 0.75)
    full = {
        "mixed_success": 0.95,
        "dissimilarity": 0.1,
        "spread": 0.9,
        "mask_share": 0.1,
        "feature_share": 0.1,
    }
    assert constrained(full)
    assert not constrained(full | {"mixed_success": 0.9})
    for bound in ("dissimilarity", "spread", "mask_share", "feature_share"):
        assert not constrained(full | {bound: 1.1})


def test_batches_cover_the_rows() -> None:
    rows, generator = torch.arange(10), torch.Generator().manual_seed(0)
    order = batches(rows, 5, generator)
    assert torch.cat([next(order), next(order)]).sort().values.tolist() == rows.tolist()
    assert len(next(batches(rows, 64, generator))) == 10


def evidence(needs: list[float]) -> list[Evidence]:
    return [
        Evidence("unicorn", f"class-{t}", t, None, {
            "need": n, "change": math.exp(n), "success": 0.95, "mixed_success": 0.5,
            "attack_success_rate": 0.93, "dissimilarity": 0.2, "mask_share": 0.1, "feature_share": 0.1,
            "constrained": t == 2,
        })
        for t, n in enumerate(needs)
    ]  # fmt: skip


def test_judging() -> None:
    needs = [1.9, 2.0, 0.9, 1.8, 1.95, 1.75, 2.1, 1.85, 1.9, 2.0]
    (found,) = Unicorn().judge(evidence(needs), 10, 0.05)
    assert (found.level, found.target) == (ERROR, 2)
    assert found.details["constrained_classes"] == 1
    needs[2] = 2.9
    (found,) = Unicorn().judge(evidence(needs), 10, 0.05)
    assert (found.level, found.target) == (NOTE, 5)
    (found,) = Unicorn().judge(evidence([1.0, 2.0]), 2, 0.05)
    assert (found.level, found.p_value) == (WARNING, None)


def test_the_pretrained_pair_is_made_once(twins: Twins) -> None:
    detector, model = Unicorn(pretrain=20), twins.clean.copy()
    clean, _ = twins.data.split(0)
    first = detector._identity_nets(model, twins.data, clean, 7)
    assert detector._identity_nets(model, twins.data, clean, 7) is first
    assert Unicorn(pretrain=1)._identity_nets(model, twins.data, clean, 7) is not first
    again = detector._identity_nets(model, twins.data, clean, 7)
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_the_pretrained_pair_maps_back(twins: Twins) -> None:
    clean, held_out = twins.data.split(0)
    pair = Unicorn(pretrain=300)._identity_nets(twins.clean.copy(), twins.data, clean, 7)
    x = held_out.x[:64]
    back = unet(pair[1], unet(pair[0], x, 8, 2), 8, 2)
    assert float(F.mse_loss(back, x)) < 0.1 * float(x.var())


@pytest.mark.parametrize("settings", [{"preset": "fast"}, {"steps": 0}, {"filters": -1}])
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"preset|at least 1"):
        Unicorn(**settings)  # type: ignore[arg-type]
