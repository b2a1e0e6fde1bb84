"""The guard: the rate that was asked for, one scale for all detectors, files, drift, commands."""

from __future__ import annotations

import csv
import json
import math
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from backsweep.cli import app
from backsweep.cli.guard import guard_app
from backsweep.core.discovery import discover
from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.guarding import detector, service
from backsweep.guarding import guard as guarding
from backsweep.guarding.conformal import FOLDS, MOST_SURPRISE, Surprise, joint, left_out
from backsweep.guarding.detector import SampleDetector, Score, Scorer
from backsweep.guarding.detectors.confused_expert import ConfusedExpert
from backsweep.guarding.detectors.scale_up import ScaleUp
from backsweep.guarding.detectors.strip import Strip
from backsweep.guarding.guard import Guard, guard, thirds
from backsweep.inputs.image.pictures import to_image
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models import architectures
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, Evidence, Finding, Report
from conftest import Twins

ARCH = "backsweep.archs:digits_cnn"


@dataclass(frozen=True)
class Pixel(SampleDetector):
    """For tests: the value of one pixel; nothing is learned and the model is not asked."""

    name: ClassVar[str] = "pixel"
    summary: ClassVar[str] = "the value of one pixel"
    learns: ClassVar[float] = 0

    row: int = 0
    column: int = 0
    reason: str = ""
    broken: bool = False

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        return self.reason

    def passes(self, model: Model) -> float:
        return 0

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        if self.broken:
            raise RuntimeError("out of luck")
        return {}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        return lambda x: x[:, 0, self.row, self.column]


@dataclass(frozen=True)
class Other(Pixel):
    name: ClassVar[str] = "other"


@pytest.fixture(scope="module")
def known(twins: Twins) -> tuple[Data, Data]:
    """Clean digits for the guard, and fresh ones."""
    return twins.data.split(3)


@pytest.fixture(scope="module")
def strip(twins: Twins, known: tuple[Data, Data]) -> Guard:
    return guard(twins.infected, known[0], Strip(overlays=20), fpr=0.05, device="cpu")


# ---------------------------------------------------------------------- the rate that was asked for


@pytest.mark.parametrize("fpr", [0.1, 0.05])
def test_fresh_clean_digits_are_flagged_as_often_as_asked(
    twins: Twins, known: tuple[Data, Data], fpr: float
) -> None:
    fitted = guard(twins.infected, known[0], [Strip(overlays=20), ScaleUp()], fpr=fpr, device="cpu")
    n, fresh = len(fitted.calibration), known[1]
    rank = math.ceil((n + 1) * (1 - fpr))
    flagged = int(fitted.flag(fresh.x).sum())
    low, high = stats.betabinom.ppf([0.0005, 0.9995], len(fresh), n + 1 - rank, rank)
    assert low <= flagged <= high


@pytest.mark.parametrize(("fpr", "n"), [(0.1, 99), (0.03, 200), (0.01, 99)])
def test_the_rate_holds_on_average_over_synthetic_scores(fpr: float, n: int) -> None:
    """Two detectors of which one has a heavy tail: the mean rate is within a tenth of what was asked for."""
    generator, rates = torch.Generator().manual_seed(0), []
    for _ in range(300):
        clean, fresh = torch.randn((n, 2), generator=generator), torch.randn((2000, 2), generator=generator)
        for draws in (clean, fresh):
            draws[:, 1] = draws[:, 1].exp() ** 2
        cut = detector.threshold(joint([left_out(s) for s in clean.T]), fpr)
        scores = joint([Surprise(s)(f) for s, f in zip(clean.T, fresh.T, strict=True)])
        rates.append(float((scores > cut).double().mean()))
    exact = 1 - math.ceil((n + 1) * (1 - fpr)) / (n + 1)
    error = float(torch.tensor(rates).std()) / 300**0.5
    assert abs(sum(rates) / 300 - exact) < 0.1 * fpr + 3 * error
    assert exact - 1e-9 <= fpr < exact + 1 / n


def test_scores_are_left_out_by_hand() -> None:
    clean = torch.tensor([3.0, 1.0, 2.0, 7.0, 5.0])
    one_by_one = [Surprise(torch.cat([clean[:i], clean[i + 1 :]]))(clean[i : i + 1]) for i in range(5)]
    assert torch.equal(left_out(clean), torch.cat(one_by_one))
    many = torch.arange(float(2 * FOLDS))
    assert torch.equal(
        left_out(many)[[3, FOLDS + 3]], Surprise(many[many % FOLDS != 3])(many[[3, FOLDS + 3]])
    )


def test_too_few_samples_for_the_rate_are_counted(twins: Twins) -> None:
    x = torch.rand((400, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    data = Data(x, twins.clean.predict(x))
    if len(data.y.unique()) < 2:
        pytest.skip("noise is one class")
    data = data[torch.isin(data.y, torch.nonzero(torch.bincount(data.y) > 40).flatten())]
    for fpr, need in ((0.1, 25), (0.05, 55)):
        guard(twins.clean, data.sample(need, 0), Pixel(), fpr=fpr, device="cpu")
        with pytest.raises(BadInput, match=f"at least {need} clean samples, there are {need - 1}"):
            guard(twins.clean, data.sample(need - 1, 0), Pixel(), fpr=fpr, device="cpu")


def test_the_calibration_part_has_the_classes_as_they_are_met() -> None:
    y = torch.cat([torch.zeros(270), torch.ones(30), torch.full((3,), 2.0)])
    first, rest = thirds(Data(torch.rand(303, 1, 2, 2), y), 0)
    assert torch.bincount(first.y).tolist() == [90, 10, 1]
    assert torch.bincount(rest.y).tolist() == [180, 20, 2]
    again, _ = thirds(Data(torch.rand(303, 1, 2, 2), y), 0)
    assert torch.equal(first.y, again.y)


# ---------------------------------------------------------------------- one scale for all detectors


def test_the_surprise_by_hand() -> None:
    """Clean scores 1..9: p(s) = (1 + #{clean >= s}) / 10, log-linear between, exponential above."""
    scale = Surprise(torch.arange(1.0, 10.0))
    found = scale(torch.tensor([1.0, 5.0, 8.0, 9.0])).tolist()
    assert found == pytest.approx([0.0, -math.log10(0.6), -math.log10(0.3), -math.log10(0.2)])
    assert float(scale(torch.tensor([8.5]))) == pytest.approx(-math.log10((0.3 * 0.2) ** 0.5))
    # the tail is fitted to all but the lowest score, as ten are more than there are: mean excess 4.5
    assert float(scale(torch.tensor([13.5]))) == pytest.approx(-math.log10(0.2 * math.exp(-1)))
    assert float(scale(torch.tensor([-3.5]))) == pytest.approx(math.log10(math.exp(-1)))


def test_the_surprise_rises_strictly_and_has_no_holes() -> None:
    clean = torch.randn(200, generator=torch.Generator().manual_seed(1)).round(decimals=1)  # many are equal
    scale = Surprise(clean)
    s = torch.linspace(-9, 30, 4000, dtype=torch.float64)
    assert bool((scale(s).diff() > 0).all())
    hostile = scale(torch.tensor([math.nan, math.inf, -math.inf, 3e38]))
    assert hostile[0] == hostile[1] == MOST_SURPRISE, "a score that is no number is flagged"
    assert bool(torch.isfinite(hostile).all())
    alike = Surprise(torch.full((30,), 2.0))
    assert alike(torch.tensor([1.9])) < alike(torch.tensor([2.0])) < alike(torch.tensor([2.1]))


def test_surprises_of_clean_scores_are_conformal() -> None:
    clean = torch.randn(99, generator=torch.Generator().manual_seed(2))
    p = 10 ** -Surprise(clean)(clean)
    assert torch.allclose(p.sort().values, torch.arange(2, 101).double() / 100)


def test_the_joint_score_is_the_sum_of_surprises(twins: Twins) -> None:
    both = [Pixel(row=2, column=3), Other(row=4, column=4)]
    fitted = guard(twins.clean, twins.data, both, fpr=0.1, device="cpu")
    x = torch.cat(
        [twins.data.x, twins.data.x[:2] - 1]
    )  # darker than any clean digit: less suspicious to both
    alone = [Surprise(s.clean)(s(x)) for s in fitted.scorers.values()]
    assert float(alone[0].min()) < 0
    assert torch.equal(fitted.answers(x)[1], alone[0].clamp_min(0) + alone[1].clamp_min(0))
    assert torch.equal(joint(alone[:1]), alone[0]), "alone it keeps its order"
    assert fitted.passes == 1


def test_the_infected_twin_is_guarded_and_the_clean_one_is_left_alone(
    twins: Twins, known: tuple[Data, Data], strip: Guard
) -> None:
    fresh, triggered = known[1].x, twins.trigger(known[1].x)
    truth = [0] * len(fresh) + [1] * len(triggered)
    assert roc_auc_score(truth, strip.score(torch.cat([fresh, triggered]))) > 0.95
    assert float(strip.flag(triggered).double().mean()) > 0.7
    other = guard(twins.clean, known[0], Strip(overlays=20), fpr=0.05, device="cpu")
    assert roc_auc_score(truth, other.score(torch.cat([fresh, triggered]))) < 0.75
    assert float(other.flag(triggered).double().mean()) < 0.3


# ---------------------------------------------------------------------- what it is asked


def test_the_lent_model_stays_as_it_was(twins: Twins, known: tuple[Data, Data]) -> None:
    net = twins.infected.net
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    guard(twins.infected, known[0], Strip(overlays=5), fpr=0.1, device="cpu").score(known[1].x[:4])
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.eval()


def test_a_plain_module_and_a_pair_will_do(twins: Twins, known: tuple[Data, Data]) -> None:
    fitted = guard(twins.infected.net, (known[0].x, known[0].y), Pixel(), fpr=0.1)
    assert len(fitted.score(known[1].x[:3])) == 3


def test_the_score_of_an_input_hangs_on_it_alone(strip: Guard, known: tuple[Data, Data]) -> None:
    x = known[1].x[:7]
    together = strip.score(x)
    alone = torch.cat([strip.score(x[i]) for i in range(7)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert together.dtype == torch.float64
    assert together.shape == (7,)
    assert torch.allclose(strip.score((x * 255).round().to(torch.uint8)[:, 0]), together, atol=0.05)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.rand(2, 3, 8, 8), "takes"),
        (torch.rand(2, 1, 9, 8), "takes"),
        (torch.rand(()), "takes"),
        (torch.full((2, 1, 8, 8), math.nan), "NaN"),
        (torch.full((2, 1, 8, 8), math.inf), "infinite"),
        (torch.full((2, 1, 8, 8), 1.5), "outside"),
        (torch.full((2, 1, 8, 8), -0.5), "outside"),
        (torch.ones((2, 1, 8, 8), dtype=torch.long), "int64"),
        ("nothing", "numbers"),
    ],
)
def test_inputs_that_are_none_are_refused(strip: Guard, x: Any, says: str) -> None:
    for call in (strip.score, strip.flag, strip.predict, strip.wrapped()):
        with pytest.raises(BadInput, match=says):
            call(x)


def test_no_inputs_have_no_scores(strip: Guard) -> None:
    assert strip.score(torch.empty(0, 1, 8, 8)).shape == (0,)
    assert strip.predict(torch.empty(0, 1, 8, 8)).labels.shape == (0,)
    assert strip.wrapped()(torch.empty(0, 1, 8, 8)).shape == (0, 11)


def test_answers_agree(strip: Guard, twins: Twins, known: tuple[Data, Data]) -> None:
    x = torch.cat([known[1].x[:40], twins.trigger(known[1].x[:40])])
    labels, scores, flagged = strip.predict(x)
    assert torch.equal(labels, twins.infected.predict(x))
    assert torch.equal(scores, strip.score(x))
    assert torch.equal(flagged, strip.flag(x))
    assert torch.equal(flagged, scores > strip.threshold)
    assert strip.passes == 21


def test_the_model_is_asked_once_for_all_detectors(twins: Twins, known: tuple[Data, Data]) -> None:
    fitted = guard(twins.infected, known[0], ["confused_expert", "pupil"], fpr=0.1, device="cpu")
    x, asked = torch.cat([known[1].x, known[1].x])[:300], list[int]()
    hook = fitted.model.net.register_forward_pre_hook(lambda _net, args: asked.append(len(args[0])))
    labels = fitted.predict(x).labels
    fitted.wrapped()(x[:7])
    hook.remove()
    assert asked == [256, 44, 7]
    assert torch.equal(labels, fitted.model.predict(x))
    assert fitted.passes == 1 + ConfusedExpert().experts + 1


def test_the_wrapped_model_abstains_and_softmax_stays_right(
    strip: Guard, twins: Twins, known: tuple[Data, Data]
) -> None:
    x = torch.cat([known[1].x[:60], twins.trigger(known[1].x[:60])])
    out, flagged = strip.wrapped()(x), strip.flag(x)
    assert 0 < int(flagged.sum()) < len(x)
    assert out.shape == (120, 11)
    assert bool((out[flagged].argmax(1) == 10).all())
    logits = twins.infected.copy().logits(x).detach()
    assert torch.allclose(out[~flagged][:, :10], logits[~flagged], atol=1e-4)
    p = out.softmax(1)
    assert torch.allclose(p.sum(1), torch.ones(120))
    assert bool((p[flagged, 10] == 1).all())
    assert bool((p[~flagged, 10] == 0).all())


# ---------------------------------------------------------------------- detectors that do not apply


def test_what_does_not_apply_is_left_out_with_its_reason(twins: Twins) -> None:
    useless = Other(reason="it needs a lens")
    fitted = guard(twins.clean, twins.data, [Pixel(), useless], fpr=0.1, device="cpu")
    assert list(fitted.scorers) == ["pixel"]
    assert [(n.what, n.reason) for n in fitted.skipped] == [("other", "it needs a lens")]
    broken = guard(twins.clean, twins.data, [Pixel(), Other(broken=True)], fpr=0.1, device="cpu")
    assert [n.reason for n in broken.skipped] == ["failed: out of luck"]
    with pytest.raises(BadInput, match="other: it needs a lens"):
        guard(twins.clean, twins.data, useless, fpr=0.1, device="cpu")
    with pytest.raises(BadInput, match="activation_filter: it needs a recovered trigger"):
        guard(twins.clean, twins.data, "activation-filter", fpr=0.1, device="cpu")


@pytest.mark.parametrize(
    ("detectors", "fpr", "says"),
    [
        ([], 0.1, "at least one"),
        ([Pixel(), Pixel(row=1)], 0.1, "only once"),
        ("nothing", 0.1, "no detector"),
        (None, 0.0, "fpr"),
        (None, 1.0, "fpr"),
        (None, math.nan, "fpr"),
        (None, 0.001, "at least 2995 clean samples"),
    ],
)
def test_wrong_settings_are_refused(twins: Twins, detectors: Any, fpr: float, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        guard(twins.clean, twins.data, detectors, fpr=fpr, device="cpu")


def test_a_model_at_chance_is_refused(twins: Twins) -> None:
    wrong = Data(twins.data.x, (twins.data.y + 1) % 10)
    with pytest.raises(BadInput, match="no better than one constant answer"):
        guard(twins.clean, wrong, Pixel(), fpr=0.1, device="cpu")


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("name", discover(SampleDetector))
def test_every_detector_scores_the_same_after_load(
    twins: Twins, known: tuple[Data, Data], tmp_path: Path, name: str
) -> None:
    fitted = (
        guard(twins.infected, known[0], name, fpr=0.1, triggers=[twins.trigger], device="cpu")
        if (applicable(name, twins))
        else None
    )
    if fitted is None:
        pytest.skip(f"{name} does not apply to this network")
    x = torch.cat([known[1].x[:20], twins.trigger(known[1].x[20:40])])
    fitted.save(tmp_path)
    again = Guard.load(tmp_path, twins.infected, device="cpu")
    assert torch.allclose(again.score(x), fitted.score(x), rtol=1e-5, atol=1e-6)
    assert (again.threshold, again.fpr) == (fitted.threshold, fitted.fpr)
    assert {p.name for p in tmp_path.iterdir()} == {"guard.json", "guard.safetensors"}
    parts = load_file(tmp_path / "guard.safetensors")
    assert {f"{name}/{k}" for k in fitted.scorers[name].learned} <= set(parts)


def applicable(name: str, twins: Twins) -> bool:
    method = discover(SampleDetector)[name]()
    return not method.applies(twins.infected.copy(), twins.data, [twins.trigger])


@pytest.fixture
def saved(strip: Guard, tmp_path: Path) -> Path:
    return strip.save(tmp_path / "guard")


def test_the_record_says_what_was_fitted(saved: Path, strip: Guard, twins: Twins) -> None:
    raw = json.loads((saved / "guard.json").read_text())
    assert raw["model"]["weights_sha256"] == twins.infected.digest
    assert raw["detectors"] == {"strip": strip.detectors[0].settings()}
    assert raw["threshold"] == strip.threshold
    assert raw["data"]["clean_accuracy"] > 0.9
    assert {"backsweep", "torch", "python"} <= set(raw["versions"])
    again = Guard.load(saved, twins.infected)
    assert again.about == json.loads(json.dumps(strip.about))
    again.save(saved.with_name("again"))
    assert (saved.with_name("again") / "guard.safetensors").read_bytes() == (
        saved / "guard.safetensors"
    ).read_bytes()


def test_the_same_weights_from_a_file_are_the_same_model(saved: Path, twins: Twins, tmp_path: Path) -> None:
    save_file(twins.infected.net.state_dict(), tmp_path / "m.safetensors")
    there = load(tmp_path / "m.safetensors", arch=ARCH, shape=(1, 8, 8))
    assert there.digest != twins.infected.digest
    Guard.load(saved, there, device="cpu")


def test_a_guard_of_another_model_is_refused(saved: Path, twins: Twins) -> None:
    with pytest.raises(BadInput, match="of another model"):
        Guard.load(saved, twins.clean)
    dim = Model(twins.infected.net, (1, 8, 8), 10, mean=(0.5,), std=(0.5,))
    with pytest.raises(BadInput, match="loaded with mean=None"):
        Guard.load(saved, dim)
    with torch.random.fork_rng():
        twisted = nn.Sequential(architectures.digits_cnn(), nn.Softsign())
    state = dict(zip(twisted.state_dict(), twins.infected.net.state_dict().values(), strict=True))
    twisted.load_state_dict(state)
    bent = Model(twisted, (1, 8, 8), 10, digest=twins.infected.digest)
    with pytest.raises(BadInput, match="does not answer as"):
        Guard.load(saved, bent)


def change(key: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        raw = json.loads((folder / "guard.json").read_text())
        *path, last = key.split(".")
        place = raw
        for part in path:
            place = place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
        (folder / "guard.json").write_text(json.dumps(raw))

    return edit


def flip(folder: Path) -> None:
    blob = bytearray((folder / "guard.safetensors").read_bytes())
    blob[-3] ^= 1
    (folder / "guard.safetensors").write_bytes(blob)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "guard.json").unlink(), "cannot read"),
        (lambda f: (f / "guard.safetensors").unlink(), "cannot read"),
        (lambda f: (f / "guard.json").write_text("{"), "not a guard"),
        (lambda f: (f / "guard.json").write_text("[" * 100_000), "not a guard"),
        (lambda f: (f / "guard.json").write_bytes(b"\xff\xfe"), "not a guard"),
        (lambda f: (f / "guard.json").write_text("[]"), "not a guard"),
        (flip, "does not belong"),
        (lambda f: (f / "guard.safetensors").write_bytes(b""), "does not belong"),
        (change("schema", 2), "schema 2"),
        (change("kind", "scan"), "not a guard"),
        (change("fpr", 1.5), "not a guard"),
        (change("fpr", 0.5), "threshold"),
        (change("threshold", 1e9), "threshold"),
        (change("detectors", {}), "not a guard"),
        (change("detectors", {"nothing": {}}), "no detector"),
        (change("detectors", {"scale_up": {}}), "damaged"),
        (change("detectors.strip.overlays", -1), "overlays"),
        (change("detectors.strip.wings", 2), "no setting"),
        (change("model.shape", [1, 8]), "not a guard"),
        (change("model.shape", [10**6, 10**6, 3]), "not a guard"),
        (change("model.sha256", None), "damaged"),
        (change("skipped", [3]), "damaged"),
        (change("seed", None), "damaged"),
    ],
)
def test_a_damaged_guard_is_one_clear_line(
    saved: Path, twins: Twins, damage: Callable[[Path], None], says: str
) -> None:
    damage(saved)
    with pytest.raises(BadInput, match=says) as e:
        Guard.load(saved, twins.infected)
    assert "\n" not in str(e.value)
    assert str(saved) in str(e.value)


def test_a_folder_that_cannot_be_written_is_refused(strip: Guard, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        strip.save(tmp_path / "file")


# ---------------------------------------------------------------------- drift


def synthetic(fpr: float = 0.05, n: int = 400) -> tuple[Guard, torch.Generator]:
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    scorer = Scorer(lambda x: x.flatten(1)[:, 0], torch.device("cpu"), torch.rand(50, generator=generator))
    calibration = torch.randn(n, generator=generator)
    return Guard(Model(net, (1, 2, 2), 2), [Pixel()], {"pixel": scorer}, calibration, fpr), generator


def test_clean_inputs_do_not_drift() -> None:
    fitted, generator = synthetic()
    seen = [fitted.drift(torch.randn(500, generator=generator)) for _ in range(40)]
    assert not any(d.drifted for d in seen)
    assert all(d.p_value is not None and d.p_value > 0.001 for d in seen)
    assert all(d.flagged_p_value > 0.001 for d in seen)
    assert float(np.mean([d.flagged for d in seen])) == pytest.approx(0.05, abs=0.03)


def test_shifted_inputs_drift() -> None:
    fitted, generator = synthetic()
    for shift in (-0.8, 0.8):
        drift = fitted.drift(torch.randn(500, generator=generator) + shift)
        assert drift.drifted
        assert "drifted" in drift.message
        assert drift.p_value is not None
        assert drift.p_value < 0.001
    assert not fitted.drift(torch.randn(20_000, generator=generator) + 0.1).drifted, "significant but small"


def test_attacked_inputs_alone_are_no_drift() -> None:
    fitted, generator = synthetic()
    scores = torch.cat([torch.randn(500, generator=generator), torch.full((200,), 50.0)])
    drift = fitted.drift(scores)
    assert not drift.drifted
    assert drift.flagged > 0.2
    assert drift.flagged_p_value < 1e-6
    assert "under attack, or drifted" in drift.message


def test_a_few_inputs_tell_nothing() -> None:
    fitted, generator = synthetic()
    drift = fitted.drift(torch.randn(60, generator=generator) + 9)
    assert drift.p_value is None
    assert drift.distance is None
    assert not drift.drifted
    assert "too few" in drift.message
    assert "under attack" in drift.message
    nothing = fitted.drift(torch.empty(0))
    assert (nothing.flagged, nothing.flagged_p_value) == (0.0, 1.0)


# ---------------------------------------------------------------------- commands


class Shell:
    """Runs the guard's commands in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        root = typer.Typer(add_completion=False)
        root.add_typer(guard_app, name="guard")
        self._monkeypatch.setattr(app, "app", root)
        self._monkeypatch.setattr(sys, "argv", ["backsweep", "guard", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        out, err = self._capsys.readouterr()
        return int(stop.value.code or 0), out, err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.fixture(scope="module")
def files(twins: Twins, known: tuple[Data, Data], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, clean data, and inputs in every form that is read."""
    folder = tmp_path_factory.mktemp("guard")
    save_file(twins.infected.net.state_dict(), folder / "bad.safetensors")
    clean, fresh = known
    np.savez(folder / "clean.npz", x=(clean.x[:, 0].numpy() * 255).astype("uint8"), y=clean.y.numpy())
    np.savez(folder / "fresh.npz", x=(fresh.x[:, 0].numpy() * 255).astype("uint8"))
    np.savez(folder / "channels-last.npz", x=fresh.x[:4].permute(0, 2, 3, 1).numpy())
    np.savez(folder / "only-y.npz", y=fresh.y.numpy())
    (folder / "triggered" / "deeper").mkdir(parents=True)
    for i, x in enumerate(twins.trigger(fresh.x[:12])):
        to_image(x).save(folder / "triggered" / ("deeper" if i % 2 else "") / f"={i}.png")
    (folder / "large").mkdir()
    to_image(torch.rand(16, 16)).save(folder / "large" / "0.png")
    (folder / "empty").mkdir()
    return folder


def test_fit_and_check(shell: Shell, files: Path, tmp_path: Path) -> None:
    fit = ["fit", files / "bad.safetensors", "--data", files / "clean.npz", "--arch", ARCH, "--fpr", "0.05"]
    status, stdout, stderr = shell(*fit, "-d", "strip", "-p", "strip.overlays=20", "--out", tmp_path / "g")
    assert (status, stdout) == (0, ""), stderr
    assert "21 forward passes" in stderr
    table = tmp_path / "scores.csv"
    status, stdout, stderr = shell("check", tmp_path / "g", "--inputs", files / "triggered", "--out", table)
    assert status == 1 and stdout.startswith("12 of 12 flagged, more than clean inputs explain"), stderr
    assert stdout.endswith(f"; exit status 1; {table}\n") and "TRIGGERS LIKELY" in stderr
    words = ("check", tmp_path / "g", "--inputs", files / "triggered")
    assert shell(*words, "--quiet")[2] == ""
    said = json.loads(shell(*words, "--json")[1])
    assert said["alarm"] and [i["flagged"] for i in said["inputs"]] == [True] * 12
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 12
    assert sum(int(r["flagged"]) for r in rows) > 6
    assert all(r["input"].startswith(("'=", "deeper/=")) for r in rows)
    assert all((float(r["score"]) > float(r["threshold"])) == (r["flagged"] == "1") for r in rows)
    status, _, stderr = shell("check", tmp_path / "g", "--inputs", files / "fresh.npz")
    assert status in (0, 1)
    assert "score as before" in stderr
    with np.load(files / "fresh.npz") as archive:
        x = archive["x"]
    found = Guard.load(tmp_path / "g", load(files / "bad.safetensors", arch=ARCH, shape=(1, 8, 8)))
    hot = found.flag(x).numpy()
    np.savez(tmp_path / "fine.npz", x=x[~hot])
    assert shell("check", tmp_path / "g", "--inputs", tmp_path / "fine.npz")[0] == 0
    assert hot.any(), "clean inputs are flagged at times"
    np.savez(tmp_path / "usual.npz", x=np.concatenate([x[hot][:1], x[~hot]]))
    status, _, stderr = shell("check", tmp_path / "g", "--inputs", tmp_path / "usual.npz", "--out", table)
    assert status == 0, "one of so many is what clean inputs explain"
    assert "no more than clean inputs explain" in stderr
    assert [r["flagged"] for r in csv.DictReader(table.read_text().splitlines())].count("1") == 1
    assert shell("check", tmp_path / "g", "--inputs", tmp_path / "usual.npz", "--alpha", "1")[0] == 1
    assert shell("check", tmp_path / "g", "--inputs", tmp_path / "usual.npz", "--alpha", "0")[0] == 2
    assert shell("check", tmp_path / "g", "--inputs", files / "channels-last.npz")[0] in (0, 1)
    assert shell("check", tmp_path / "g", "--inputs", files / "large", "--resize")[0] in (0, 1)
    for inputs, says in (
        ("nowhere", "nowhere"), ("empty", "no images"), ("only-y.npz", "no x"), ("bad.safetensors", "npz"),
        ("large", "16 x 16"),
    ):  # fmt: skip
        status, _, stderr = shell("check", tmp_path / "g", "--inputs", files / inputs)
        assert status == 2, stderr
        assert stderr.startswith("error: ")
        assert says in stderr
        assert stderr.count("\n") == 1
    assert shell("check", files, "--inputs", files / "fresh.npz")[0] == 2
    record = json.loads((tmp_path / "g" / "guard.json").read_text(encoding="utf-8"))
    record["model"]["arch"] = "somebody.elses:code"
    (tmp_path / "g" / "guard.json").write_text(json.dumps(record), encoding="utf-8")
    status, _, stderr = shell("check", tmp_path / "g", "--inputs", files / "fresh.npz")
    assert status == 2, "code is never imported because a guard names it"
    assert "--arch somebody.elses:code" in stderr
    record["model"]["arch"] = ARCH
    (tmp_path / "g" / "guard.json").write_text(json.dumps(record), encoding="utf-8")
    moved = ["check", tmp_path / "g", "--inputs", files / "fresh.npz", "--model", tmp_path / "moved"]
    assert "moved" in shell(*moved)[2]


def test_fit_says_what_cannot_be_used(shell: Shell, files: Path, tmp_path: Path) -> None:
    fit = ["fit", files / "bad.safetensors", "--data", files / "clean.npz", "--arch", ARCH]
    for words, says in (
        (["--fpr", "0.01", "-d", "nothing"], "no detector"),
        (["--fpr", "0.0001"], "at least"),
        (["--fpr", "0.1", "-d", "activation_filter"], "recovered trigger"),
        (["--fpr", "0.1", "--report", files], "report"),
        (["--fpr", "0.1", "-p", "scale_up.x=1"], "scale_up"),
    ):
        status, _, stderr = shell(*fit, *words, "--out", tmp_path / "out")
        assert status == 2, stderr
        assert says in stderr
        assert not (tmp_path / "out").exists(), "nothing half-written"


def test_the_triggers_of_a_scan_are_used(shell: Shell, files: Path, twins: Twins, tmp_path: Path) -> None:
    target = twins.trigger.target
    model = {"sha256": load(files / "bad.safetensors", arch=ARCH, shape=(1, 8, 8)).digest}
    evidence = [Evidence("cascade", f"class-{target}", target=target, trigger=twins.trigger)]
    finding = Finding("BSW102", "cascade", ERROR, "m", target, None, 9.0, 2.0, 1e-4)
    Report(model=model, findings=[finding], evidence=evidence).save(tmp_path / "report")
    fit = ["fit", files / "bad.safetensors", "--data", files / "clean.npz", "--arch", ARCH, "--fpr", "0.1"]
    more = ["-d", "activation_filter", "--report", tmp_path / "report", "--out", tmp_path / "g"]
    status, _, stderr = shell(*fit, *more)
    assert status == 0, stderr
    assert "2 forward passes" in stderr
    assert shell("check", tmp_path / "g", "--inputs", files / "triggered")[0] == 1
    Report(model={"sha256": "of another"}, findings=[finding]).save(tmp_path / "report")
    assert "another model" in shell(*fit, *more)[2]


def test_serve_listens_and_answers(
    shell: Shell, files: Path, strip: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = strip.save(tmp_path / "g")
    served: list[tuple[str, int]] = []

    class Server:
        def run(self, sockets: list[socket.socket]) -> None:
            served.extend(s.getsockname() for s in sockets)

    monkeypatch.setattr(service, "app", lambda guard, **how: None)
    monkeypatch.setattr(service, "server", lambda _: Server())
    model = ["--model", files / "bad.safetensors", "--arch", ARCH]
    status, _, stderr = shell("serve", folder, *model, "--port", "0")
    assert status == 0, stderr
    assert served[0][0] == "127.0.0.1"
    assert f"http://127.0.0.1:{served[0][1]}/predict" in stderr
    status, _, stderr = shell("serve", folder)
    assert status == 2
    assert "--model" in stderr, "it was fitted to a live module"


def test_the_default_detectors_are_there() -> None:
    assert set(guarding.DEFAULT_GUARDS) <= set(discover(SampleDetector))
