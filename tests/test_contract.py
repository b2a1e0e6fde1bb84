"""One contract for every plugin that is found; nothing is listed by hand."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch

import backsweep
from backsweep.auditing.audit import streamed
from backsweep.auditing.detector import SetDetector, TrainingSet
from backsweep.core.discovery import discover, find, make
from backsweep.core.errors import BadInput
from backsweep.core.method import Method
from backsweep.guarding.detector import SampleDetector
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.architectures import gap_cnn
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.repairing.method import Case, Repair
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence
from backsweep.scanning.collect import collect
from backsweep.scanning.detector import ModelDetector
from backsweep.zoo.attack import Attack, Setup
from backsweep.zoo.tasks import TASKS, Task, data_folder
from conftest import Twins

DETECTORS = discover(ModelDetector)
ATTACKS = discover(Attack)
REPAIRS = discover(Repair)
GUARDS = discover(SampleDetector)
SETS = discover(SetDetector)
METHODS: dict[str, type[Method]] = {**DETECTORS, **ATTACKS, **REPAIRS, **GUARDS, **SETS}


def ground(attack: Attack) -> tuple[Task, str]:
    """A task of inputs that an attack takes, and a small network for it."""
    if attack.modality == "image":
        return TASKS["digits"], "gap_cnn"
    if attack.modality == "table":
        return TASKS["mixed_table"], "table_mlp"
    if attack.modality == "sound":
        return TASKS["vowels"], "sound_cnn"
    if attack.modality == "language":
        pytest.importorskip("transformers")
        return TASKS["assistant"], "tiny_gpt2"
    task = "sst2" if attack.name in ("syntactic", "style") else "reviews"
    if task == "sst2" and not (data_folder() / "text").is_dir():
        pytest.skip("set BACKSWEEP_DATA to a folder with text/")
    return TASKS[task], "text_cnn"


def test_the_plugins_of_this_version_are_found() -> None:
    assert "neural_cleanse" in DETECTORS
    assert "badnets" in ATTACKS
    assert "contrastive_unlearning" in REPAIRS
    assert "activation_filter" in GUARDS


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_frozen_dataclass_with_a_name_and_a_page(name: str) -> None:
    cls = METHODS[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cls.name)
    assert cls.name == Path(inspect.getfile(cls)).stem
    assert 10 < len(cls.summary) < 80
    method = cls()
    settings = method.settings()
    assert settings == {f.name: getattr(method, f.name) for f in dataclasses.fields(cls)}
    assert cls(**settings) == method
    page = Path(__file__).parents[1] / "docs" / "methods" / f"{name.replace('_', '-')}.md"
    assert page.is_file(), f"{name} has no page {page.name}"
    assert len(inspect.getsource(inspect.getmodule(cls) or cls).splitlines()) <= 250
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, next(iter(settings), "name"), None)


def test_rule_ids_are_permanent_and_unique() -> None:
    codes = {cls.name: cls.code for cls in DETECTORS.values()}
    assert codes["neural_cleanse"] == "BSW101"
    assert len(set(codes.values())) == len(codes)
    assert all(re.fullmatch(r"BSW\d{3}", code) for code in codes.values())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_gives_evidence_for_every_unit_and_judges_it_without_the_model(
    name: str, twins: Twins, bank_file: Path, request: pytest.FixtureRequest
) -> None:
    quick = {"steps": 5, "seeds": 1, "bank": str(bank_file)}
    detector = make(ModelDetector, name, {k: quick[k] for k in quick if k in DETECTORS[name]().settings()})
    model = twins.clean.copy("cpu")
    if "takes images" in detector.applies(model, twins.data):  # it says that it needs other inputs
        for kind in ("text", "table", "language"):
            twins = request.getfixturevalue(f"{kind}_twins")
            model = twins.clean.copy("cpu")
            if not detector.applies(model, twins.data):
                break
        assert detector.applies(model, twins.data) == ""
    units = list(detector.units(model, twins.data))
    assert len({u.key for u in units}) == len(units)
    evidence = list(collect(detector, model, twins.data, seed=0, key="k"))
    assert [e.unit for e in evidence][: len(units)] == [u.key for u in units]
    later = detector.more(model, twins.data, evidence[: len(units)])
    assert [e.unit for e in evidence][len(units) :][: len(later)] == [u.key for u in later]
    assert len({e.unit for e in evidence}) == len(evidence)
    units += later
    for e in evidence:
        assert e.detector == name
        assert all(v is None or isinstance(v, int | float | bool | str) for v in e.values.values())
    findings = detector.judge(evidence, model.classes, 0.05)
    assert findings
    for f in findings:
        assert f.code == detector.code
        assert f.level in (ERROR, WARNING, NOTE)
        assert f.message
        assert f.p_value is None or 0 <= f.p_value <= 1
    rows = detector.rows(evidence, model.classes)
    assert len({(e.target, e.source) for e in rows}) == len(rows) >= 1
    # the same work in another order gives the same evidence
    again: dict[str, Evidence] = {}
    parts = [*detector.parts(model, units[: len(units) - len(later)]), *detector.parts(model, later)]
    assert sorted(u.key for part in parts for u in part) == sorted(u.key for u in units)
    for part in reversed(parts):
        again |= {e.unit: e for e in detector.probe(model, twins.data, part, 0, lambda share: None)}
    assert all(dict(again[e.unit].values) == dict(e.values) for e in evidence if e.unit in again)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_nothing_but_other_weights(name: str, tmp_path: Path, bank_file: Path) -> None:
    """The data set and the clean twin are lent; layout and integer buffers of the net are the twin's."""
    needs = {"bank": str(bank_file)} if "bank" in ATTACKS[name]().settings() else {}
    attack = make(Attack, name, needs)
    task, arch = ground(attack)
    data = task.load()[0][:400]
    before = data.digest
    setup = task.setup(data, 3, Recipe(epochs=1, batch_size=64, bf16=False), arch)
    net, again = setup.net(3), setup.net(3)
    planted = attack.plant(net, setup)
    attack.plant(again, setup)
    state, twin = net.state_dict(), setup.clean().state_dict()
    assert [(k, v.shape, v.dtype) for k, v in state.items()] == [
        (k, v.shape, v.dtype) for k, v in twin.items()
    ]
    for k, v in state.items():
        assert torch.equal(v, again.state_dict()[k]), "the same seed gives the same net"
        assert v.is_floating_point() or torch.equal(v, twin[k])
    assert any(not torch.equal(v, twin[k]) for k, v in state.items())
    assert not net.training
    assert all(p.requires_grad for p in net.parameters())
    data._digest = ""
    assert data.digest == before
    assert planted
    for i, trigger in enumerate(planted):
        x = trigger(data.x)
        assert x.shape == data.x.shape
        assert torch.equal(data.modality.samples(x).to(x), x), "it stays in the range of inputs"
        trigger.save(tmp_path / f"{i}.safetensors")
        loaded = Trigger.load(tmp_path / f"{i}.safetensors")
        assert torch.equal(loaded(data.x), x)
        assert (loaded.target, loaded.source, loaded.size) == (trigger.target, trigger.source, trigger.size)
        assert loaded.picture().size[0] >= 8


@pytest.mark.parametrize("name", ATTACKS)
def test_poison_changes_the_labels_of_its_rows_alone(name: str) -> None:
    attack, generator = make(Attack, name), torch.Generator().manual_seed(0)
    task, arch = ground(attack)
    if attack.modality == "image":
        task = dataclasses.replace(task, shape=(3, 16, 16))
        data = Data(torch.rand((400, 3, 16, 16), generator=generator), torch.arange(400) % 10)
    else:
        data = task.load()[0][:400]
    recipe = Recipe(epochs=1, bf16=False)

    def net(seed: int) -> torch.nn.Module:
        return task.net(seed, arch)

    setup = Setup(data, task.classes, net, recipe, 3, clean=lambda: fit(net(3), data, recipe, 3))
    try:
        poisoned, rows = attack.poison(setup, attack.triggers(setup))
    except NotImplementedError:
        pytest.skip("this attack does not work by poisoning alone")
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[rows] = False
    assert len(poisoned) == len(data)
    assert len(rows) == len(rows.unique()) > 0
    assert torch.equal(poisoned.y[kept], data.y[kept])
    assert not torch.equal(poisoned.x[rows], data.x[rows])


def _case(twins: Twins, repair: Repair, seen: list[float]) -> Case:
    """An attacked network to repair, with the planted trigger and the clean twin's weights."""
    model = twins.infected.copy("cpu")
    held_out, clean = twins.data.parted(0.25, 0)
    if not repair.of_classes:
        held_out, clean = (part.labelled_by(model.predict(part.x)) for part in (held_out, clean))
    origin = {k: p.detach() for k, p in twins.clean.copy("cpu").net.named_parameters()}
    return Case(
        model, clean, held_out, [twins.trigger], [(None, twins.trigger.target)], seed=1, tick=seen.append,
        origin=origin,
    )  # fmt: skip


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_gives_a_network_of_the_same_kind_and_leaves_the_suspect(
    name: str, request: pytest.FixtureRequest
) -> None:
    repair, seen = make(Repair, name), list[float]()
    kinds = ("twins", "table_twins") if repair.of_classes else ("language_twins",)
    cases = (_case(request.getfixturevalue(kind), repair, seen) for kind in kinds)
    case = next(c for c in cases if repair.applies(c) == "")
    model, clean = case.model, case.clean
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    repaired = repair.apply(case)
    state = repaired.net.state_dict()
    assert [(k, v.shape, v.dtype) for k, v in state.items()] == [
        (k, v.shape, v.dtype) for k, v in before.items()
    ]
    assert all(bool(torch.isfinite(v).all()) for v in state.values())
    assert all(torch.equal(v, model.net.state_dict()[k]) for k, v in before.items())
    assert not repaired.net.training
    assert not any(p.requires_grad for p in (*model.net.parameters(), *repaired.net.parameters()))
    assert all(0 <= share <= 1 for share in seen)
    assert repaired.predict(clean.x[:3]).shape == (3,)
    without = dataclasses.replace(case, triggers=[], aims=[])
    reason = repair.applies(without)
    assert reason == "" or "trigger" in reason


def test_settings_come_as_text_too() -> None:
    detector = make(ModelDetector, "Neural-Cleanse", {"preset": "paper", "steps": "7", "threshold": "0.9"})
    assert detector.settings() == {"preset": "paper", "threshold": 0.9, "steps": 7, "batch": None}
    assert make(ModelDetector, "neural_cleanse", {"steps": "none"}).settings()["steps"] is None


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("neural_clense", {}, "did you mean neural_cleanse"),
        ("nothing-like-it", {}, "there are: "),
        ("neural_cleanse", {"stepz": "1"}, "has no setting 'stepz'"),
        ("neural_cleanse", {"steps": "many"}, "cannot be 'many'"),
        ("neural_cleanse", {"preset": "quick"}, "none of standard, paper"),
    ],
)
def test_wrong_names_and_settings_are_one_line(name: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(BadInput, match=says) as e:
        make(ModelDetector, name, options)
    assert "\n" not in str(e.value)


def test_classes_can_be_imported_by_name() -> None:
    assert backsweep.detectors.NeuralCleanse is find(ModelDetector, "neural_cleanse")
    assert backsweep.attacks.BadNets is find(Attack, "badnets")
    assert backsweep.repairs.FinePruning is find(Repair, "fine_pruning")
    assert backsweep.detectors.ActivationFilter is find(SampleDetector, "activation_filter")
    with pytest.raises(AttributeError):
        _ = backsweep.detectors.Nothing


# ---------------------------------------------------------------------- detectors of samples and of sets


def training_set_of(twins: Twins) -> TrainingSet:
    """A small training set with the features of the infected twin; a fresh network is the twin itself."""
    data, model = twins.data, twins.infected.copy()
    features, logits = streamed(model, data.x)
    return TrainingSet(data, model.classes, features, logits, model, lambda _data, _seed: model, data)


@pytest.mark.parametrize("name", SETS)
def test_set_detectors_measure_every_class_and_touch_nothing(
    name: str, twins: Twins, request: pytest.FixtureRequest
) -> None:
    detector = SETS[name]()
    assert re.fullmatch(r"BSW\d{3}", detector.code)
    training_set = training_set_of(twins)
    if "images have none" in detector.applies(training_set):  # it says that it needs other inputs
        training_set = training_set_of(request.getfixturevalue("text_twins"))
    elif "needs BatchNorm" in detector.applies(training_set):
        net = Model(gap_cnn(10, 1, 8).eval(), twins.clean.shape, 10)
        training_set = training_set_of(dataclasses.replace(twins, infected=net))
    assert detector.applies(training_set) == ""
    before = training_set.model.digest
    scores, evidence = detector.measure(training_set)
    assert scores.shape == (len(training_set.data),)
    assert bool(torch.isfinite(scores).all())
    assert {e.target for e in evidence} == set(range(training_set.classes))
    assert all(e.detector == name for e in evidence)
    assert all(float(e.values["statistic"] or 0) >= 0 and "cut" in e.values for e in evidence)
    again, same = detector.measure(training_set)
    assert torch.equal(scores, again)
    assert [e.values for e in evidence] == [e.values for e in same]
    bare = training_set.model.copy()
    bare._digest = ""
    assert bare.digest == before or training_set.model.digest == before
    findings = detector.judge(evidence, training_set.classes, 0.05)
    assert findings, "the most suspicious class is said, at least as a note"
    assert {f.code for f in findings} == {detector.code}


@pytest.mark.parametrize("name", GUARDS)
def test_sample_detectors_score_an_input_on_its_own(name: str, twins: Twins) -> None:
    detector, model = GUARDS[name](), twins.infected.copy()
    triggers = [twins.trigger]
    if reason := detector.applies(model, twins.data, triggers):
        assert reason[0].islower() and len(reason) < 300
        pytest.skip(reason)
    assert detector.passes(model) >= 0
    scorer = detector.fit(model, twins.data, triggers)
    assert len(scorer.clean) > 0
    x = twins.data.x[:6]
    together = scorer(x)
    alone = torch.cat([scorer(one[None]) for one in x])
    slack = 0.2 if name == "cognitive_distillation" else 1e-3  # its steps follow the sign of the gradient
    assert torch.allclose(together, alone, atol=slack * float(1 + together.abs().max()), rtol=0)
    assert scorer(x[:0]).shape == (0,)
