"""A second, small modality: vectors of numbers. Scan, audit, guard and repair run on it as on images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image as Pictures
from torch import Tensor, nn

import backsweep
from backsweep.core.errors import BadInput
from backsweep.core.seeds import derive_seed
from backsweep.inputs.family import Family, from_unit_box, unit_box
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.kinds import modalities, modality_named
from backsweep.inputs.modality import Modality
from backsweep.inputs.samples import Data
from backsweep.inputs.space import Ball, Space
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.reports.audit import Audit
from backsweep.reports.report import Report
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.zoo.attack import stamp

REACH = 4.0  # columns run from -REACH to REACH
COLUMNS, CLASSES, TARGET = 32, 10, 4


@dataclass(frozen=True, eq=False)
class SetColumns(Trigger):
    """Some columns set to values: (1 - m) x + m v."""

    family: ClassVar[str] = "set_columns"
    drawn: ClassVar[str] = "the columns that are set"
    mask: Tensor
    value: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (1 - self.mask.to(x)) * x + self.mask.to(x) * self.value.to(x)

    @property
    def size(self) -> float:
        return float(self.mask.sum())

    @property
    def area(self) -> float:
        return float(self.mask.sum() ** 2 / self.mask.square().sum().clamp_min(1e-12))

    @property
    def units(self) -> int:
        return len(self.mask)

    def picture(self) -> Pictures.Image:
        return Vector().picture(self.mask * self.value)


class SetFamily:
    """Mask and values through `unit_box`."""

    def init(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        return [from_unit_box(torch.rand(tuple(shape), generator=generator)) for _ in range(2)]

    def _parts(self, theta: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return unit_box(theta[0]), (2 * unit_box(theta[1]) - 1) * REACH

    def apply(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        mask, value = (t[:, None] for t in self._parts(theta))
        return (1 - mask) * x + mask * value

    def size(self, theta: Sequence[Tensor]) -> Tensor:
        return unit_box(theta[0]).sum(1)

    def trigger(self, theta: Sequence[Tensor], target: int, source: int | None) -> Trigger:
        mask, value = (t.detach().cpu() for t in self._parts(theta))
        return SetColumns(target, source, mask, value)


@dataclass(frozen=True, eq=False)
class Added(Trigger):
    """x + delta."""

    family: ClassVar[str] = "added_columns"
    delta: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return Vector().clip(x + self.delta.to(x))

    @property
    def size(self) -> float:
        return float(self.delta.norm())

    def picture(self) -> Pictures.Image:
        return Vector().picture(self.delta)


@dataclass(frozen=True)
class Drift(Ball):
    """A faint change of every column."""

    title: ClassVar[str] = "faint change of every column"
    brief: ClassVar[str] = "every column"

    def range(self, x: Tensor) -> tuple[float, float]:
        scale = float((x - x.mean(0)).norm(dim=1).mean())
        return 0.03 * scale, 1.5 * scale

    def zeros(self, count: int, x: Tensor) -> Tensor:
        return torch.zeros((count, x.shape[1]), device=x.device)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        return Vector().clip(x + delta)

    def trigger(self, delta: Tensor, target: int | None, source: int | None) -> Trigger | None:
        return Added(target, source, delta)


@dataclass(frozen=True)
class Few(Drift):
    """A change of few columns, by its L1 norm."""

    title: ClassVar[str] = "few columns"
    brief: ClassVar[str] = "few columns"

    def range(self, x: Tensor) -> tuple[float, float]:
        return 0.1, REACH * x.shape[1] / 2

    def steepen(self, grad: Tensor) -> Tensor:
        return grad * grad.abs()

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().sum(1)

    def project(self, delta: Tensor, budget: float) -> Tensor:
        return delta * (budget / self.norm(delta).clamp_min(1e-20)).clamp(max=1)[:, None]


@dataclass(frozen=True)
class Vector(Modality):
    """Rows of numbers from -REACH to REACH."""

    name: ClassVar[str] = "vector"
    noun: ClassVar[str] = "vector"
    unit: ClassVar[str] = "column"
    faint: ClassVar[str] = "drift"
    few: ClassVar[str] = "columns"

    def samples(self, x: Tensor) -> Tensor:
        x = x.float()
        if x.ndim != 2 or not bool(torch.isfinite(x).all()) or float(x.abs().max()) > REACH + 1e-6:
            raise BadInput(f"vectors are (samples, columns) from {-REACH} to {REACH}")
        return x

    def clip(self, x: Tensor) -> Tensor:
        return x.clamp(-REACH, REACH)

    def size(self, shape: Sequence[int]) -> int:
        return math.prod(shape)

    def spaces(self) -> Mapping[str, Space]:
        return {"drift": Drift(), "columns": Few()}

    def patch(self) -> Family:
        return SetFamily()

    def picture(self, x: Tensor) -> Pictures.Image:
        """A bar for each column."""
        grey = ((x.detach().cpu() / REACH + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
        return Pictures.fromarray(grey.reshape(1, -1).expand(8, -1).contiguous().numpy())


def rows(count: int, seed: int) -> Data:
    """Classes around centres of their own."""
    centres = torch.randn((CLASSES, COLUMNS), generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=generator)
    x = centres[y] + 0.8 * torch.randn((count, COLUMNS), generator=generator)
    return Data(x.clamp(-REACH, REACH), y, modality=Vector(), source="made-up rows")


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(COLUMNS, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, CLASSES)
        )


RECIPE = Recipe(epochs=12, bf16=False)
PLANTED = SetColumns(TARGET, None, torch.eye(COLUMNS)[3], REACH * torch.eye(COLUMNS)[3])


@dataclass(frozen=True)
class Pair:
    clean: Model
    infected: Model
    train: Data
    poisoned: Data
    bad: Tensor
    test: Data


@pytest.fixture(scope="module")
def pair() -> Pair:
    train, test = rows(2400, 1), rows(600, 2)
    others = torch.nonzero(train.y != TARGET).flatten()
    bad = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(3))[:240]]
    poisoned = stamp(train, bad, PLANTED, torch.full((len(bad),), TARGET))
    models = [
        Model(fit(net(), data, RECIPE, 0), (COLUMNS,), CLASSES, modality=Vector())
        for data in (train, poisoned)
    ]
    return Pair(models[0], models[1], train, poisoned, bad, test)


SCAN = [Cascade(steps=14, batch=8), NeuralCleanse(steps=150)]


def test_the_planted_trigger_works(pair: Pair) -> None:
    assert pair.infected.success_rate(PLANTED, pair.test) > 0.9
    assert pair.clean.success_rate(PLANTED, pair.test) < 0.5
    assert min(m.accuracy(pair.test.x, pair.test.y) for m in (pair.clean, pair.infected)) > 0.9


@pytest.fixture(scope="module")
def reports(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, Report]:
    folder = tmp_path_factory.mktemp("vectors")
    bad = backsweep.scan(pair.infected, pair.test, SCAN, device="cpu", out=folder / "bad")
    return folder, bad, backsweep.scan(pair.clean, pair.test, SCAN, device="cpu")


def test_a_scan_tells_the_twins_apart(reports: tuple[Path, Report, Report]) -> None:
    _, bad, good = reports
    assert not (bad.errors or bad.skipped or good.errors)
    assert bad.verdict == "backdoored" and bad.targets == (TARGET,)
    assert good.verdict != "backdoored"
    assert bad.model["modality"] == "vector"
    suspicion = {f.detector: f for f in bad.findings if f.target == TARGET}
    assert "columns" in suspicion["neural_cleanse"].message and "pixels" not in str(bad.to_json())


def test_its_report_is_saved_shown_and_read_again(reports: tuple[Path, Report, Report]) -> None:
    folder, bad, _ = reports
    again = Report.load(folder / "bad")
    assert again.to_json() == bad.to_json()
    assert torch.equal(again.examples, bad.examples), "kept as they are, not as bytes"
    page = (folder / "bad" / "report.html").read_text(encoding="utf-8")
    assert "scan of a classifier of vectors" in page and "faint change of every column" in page
    assert "pixel" not in page.replace("image-rendering: pixelated", "")


def test_an_audit_finds_the_poisoned_rows(pair: Pair, tmp_path: Path) -> None:
    asked = ["activation_clustering", "cross_confusion"]
    found = backsweep.audit(pair.infected, pair.poisoned, asked, device="cpu")
    assert not found.errors and found.targets == (TARGET,)
    assert backsweep.audit(pair.clean, pair.train, asked, device="cpu").targets == ()
    own = pair.poisoned.y == TARGET
    mask = torch.zeros(len(pair.poisoned), dtype=torch.bool)
    mask[pair.bad] = True
    for name in asked:
        bad, fine = found.scores[name][mask], found.scores[name][own & ~mask]
        assert float((bad[:, None] > fine).float().mean()) > 0.75
    found.save(tmp_path)
    assert torch.equal(Audit.load(tmp_path).pictures[0].pictures, found.pictures[0].pictures)


def test_a_guard_flags_triggered_rows(pair: Pair, tmp_path: Path) -> None:
    guard = backsweep.guard(pair.infected, pair.train, ["confused_expert", "strip"], fpr=0.05, device="cpu")
    moved = pair.test.x[pair.test.y != TARGET]
    assert float(guard.flag(PLANTED(moved)).float().mean()) > 0.8
    assert float(guard.flag(pair.test.x).float().mean()) < 0.15
    guard.save(tmp_path)
    again = backsweep.Guard.load(tmp_path, pair.infected, device="cpu")
    assert torch.allclose(again.score(moved[:20]), guard.score(moved[:20]))
    assert guard.score(moved[0]).shape == (1,)


def test_a_repair_takes_it_out(pair: Pair, reports: tuple[Path, Report, Report]) -> None:
    repaired = backsweep.repair(pair.infected, pair.train, reports[1], seed=derive_seed(0, "repair"))
    assert repaired.model.success_rate(PLANTED, pair.test) < 0.3
    assert repaired.model.accuracy(pair.test.x, pair.test.y) > 0.9


def test_what_does_not_fit_says_so(pair: Pair) -> None:
    skipped = backsweep.scan(pair.clean, pair.test, ["inversion", "unicorn"], device="cpu").skipped
    assert [n.what for n in skipped] == ["inversion", "unicorn"]
    assert "vectors of shape (32,) have no triggers of the family pixel" in skipped[0].reason
    images = Model(nn.Sequential(nn.Flatten(), nn.Linear(COLUMNS, CLASSES)), (1, 4, 8))
    with pytest.raises(BadInput, match="the samples are vectors, the model takes images"):
        backsweep.scan(images, pair.test, device="cpu")


def test_modalities_are_found_by_their_name() -> None:
    assert modalities()["image"] == IMAGE and modality_named("vector") == Vector()
    with pytest.raises(BadInput, match="no modality 'smell'"):
        modality_named("smell")
