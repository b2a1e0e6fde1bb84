"""The audit of a training set: features, detectors, verdicts, files, the check by training, commands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backsweep.auditing import audit as auditing
from backsweep.auditing import learning, nulls, screened, verifying
from backsweep.auditing.audit import audit, choose, configured, streamed
from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.detectors.cross_confusion import CrossConfusion
from backsweep.auditing.learning import fresh, trained
from backsweep.auditing.nulls import ANY, Sets
from backsweep.auditing.screened import Screened
from backsweep.core.errors import BadInput
from backsweep.core.progress import Event
from backsweep.guarding.detector import SampleDetector, Score
from backsweep.guarding.detectors.confused_expert import ConfusedExpert
from backsweep.guarding.detectors.strip import Strip
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.models.training import Recipe
from backsweep.reports.audit import TENSORS, Audit
from backsweep.reports.report import BACKDOORED, CLEAN, INCONCLUSIVE, NOTE, WARNING, Evidence, Note, Report
from backsweep.scanning.calibration import UNCALIBRATED
from backsweep.zoo.tasks import TASKS
from conftest import Twins
from poisoned import GENTLE, poisoned_digits
from shells import ARCH, Shell

TRAIN = TASKS["digits"].load()[0]


@dataclass(frozen=True)
class Told(SetDetector):
    """For tests: the score is the first feature; one class stands out if `bad` says so."""

    name: ClassVar[str] = "told"
    summary: ClassVar[str] = "says what it is told"
    code: ClassVar[str] = "BSW999"

    bad: int | None = 3
    cut: float = 0.5
    reason: str = ""
    broken: bool = False

    def applies(self, given: TrainingSet) -> str:
        return self.reason

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        if self.broken:
            raise RuntimeError("out of\nluck")
        statistic = [50.0 if c == self.bad else 0.1 + 0.01 * c for c in range(given.classes)]
        given.tick(0.5)
        return given.features[:, 0], [
            class_evidence(self.name, c, s, self.cut) for c, s in enumerate(statistic)
        ]


@dataclass(frozen=True)
class Other(Told):
    name: ClassVar[str] = "other"


def brightness(x: Tensor) -> Tensor:
    """About normal for clean digits, far above for those with a white corner of 3 x 3 pixels."""
    mixed = torch.rand((64, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (100 * x.flatten(1).double() @ mixed % 1).sum(1)
    return noise.float() + 5.0 * (x[:, 0, 5:, 5:].amin((1, 2)) == 1)


@dataclass(frozen=True)
class Corner(SampleDetector):
    """For tests: noise, and much more for a bright corner; keeps what it was fitted with."""

    name: ClassVar[str] = "corner"
    summary: ClassVar[str] = "how bright a corner is"
    batch: ClassVar[int] = 100
    fitted: ClassVar[list[Data]] = []

    reason: str = ""

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        return self.reason

    def passes(self, model: Model) -> float:
        return 0

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        self.fitted.append(data)
        return {}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        return brightness


def hand_made(first: Tensor | None = None, dimensions: int = 4) -> tuple[Tensor, Tensor]:
    """Features with `first` as the first one, and logits that are right."""
    z = torch.zeros(len(TRAIN), dimensions)
    if first is not None:
        z[:, 0] = first
    return z, 10 * torch.nn.functional.one_hot(TRAIN.y, 10).float()


def ramp(rows: Tensor) -> Tensor:
    """1 at `rows`, less elsewhere."""
    first = torch.linspace(0, 0.4, len(TRAIN))
    first[rows] = 1
    return first


THREES = torch.nonzero(TRAIN.y == 3).flatten()
BAD = torch.cat([THREES[:7], torch.nonzero(TRAIN.y == 4).flatten()[:5]])  # of a class without findings too


def told_audit(twins: Twins, **more: Any) -> Audit:
    more = {"detectors": Told(), "features": hand_made(ramp(BAD)), "device": "cpu", **more}
    return audit(twins.clean, more.pop("data", TRAIN), **more)


def one_line(error: pytest.ExceptionInfo[BadInput]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def found() -> Audit:
    """An audit of the poisoned digits with our own method, judged by itself alone."""
    model, data, _, _ = poisoned_digits()
    return audit(model, data, GENTLE, seed=1, device="cpu")


@pytest.fixture(scope="module")
def unsuspicious(twins: Twins) -> Audit:
    """The same of the clean digits."""
    return audit(twins.clean, TRAIN, GENTLE, seed=1, device="cpu")


SCORES = [i / 10 for i in range(1, 40)]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table for networks of every kind: 0.1, 0.2 ... 3.9, with our method in both settings."""
    columns = [
        {"detector": d.name, "settings": d.settings(), "scores": SCORES}
        for d in (GENTLE, CrossConfusion(), Corner())
    ]
    known = (Sets(ANY, [], 0, 1200, columns, {"kind": "every kind"}),)
    monkeypatch.setattr(nulls, "tables", lambda: known)


# ------------------------------------------------------------------ what it looks at


def test_features_that_are_given_are_used_and_the_model_is_not_asked(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "streamed", lambda *_: pytest.fail("the model is asked"))
    report = told_audit(twins)
    assert report.verdict == BACKDOORED
    assert report.targets == (3,)
    assert report.flagged.tolist() == THREES[:7].tolist()
    assert report.data["training_accuracy"] == 1
    assert torch.equal(report.scores["told"], ramp(BAD))
    assert told_audit(twins, features=hand_made(ramp(THREES[5:]))).flagged.tolist() == THREES[5:].tolist()
    wrong = hand_made()[0], hand_made()[1].flip(1)
    report = told_audit(twins, features=wrong)
    assert report.verdict == INCONCLUSIVE
    assert [e.what for e in report.errors] == ["training accuracy"]
    assert not report.evidence
    assert not len(report.flagged)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_given_features_may_be_of_another_precision(twins: Twins, dtype: torch.dtype) -> None:
    z, logits = hand_made(ramp(BAD))
    report = told_audit(twins, features=(z.to(dtype), logits.to(dtype)))
    assert report.flagged.tolist() == THREES[:7].tolist()
    assert report.scores["told"].dtype == torch.float32
    assert report.pictures[0].places.dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        lambda z, y: (z[1:], y), lambda z, y: (z, y[1:]), lambda z, y: (z[1:], y[1:]),
        lambda z, y: (z[:, 0], y), lambda z, y: (z, y[:, :9]), lambda z, y: (z, y.argmax(1)),
        lambda z, y: (z[:, :, None], y),
    ],
)  # fmt: skip
def test_features_of_something_else_are_refused(
    twins: Twins, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    with pytest.raises(BadInput, match="1200 samples and 10 classes") as error:
        told_audit(twins, features=change(*hand_made()))
    one_line(error)


def test_streamed_features_are_those_of_the_model_batch_by_batch(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "BATCH", 100)
    model, x = twins.clean.copy(), TRAIN.x[:250]
    told: list[float] = []
    z, logits = streamed(model, x, told.append)
    assert told == [0.4, 0.8, 1.0]
    with torch.no_grad():
        parts = [(model.features(b), model.logits(b)) for b in x.split(100)]
    assert torch.equal(z, torch.cat([p[0] for p in parts]))
    assert torch.equal(logits, torch.cat([p[1] for p in parts]))
    assert (z.dtype, z.requires_grad, len(z)) == (torch.float32, False, 250)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"detectors": "nothing"}, "there is no detector 'nothing'"),
        ({"detectors": "neural_cleanse"}, "there is no detector"),
        ({"detectors": "cross_confusio"}, "did you mean cross_confusion"),
        ({"detectors": ["cross_confusion", "cross-confusion"]}, "only once"),
        ({"detectors": [Told(), Told(bad=1)]}, "only once"),
        ({"detectors": []}, "at least one detector"),
        ({"alpha": 0.0}, "alpha"),
        ({"device": "nowhere"}, "device"),
        ({"clean": (torch.zeros(30, 3, 8, 8), torch.arange(30) % 10)}, "grey"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    twins: Twins, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says) as error:
        told_audit(twins, out=tmp_path / "out", **change)
    one_line(error)
    assert not (tmp_path / "out").exists(), "nothing half-written"


def test_samples_of_another_shape_are_refused(twins: Twins) -> None:
    with pytest.raises(BadInput, match="28 x 28") as error:
        audit(twins.clean, (torch.zeros(40, 1, 28, 28), torch.arange(40) % 10), Told(), device="cpu")
    one_line(error)


# ------------------------------------------------------------------ verdicts


def test_our_method_tells_a_poisoned_set_from_a_clean_one(
    table: None, found: Audit, unsuspicious: Audit
) -> None:
    _, _, bad, target = poisoned_digits()
    report = auditing.judge(found)
    assert report.verdict == BACKDOORED
    assert report.targets == (target,)
    (finding,) = report.findings
    assert finding.p_value == 1 / 40, "a conformal rank: above all 39"
    assert finding.threshold == 3.8
    assert finding.details["null"] == "39 unpoisoned sets of every kind"
    assert float(bad[report.flagged].double().mean()) > 0.6
    assert float(bad[report.kept].double().sum()) < 0.1 * float(bad.double().sum())
    assert torch.equal(report.labels[report.flagged], torch.full((len(report.flagged),), target))
    other = auditing.judge(unsuspicious)
    assert other.verdict == CLEAN
    (note,) = other.findings
    largest = max(float(e.values["statistic"] or 0) for e in other.evidence)
    assert (note.level, note.p_value) == (NOTE, (1 + sum(s >= largest for s in SCORES)) / 40)
    assert 2 / 40 < (note.p_value or 0) < 1
    assert len(other.flagged) == 0


def test_without_a_table_a_clean_set_is_clean(unsuspicious: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nulls, "tables", lambda: ())
    report = auditing.judge(unsuspicious)
    assert report.verdict == CLEAN
    assert [f.details["null"] for f in report.findings] == [UNCALIBRATED]
    assert report.kept.tolist() == list(range(len(TRAIN)))


@pytest.mark.parametrize(
    ("method", "skipped", "errors"),
    [
        (Told(reason="needs luck"), [Note("told", "needs luck")], []),
        (Told(broken=True), [], [Note("told", "failed: out of luck")]),
        (Corner(reason="needs luck"), [Note("corner", "needs luck")], []),
    ],
)
def test_a_set_that_nothing_looked_at_is_not_clean(
    twins: Twins,
    tmp_path: Path,
    method: SetDetector | SampleDetector,
    skipped: list[Note],
    errors: list[Note],
) -> None:
    report = told_audit(twins, detectors=method, out=tmp_path)
    assert (report.verdict, report.exit_status) == (INCONCLUSIVE, 3)
    assert (report.skipped, report.errors) == (skipped, errors)
    assert not report.scores
    assert not len(report.flagged)
    again = Audit.load(tmp_path)
    assert (again.verdict, again.skipped, again.errors) == (INCONCLUSIVE, skipped, errors)


def test_one_that_fails_leaves_a_clean_set_open_but_hides_no_finding(twins: Twins) -> None:
    assert told_audit(twins, detectors=[Told(bad=None), Other(broken=True)]).verdict == INCONCLUSIVE
    assert told_audit(twins, detectors=[Told(bad=None), Other(bad=None)]).verdict == CLEAN
    assert told_audit(twins, detectors=[Told(bad=None), Other(bad=None, reason="no")]).verdict == CLEAN
    report = told_audit(twins, detectors=[Told(), Other(broken=True)])
    assert (report.verdict, report.targets) == (BACKDOORED, (3,))


def test_two_detectors_share_alpha_and_flag_what_either_flags(twins: Twins) -> None:
    report = told_audit(twins, detectors=[Told(), Other(bad=4)], alpha=0.02)
    assert set(report.targets) == {3, 4}
    assert report.flagged.tolist() == sorted(BAD.tolist())
    assert {e.detector for e in report.evidence} == set(report.scores) == {"told", "other"}
    alone = told_audit(twins, alpha=0.01)
    assert {f.threshold for f in report.findings} == {alone.findings[0].threshold}


def test_a_table_too_small_for_alpha_leaves_it_open(found: Audit, table: None) -> None:
    report = auditing.judge(replace(found, settings={**found.settings}), 0.001)
    assert report.verdict == INCONCLUSIVE
    assert [f.level for f in report.findings] == [WARNING]
    assert not len(report.flagged)


def test_progress_is_told(twins: Twins) -> None:
    events: list[Event] = []
    told_audit(twins, features=None, on_event=events.append)
    assert {e.stage for e in events} == {"features", "told"}
    assert [e.done for e in events if e.stage == "told"] == [0, 0.5, 1]


# ------------------------------------------------------------------ detectors of inputs


def stamped() -> Data:
    """Digits of which the first 15 sevens have a bright corner."""
    x = TRAIN.x.clone()
    rows = torch.nonzero(TRAIN.y == 7).flatten()[:15]
    x[rows, 0, 5:, 5:] = 1
    return Data(x, TRAIN.y)


@pytest.mark.parametrize("known", [False, True])
def test_a_detector_of_inputs_audits_a_set(
    twins: Twins, table: None, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """It is judged class by class, by a table; it learns from clean samples, or from the set itself."""
    fitted: list[Data] = []
    monkeypatch.setattr(Corner, "fitted", fitted)
    monkeypatch.setattr(screened, "LEARNED", 300)
    clean = twins.data if known else None
    report = audit(twins.clean, stamped(), Corner(), device="cpu", clean=clean)
    assert report.verdict == BACKDOORED
    assert report.targets == (7,)
    rows = torch.nonzero(TRAIN.y == 7).flatten()[:15]
    assert report.flagged.tolist() == rows.tolist()
    assert torch.allclose(report.scores["corner"], brightness(stamped().x))
    assert [len(d) for d in fitted] == [len(twins.data) // 2 + 1 if known else 150]
    assert report.data["clean"] == (twins.data.source if known else None)
    assert [(f.code, f.p_value) for f in report.findings] == [("BSW210", 1 / 40)]
    assert audit(twins.clean, TRAIN, Corner(), device="cpu", clean=clean).verdict == CLEAN


def test_one_of_ours_can_be_judged_again_from_its_name(twins: Twins, tmp_path: Path) -> None:
    method = ConfusedExpert(experts=1, updates=10)
    report = audit(twins.clean, TRAIN[:300], method, device="cpu", out=tmp_path)
    assert report.settings["detectors"] == {"confused_expert": method.settings()}
    assert {f.code for f in report.findings} == {"BSW210"}
    again = auditing.judge(Audit.load(tmp_path), 0.3)
    assert again.settings["alpha"] == 0.3
    assert [f.score for f in again.findings[:1]] == [report.findings[0].score]


def test_settings_from_a_command_line_for_both_kinds() -> None:
    names = ["strip", "cross-confusion", "confused_expert"]
    found = configured(names, ["cross_confusion.rounds=3", "confused_expert.experts=1", "strip.overlays=5"])
    assert found == [Strip(overlays=5), CrossConfusion(rounds=3), ConfusedExpert(experts=1)]
    assert [type(m) for m in choose(found)] == [Screened, CrossConfusion, Screened]
    assert [m.name for m in choose(None)] == list(auditing.DEFAULT_AUDITS)
    assert auditing.usual(5000) != auditing.usual(5001) == auditing.DEFAULT_AUDITS
    assert choose("strip") == [Screened(Strip())]


@pytest.mark.parametrize(
    ("names", "setting", "says"),
    [
        (["cross_confusion"], "strip.overlays=5", "does not run"),
        (["strip"], "cross_confusion.rounds=3", "does not run"),
        (["strip"], "confused_expert.experts=3", "does not run"),
        (["cross_confusion"], "cross_confusion.nope=3", "no setting 'nope'"),
        (["strip"], "strip.nope=3", "no setting 'nope'"),
        (["cross_confusion"], "rounds", "NAME.FIELD=VALUE"),
        (["cross_confusion"], "cross_confusion.rounds=0", "at least 1"),
        (["confused_expert"], "confused_expert.experts=many", "cannot be 'many'"),
        (["nothing"], "cross_confusion.rounds=3", "there is no detector 'nothing'"),
    ],
)
def test_settings_that_cannot_be_are_one_line(names: list[str], setting: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as error:
        configured(names, [setting])
    one_line(error)


# ------------------------------------------------------------------ networks that are trained


def test_a_network_is_trained_where_there_is_none() -> None:
    for arch in ("digits_cnn", ARCH):
        state = torch.get_rng_state()
        model = trained(arch, TRAIN, 0, "cpu")
        assert torch.equal(state, torch.get_rng_state())
        assert (model.arch, model.classes, model.shape) == (arch, 10, (1, 8, 8))
        assert model.accuracy(TRAIN.x, TRAIN.y) > 0.95, "it has learned the set"
        assert "right on" in model.notes[-1]
        torch.rand(1)
        assert trained(arch, TRAIN, 0, "cpu").digest == model.digest, "the seed alone decides"
        assert trained(arch, TRAIN, 1, "cpu").digest != model.digest


def test_the_weights_of_own_code_follow_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "tuned", lambda twin, *_: twin)
    one, other = (trained(ARCH, TRAIN, s, "cpu") for s in (0, 1))
    assert one.digest != other.digest, "not what happened to be drawn before"


@pytest.mark.parametrize(
    ("arch", "data", "says"),
    [
        ("nothing", TRAIN, "there are digits_cnn, mnist_cnn"),
        ("ResNet", TRAIN, "there is no network 'ResNet'"),
        ("_Residual", TRAIN, "there is no network"),
        ("nn", TRAIN, "there is no network"),
        ("mnist_cnn", TRAIN, "does not take inputs"),
        ("no.such:thing", TRAIN, "no.such"),
        ("digits_cnn", Data(torch.zeros(40, 1, 8, 12), torch.arange(40) % 10), "square"),
    ],
)
def test_no_such_network_is_one_line(arch: str, data: Data, says: str) -> None:
    with pytest.raises(BadInput, match=says) as error:
        trained(arch, data, 0, "cpu")
    one_line(error)


def test_a_fresh_network_has_other_weights_and_learns(twins: Twins) -> None:
    model = twins.clean.copy()
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    recipe = Recipe(epochs=8, bf16=False)
    new = fresh(model, TRAIN, 0, recipe)
    assert new.accuracy(twins.data.x, twins.data.y) > 0.8
    assert all(not torch.equal(v, before[k]) for k, v in new.net.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())
    none = Recipe(epochs=1, lr=1e-12)
    one, same, other = (fresh(model, TRAIN[:64], s, none) for s in (0, 0, 1))
    assert one.digest == same.digest != other.digest
    assert one.accuracy(twins.data.x, twins.data.y) < 0.5, "nothing is left of what the model knows"


@pytest.mark.parametrize("known", [False, True])
def test_verify_trains_without_the_flagged_samples(
    twins: Twins, tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[tuple[Model, Data]] = []

    def scan(model: Model, data: Data, **_: Any) -> Report:
        scanned.append((model, data))
        return Report(evidence=[Evidence("d", "u")])

    monkeypatch.setattr(verifying, "scan", scan)
    learned: list[tuple[Data, int]] = []

    def train(data: Data, seed: int) -> Model:
        learned.append((data, seed))
        return twins.infected.copy()

    clean = twins.data if known else None
    report = told_audit(twins, verify=True, train=train, clean=clean, out=tmp_path)
    ((data, _),) = learned
    kept = TRAIN[report.kept]
    identity = {tuple(x) for x in TRAIN.x[THREES[:7]].flatten(1).tolist()}
    assert not identity & {tuple(x) for x in data.x.flatten(1).tolist()}, "flagged samples are not learned"
    again = report.retrained
    assert again is not None
    assert again.samples == len(data)
    if known:
        assert torch.equal(data.x, kept.x)
        measured = twins.data
        assert again.measured_on == "the clean samples"
    else:
        assert len(data) == len(kept) - round(0.1 * len(kept))
        left = {tuple(x) for x in data.x.flatten(1).tolist()}
        measured = kept[torch.tensor([tuple(x) not in left for x in kept.x.flatten(1).tolist()])]
        assert len(measured) == len(kept) - len(data), "what is measured on was not learned"
        assert again.measured_on == f"{len(measured)} kept samples, held out"
    assert again.accuracy_before == twins.clean.accuracy(measured.x, measured.y)
    assert again.accuracy_after == twins.infected.accuracy(measured.x, measured.y)
    loaded = Audit.load(tmp_path)
    assert loaded.retrained == again
    assert loaded.rescan is not None
    assert loaded.rescan["verdict"] == CLEAN
    ((fresh_one, some),) = scanned
    assert fresh_one.accuracy(measured.x, measured.y) == again.accuracy_after
    assert len(some) == (len(clean) if clean is not None else 1000)
    with np.load(tmp_path / str(loaded.rescan["data"])) as f:
        assert np.allclose(f["x"][..., 0] / 255, kept.x[:, 0].numpy(), atol=1 / 255)
        assert f["y"].tolist() == kept.y.tolist()
    assert load_file(tmp_path / str(loaded.rescan["model"])).keys() == twins.clean.net.state_dict().keys()
    assert told_audit(twins).retrained is None


# ------------------------------------------------------------------ files


@pytest.fixture
def saved(twins: Twins, tmp_path: Path) -> tuple[Audit, Path]:
    return told_audit(twins, detectors=[Told(), Other(bad=4)], out=tmp_path / "a"), tmp_path / "a"


def test_a_saved_audit_comes_back(saved: tuple[Audit, Path]) -> None:
    report, folder = saved
    again = Audit.load(folder)
    assert again.to_json() == report.to_json()
    assert again.to_json() == json.loads((folder / "report.json").read_text())
    assert again.scores.keys() == report.scores.keys()
    assert all(torch.equal(s, report.scores[k]) for k, s in again.scores.items())
    assert torch.equal(again.labels, TRAIN.y)
    assert torch.equal(again.flagged, report.flagged)
    assert torch.equal(again.kept, report.kept)
    assert {p.label: len(p.rows) for p in again.pictures} == {p.label: len(p.rows) for p in report.pictures}
    by = {p.label: p for p in again.pictures}
    for p in report.pictures:
        for name in ("rows", "places", "suspicious", "typical"):
            assert torch.equal(getattr(by[p.label], name), getattr(p, name)), name
        assert torch.allclose(by[p.label].pictures, p.pictures, atol=0.5 / 255 + 1e-6)
    assert not list(folder.glob("*.partial"))


def test_what_the_page_shows_of_a_class(saved: tuple[Audit, Path]) -> None:
    report, _ = saved
    assert {p.label for p in report.pictures} == {3, 4}
    shown = next(p for p in report.pictures if p.label == 3)
    assert sorted(shown.rows.tolist()) == THREES.tolist()
    assert set(shown.suspicious[:7].tolist()) == set(THREES[:7].tolist())
    assert not set(shown.typical.tolist()) & set(THREES[:7].tolist())
    assert torch.equal(shown.pictures, TRAIN.x[torch.cat([shown.suspicious, shown.typical])])
    assert shown.places.shape == (len(THREES), 2)


def test_the_map_follows_the_seed_and_leaves_the_callers_random_numbers(twins: Twins) -> None:
    places = []
    z = torch.randn((len(TRAIN), 30), generator=torch.Generator().manual_seed(0))
    for state in (0, 1):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        report = told_audit(twins, features=(z, hand_made()[1]))
        assert torch.equal(before, torch.get_rng_state())
        places.append(report.pictures[0].places)
    assert torch.equal(*places)


def test_the_lists_hold_every_sample_once(saved: tuple[Audit, Path]) -> None:
    report, folder = saved
    with (folder / "flagged.csv").open(newline="") as f:
        flagged = list(csv.DictReader(f))
    with (folder / "kept.csv").open(newline="") as f:
        kept = [int(row["index"]) for row in csv.DictReader(f)]
    assert list(flagged[0]) == ["index", "label", "told", "other"]
    indices = [int(row["index"]) for row in flagged]
    assert indices == report.flagged.tolist() == sorted(BAD.tolist())
    assert sorted(indices + kept) == list(range(len(TRAIN)))
    for row in flagged:
        assert int(row["label"]) == int(TRAIN.y[int(row["index"])])
        assert float(row["told"]) == float(row["other"]) == 1


def test_an_audit_is_judged_again_with_another_alpha(table: None, found: Audit, tmp_path: Path) -> None:
    auditing.judge(found, 0.05).save(tmp_path)
    again = auditing.judge(Audit.load(tmp_path), 0.01)
    assert (again.verdict, again.settings["alpha"]) == (INCONCLUSIVE, 0.01)
    again = auditing.judge(again, 0.05)
    assert again.verdict == BACKDOORED
    assert torch.equal(again.flagged, found.flagged)
    with pytest.raises(BadInput, match="alpha"):
        auditing.judge(again, 1.0)


def truncated(folder: Path) -> None:
    path = folder / TENSORS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(prefix: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        save_file({k: v for k, v in tensors.items() if not k.startswith(prefix)}, folder / TENSORS)

    return damage


def short(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        tensors[name] = tensors[name][1:].clone()
        save_file(tensors, folder / TENSORS)

    return damage


def changed(**parts: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        raw = json.loads((folder / "report.json").read_text())
        raw |= parts
        (folder / "report.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "gone"}))

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "damaged"),
        (lambda folder: (folder / TENSORS).write_bytes(b""), "damaged"),
        (lambda folder: (folder / TENSORS).unlink(), "cannot read"),
        (lambda folder: (folder / "report.json").unlink(), "cannot read"),
        (without("score/other"), "scores of a detector are missing"),
        (without("score/"), "scores of a detector are missing"),
        (without("labels"), "labels"),
        (without("class/3/places"), "class/3/places"),
        (short("labels"), "one for every label"),
        (short("score/told"), "one for every label"),
        (changed(audit="gone"), "audit"),
        (changed(audit=[]), "damaged"),
        (changed(audit={"retrained": {"accuracy": 1}}), "damaged"),
        (changed(schema=99), "schema 99"),
    ],
)
def test_a_damaged_audit_is_one_line(
    saved: tuple[Audit, Path], damage: Callable[[Path], None], says: str
) -> None:
    _, folder = saved
    damage(folder)
    with pytest.raises(BadInput, match=says) as error:
        Audit.load(folder)
    one_line(error)


def test_a_folder_that_cannot_be_written_is_one_line(saved: tuple[Audit, Path], tmp_path: Path) -> None:
    report, _ = saved
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="choose another folder") as error:
        report.save(tmp_path / "file" / "out")
    one_line(error)


# ------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def files(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both networks and both training sets."""
    folder = tmp_path_factory.mktemp("sets")
    model, data, _, _ = poisoned_digits()
    for name, net, samples in (("bad", model, data), ("good", twins.clean, TRAIN)):
        save_file(net.net.state_dict(), folder / f"{name}.safetensors")
        np.savez(folder / f"{name}.npz", x=samples.x.numpy(), y=samples.y.numpy())
    return folder


GIVEN = ("{f}/good.safetensors", "--data", "{f}/good.npz", "--arch", ARCH)
SETTINGS = ("--seed", 1, "--device", "cpu", "-d", "cross_confusion", "-p", "cross_confusion.lr=2e-4")


@pytest.mark.parametrize(("name", "expected"), [("bad", 1), ("good", 0)])
def test_a_command_says_whether_a_set_is_poisoned(
    shell: Shell,
    files: Path,
    tmp_path: Path,
    table: None,
    name: str,
    expected: int,
) -> None:
    out = tmp_path / "out"
    words = [files / f"{name}.safetensors", "--data", files / f"{name}.npz", "--arch", ARCH, "--out", out]
    status, stdout, stderr = shell("audit", *words, *SETTINGS)
    assert status == expected, stderr
    assert stdout.startswith("backdoored: class" if expected else "clean: no class")
    assert {p.name for p in out.iterdir()} == {
        "report.json", "report.html", "report.sarif", "flagged.csv", "kept.csv", TENSORS
    }  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["targets"] == ([poisoned_digits()[3]] if expected else [])
    assert report["audit"]["flagged"] + report["audit"]["kept"] == len(TRAIN)
    status, _, stderr = shell("show", out)
    assert status == expected
    assert "1,200 samples" in stderr
    assert ("poisoned class" in stderr) == bool(expected)
    assert shell("show", out, "--alpha", "0.0001")[0] == 3, "no p-value of 39 networks is so small"


def test_verify_tells_its_progress(twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taught(model: Model, _data: Data, _seed: int, tick: Callable[[float], None]) -> Model:
        tick(0.5)
        return model.copy()

    def scan(*_: Any, on_event: Callable[[Event], None], **__: Any) -> Report:
        on_event(Event("cascade", 0.7, 1, 0, 1.0))
        return Report()

    monkeypatch.setattr(auditing, "fresh", taught)
    monkeypatch.setattr(verifying, "scan", scan)
    heard: list[Event] = []
    told_audit(twins, verify=True, out=tmp_path, on_event=heard.append)
    shares = [e.share for e in heard]
    assert shares == sorted(shares), "the bar never runs backwards"
    training = [v for e, v in zip(heard, shares, strict=True) if e.stage == "verify"]
    assert len(set(training)) >= 2, "training moves it"
    assert shares[-1] > max(training), "and the scan does"


def test_a_command_trains_a_network(
    shell: Shell,
    files: Path,
    tmp_path: Path,
    twins: Twins,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nulls, "tables", lambda: ())
    np.savez(files / "clean.npz", x=twins.data.x.numpy(), y=twins.data.y.numpy())
    words = ["--data", files / "good.npz", "--train", "digits_cnn", "--clean", files / "clean.npz"]
    status, _, stderr = shell("audit", *words, "--verify", "--out", tmp_path / "out", "--device", "cpu")
    assert status == 0, stderr
    report = Audit.load(tmp_path / "out")
    assert report.model["arch"] == "digits_cnn"
    assert report.retrained is not None
    assert report.retrained.measured_on == "the clean samples"
    assert report.retrained.samples == len(report.kept)
    assert "a fresh network is right on" in " ".join(stderr.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "{f}/good.npz"], "--train"),
        ([*GIVEN, "--train", "digits_cnn"], "--train"),
        (["--data", "{f}/good.npz", "--train", "nothing"], "there is no network"),
        (["--data", "{f}/nowhere.npz", "--train", "digits_cnn"], "nowhere"),
        ([*GIVEN, "-d", "nothing"], "no detector"),
        ([*GIVEN, "-p", "strip.overlays=3"], "strip"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_is_one_line_and_status_2(
    shell: Shell,
    files: Path,
    tmp_path: Path,
    words: list[str],
    says: str,
) -> None:
    status, _, stderr = shell("audit", *(w.format(f=files) for w in words), "--out", tmp_path / "out")
    assert status == 2, stderr
    assert stderr.count("\n") == 1
    assert stderr.startswith("error: ")
    assert says in stderr
    assert not (tmp_path / "out").exists(), "nothing half-written"


def test_what_a_network_has_not_learned_is_said_and_no_set_is_called_clean_by_it(twins: Twins) -> None:
    z, logits = hand_made()
    wrong = torch.arange(len(TRAIN)) % 5 == 0
    logits[wrong] = logits[wrong].roll(1, 1)
    report = told_audit(twins, detectors=Told(bad=None), features=(z, logits))
    assert report.verdict == INCONCLUSIVE
    (note,) = report.errors
    assert "80.0%" in note.reason and "90% are needed" in note.reason
    assert told_audit(twins, features=(ramp(BAD)[:, None].expand(-1, 4), logits)).verdict == BACKDOORED


def test_too_few_samples_of_a_class_are_said_with_the_number_it_takes(twins: Twins) -> None:
    few = torch.cat([torch.nonzero(TRAIN.y == c).flatten()[: 15 if c < 3 else 40] for c in range(10)])
    z, logits = hand_made()
    report = told_audit(twins, detectors=Told(bad=None), data=TRAIN[few], features=(z[few], logits[few]))
    (note,) = report.skipped
    assert note.reason.startswith("3 of 10 classes have fewer than 20 samples")
    assert "200 in all, the set has 325" in note.reason


def test_training_goes_on_until_the_set_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    shifted: list[bool] = []
    right = iter([0.7, 0.9, 0.985])

    class Twin:
        def accuracy(self, _x: Tensor, _y: Tensor) -> float:
            return next(right)

    def tuned(_twin: Any, _data: Data, recipe: Recipe, *_: Any) -> Twin:
        epochs.append(recipe.epochs)
        shifted.append(recipe.augment is not None)
        return Twin()

    monkeypatch.setattr(learning, "tuned", tuned)
    whole: Any = None
    assert learning.learned(whole, TRAIN, 0)[1] == sum(epochs)
    assert [e / epochs[0] for e in epochs] == [1, 2, 4]
    assert epochs[0] * -(-len(TRAIN) // learning.RECIPE.batch_size) >= learning.UPDATES
    assert all(shifted)
    for some, cycles in (([0.91, 0.912], 2), ([0.6, 0.602], 3)):
        epochs.clear()
        right = iter(some)
        learning.learned(whole, TRAIN, 0)
        assert len(epochs) == cycles, "a cycle that gains nothing is the last one with shifts"
    assert shifted[-3:] == [True, True, False], "what is not learned is shown as it is"
