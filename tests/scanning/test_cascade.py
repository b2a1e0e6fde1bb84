"""The default scan: catches the planted twin, passes the clean one, and looks closer where it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import backsweep
from backsweep.core.errors import BadInput
from backsweep.models import washing
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Report
from backsweep.scanning.cascade.halving import cells_of, chosen, standing_cells
from backsweep.scanning.cascade.schedule import EFFORTS, LOOKS, REFERENCES
from backsweep.scanning.cascade.screens import Screen
from backsweep.scanning.collect import collect
from backsweep.scanning.detector import Unit
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.zoo.build import Entry, build_net, load_data
from conftest import Twins

STANDARD = EFFORTS["standard"]


@pytest.fixture(scope="module")
def reports(twins: Twins) -> dict[str, Report]:
    found = {n: backsweep.scan(getattr(twins, n), twins.data, device="cpu") for n in ("infected", "clean")}
    for report in found.values():
        assert "cascade" in report.settings["detectors"]
        report.evidence = [e for e in report.evidence if e.detector == "cascade"]
        backsweep.judge(report)
    return found


def test_tells_the_twins_apart_by_default(twins: Twins, reports: dict[str, Report]) -> None:
    bad, good = reports["infected"], reports["clean"]
    assert (bad.verdict, bad.targets) == ("backdoored", (twins.trigger.target,))
    assert (good.verdict, good.targets) == ("clean", ())
    assert good.p_value is not None
    assert bad.p_value is not None
    assert bad.p_value <= 0.05 < good.p_value
    top = bad.findings[0]
    assert top.trigger is not None
    assert (top.attack_success_rate or 0) > 0.9
    trial = next(e for e in bad.evidence if e.unit.startswith("trigger"))
    assert float(trial.values["reference_success_rate"] or 0) < 0.5, (
        "a planted trigger works on the suspect alone"
    )


def test_the_stages_follow_each_other(reports: dict[str, Report]) -> None:
    kinds = [e.unit.split("-")[0] for e in reports["clean"].evidence]
    assert list(dict.fromkeys(kinds)) == ["class", "pupil", "reference", "pairs", "closer", "trigger"]
    assert kinds.count("class") == kinds.count("reference") == kinds.count("pupil") == 50
    assert kinds.count("pairs") == 10
    assert kinds.count("closer") == 2 * STANDARD.closer
    assert kinds.count("trigger") == 1


def test_parts_can_be_left_out(twins: Twins) -> None:
    model = twins.clean.copy("cpu")
    bare = Cascade(spaces="dense", pairs=False, reference=False, steps=4, batch=4)
    evidence = list(collect(bare, model, twins.data, seed=0, key="k"))
    assert [e.unit.split("-")[0] for e in evidence] == ["class"] * 10 + ["trigger"]
    assert not model.references, "no reference is made that nobody asked for"
    (first, *_) = bare.judge(evidence, 10, 0.05)
    assert set(first.details) == {"z_dense"}


@pytest.mark.parametrize("wrong", [{"spaces": "dense+dens"}, {"steps": 1}, {"batch": 0}, {"second": 2}])
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"spaces|at least|between 0 and 1"):
        Cascade(**wrong)  # type: ignore[arg-type]


def records(classes: int, small: dict[int, float], pairs: dict[tuple[int, int], float]) -> list[Evidence]:
    """Evidence of a network whose classes and pairs are as in the reference, but for the given ones."""
    found = []
    jitter = torch.rand((classes, 10), generator=torch.Generator().manual_seed(0)) * 0.2
    for i, space in enumerate(("dense", "sparse", "tone", "early", "late")):
        for t in range(classes):
            size = 2 + 0.1 * t + float(jitter[t, i])
            works = [{"works": w} if i < 3 else {} for w in (1.0, 0.0 if t in small else 0.9)]
            own = {"log_size": size - small.get(t, 0), **works[0]}
            found.append(Evidence("cascade", f"class-{space}-{t}", t, None, dict(own)))
            there = {"log_size": 2 + 0.1 * t + float(jitter[t, i + 5]), **works[1]}
            for kind in REFERENCES:
                found.append(Evidence("cascade", f"{kind}-{space}-{t}", t, None, dict(there)))
    for s in range(classes):
        cells = {f"to_{t}": 3.0 - pairs.get((s, t), 0.0) + 0.01 * t for t in range(classes) if t != s}
        found.append(Evidence("cascade", f"pairs-{s}", None, s, dict(cells)))
    standing, usual = standing_cells(found, STANDARD)
    for s_, t in (*standing, *usual):
        values: dict[str, float | int | bool | str | None] = {
            "log_size": 3.0 - pairs.get((s_ or 0, t), 0.0), "reference_log_size": 3.0,
        }  # fmt: skip
        found.append(Evidence("cascade", f"closer-{s_}-{t}", t, s_, values))
    trial: dict[str, float | int | bool | str | None] = {
        "norm": 9.0, "reached": True, "attack_success_rate": 0.97, "reference_success_rate": 0.1,
        "accuracy": 0.9, "reference_accuracy": 0.88,
    }  # fmt: skip
    return [*found, Evidence("cascade", "trigger-4", 4, None, trial)]


def test_one_target_is_found_in_every_space() -> None:
    (found, *_) = Cascade().judge(records(10, {4: 1.5}, {}), 10, 0.05)
    assert (found.level, found.target, found.source) == (ERROR, 4, None)
    assert "97%" in found.message
    assert "on the reference for 10%" in found.message


def test_a_source_specific_backdoor_names_its_source() -> None:
    (found, *_) = Cascade().judge(records(10, {}, {(7, 2): 2.0}), 10, 0.05)
    assert (found.level, found.target, found.source) == (ERROR, 2, 7)


def test_all_to_all_is_several_targets_each_with_its_source() -> None:
    cells = {(s, (s + 1) % 10): 2.0 for s in range(10)}
    found = Cascade().judge(records(10, {}, cells), 10, 0.05)
    flagged = [(f.source, f.target) for f in found if f.level == ERROR]
    assert len(flagged) == STANDARD.closer
    assert set(flagged) <= set(cells)


def test_a_clean_network_is_a_note() -> None:
    findings = Cascade().judge(records(10, {}, {}), 10, 0.05)
    assert [f.level for f in findings] == [NOTE]
    assert findings[0].p_value is not None
    assert findings[0].p_value > 0.2


def first_look(evidence: list[Evidence]) -> list[Evidence]:
    """As it is before there are two more references, and before a patch was inverted."""
    return [e for e in evidence if not e.unit.startswith((*LOOKS[1], "trigger"))]


def test_what_a_first_look_suspects_gets_two_more_references_and_nothing_else_does(twins: Twins) -> None:
    model, suspicious = twins.clean.copy("cpu"), first_look(records(10, {4: 1.5}, {}))
    following = Cascade().more(model, twins.data, suspicious)
    assert {u.key.split("-")[0] for u in following} == set(LOOKS[1])
    assert len(following) == 2 * 5 * 10
    (unit,) = Cascade().more(model, twins.data, records(10, {4: 1.5}, {})[:-1])
    assert unit.key == "trigger-4", "after the second look comes the patch"
    (unit,) = Cascade().more(model, twins.data, first_look(records(10, {}, {})))
    assert unit.key.startswith("trigger"), "nothing is suspicious: no second look"
    (unit,) = Cascade(second=0.0).more(model, twins.data, suspicious)
    assert unit.key == "trigger-4", "no second look is asked for"
    always = Cascade(second=1.0).more(model, twins.data, first_look(records(10, {}, {})))
    assert {u.key.split("-")[0] for u in always} == set(LOOKS[1])


def test_two_looks_judge_together_and_it_is_said_when_they_differ() -> None:
    (one,) = Cascade().judge(first_look(records(10, {4: 1.5}, {})), 10, 0.05)
    assert "first_look" not in one.details
    (both, *_) = Cascade().judge(records(10, {4: 1.5}, {}), 10, 0.05)
    assert both.details["first_look"] == one.p_value
    assert "second look, at two more references, agrees" in both.message
    assert "one works for 100% of samples here, and for 0% in references" in both.message
    natural = [  # class 4 is as easy in the two more
        replace(e, values={**e.values, "log_size": float(e.values["log_size"] or 0) - 3.0, "works": 1.0})
        if e.target == 4 and e.unit.startswith(LOOKS[1]) else e
        for e in records(10, {4: 1.5}, {})
    ]  # fmt: skip
    (found, *_) = Cascade().judge(natural, 10, 0.05)
    assert found.level == NOTE, "what is natural in two of four references is not called"


def test_what_is_easy_in_the_reference_too_is_a_natural_shortcut() -> None:
    evidence = records(10, {}, {})
    easy = [
        replace(e, values={**e.values, "log_size": float(e.values["log_size"] or 0) - 3.0})
        if e.target == 8 and e.unit.split("-")[0] in ("class", *REFERENCES) else e
        for e in evidence
    ]  # fmt: skip
    findings = Cascade().judge(easy, 10, 0.05)
    assert [(f.code, f.level, f.target) for f in findings if f.code == "BSW111"] == [("BSW111", NOTE, 8)]
    assert all(f.level == NOTE for f in findings)
    planted = [e if e.unit.startswith(REFERENCES) else s for e, s in zip(evidence, easy, strict=True)]
    assert not [f for f in Cascade().judge(planted, 10, 0.05) if f.code == "BSW111"]


def test_two_classes_and_a_weak_reference_cannot_be_told() -> None:
    two = [
        Evidence("cascade", f"{kind}-dense-{t}", t, None, {"log_size": float(t)})
        for kind in ("class", *REFERENCES) for t in range(2)
    ]  # fmt: skip
    (found, *_) = Cascade(spaces="dense").judge(two, 2, 0.05)
    assert (found.level, found.p_value) == (WARNING, None)
    evidence = records(10, {4: 1.5}, {})
    weak = {**evidence[-1].values, "reference_accuracy": 0.2}
    evidence[-1] = Evidence("cascade", "trigger-4", 4, None, weak)
    (found, *_) = Cascade().judge(evidence, 10, 0.05)
    assert found.level == WARNING
    assert "--reference" in found.message


def test_where_a_pupil_learned_too_little_the_washed_copy_alone_judges_beside_networks_compared_so(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(washing, "PUPIL", (1, 64, 1e-6))
    model = twins.infected.copy("cpu")
    screen = Screen(model, twins.data, "cascade", 0, replace(STANDARD, steps=4, batch=4))
    found = screen.classes("dense", [Unit("pupil-dense-3", 3)], "pupil")
    assert found[0].values["log_size"] is None
    evidence = [
        Evidence(e.detector, e.unit, e.target, e.source, {"log_size": None})
        if e.unit.startswith("pupil-") else e
        for e in records(10, {4: 1.5}, {})
    ]  # fmt: skip
    (usual,), (short,) = (Cascade().judge(e, 10, 0.05) for e in (records(10, {4: 1.5}, {}), evidence))
    assert usual.target == short.target == 4
    assert "washed copy alone" in short.message and "washed copy alone" not in usual.message
    assert short.details["null"] != usual.details["null"], "more networks were compared with one reference"
    assert short.p_value is not None and usual.p_value is not None and short.p_value > usual.p_value
    first = [e for e in evidence if "2-" not in e.unit.partition("-")[0] + "-" and "trigger" not in e.unit]
    following = Cascade().more(model, twins.data, first)
    assert [u.key for u in following] == ["trigger-4"], "another pupil would not learn more: no second look"
    unlike = [e for e in evidence if not e.unit.startswith("reference-")]
    assert not Cascade().judge(unlike, 10, 0.05)[0].details.get("null")


def looked(classes: int, small: dict[str, int]) -> list[Evidence]:
    """Evidence of a look at all classes, in which one class of each space stands out."""
    found = []
    for space in ("dense", "sparse", "tone", "early", "late"):
        sizes = 2 + torch.rand(classes, generator=torch.Generator().manual_seed(len(space)))
        for t, size in enumerate(sizes.tolist()):
            values: dict[str, float | int | bool | str | None] = {
                "log_size": 0.0 if small.get(space) == t else size
            }
            found.append(Evidence("cascade", f"look-{space}-{t}", t, None, values))
    head = {f"class_{t}": 9.0 if small.get("head") == t else 0.0 for t in range(classes)}
    return [*found, Evidence("cascade", "head", None, None, dict(head))]


def test_of_many_classes_a_look_chooses_those_that_are_measured(twins: Twins) -> None:
    small = {"dense": 3, "sparse": 40, "tone": 17, "early": 31, "late": 8, "head": 22}
    evidence = looked(43, small)
    here = chosen(evidence, STANDARD)
    assert len(here) == STANDARD.suspects + STANDARD.others == len(set(here))
    assert set(small.values()) <= set(here), "the first of every space, and of what the head says"
    units = Cascade().more(twins.clean.copy("cpu"), twins.data, evidence)
    assert {u.target for u in units if u.key.startswith("class-")} == set(here)
    assert {u.key.split("-")[0] for u in units} == {"class", "reference", "pupil", "pairs"}
    assert {u.target for u in units if u.key.startswith("reference-")} == set(here)


def test_others_are_spread_over_all_that_do_not_stand_out() -> None:
    here = chosen(looked(1000, {"late": 500}), STANDARD)
    again = chosen(looked(1000, {"late": 501}), STANDARD)
    assert 500 in here and 501 not in here and 501 in again
    assert len(here) == STANDARD.suspects + STANDARD.others


def test_many_classes_are_looked_at_first_and_few_are_not(twins: Twins) -> None:
    model = twins.clean.copy("cpu")
    units = Cascade().units(model, twins.data)
    assert {u.key.split("-")[0] for u in units} == {"class", "reference", "pupil", "pairs"}
    slow = [i for i, u in enumerate(units) if u.key.split("-")[0] in ("reference", "pupil")]
    assert units[slow[0]].key == "pupil-dense-0", "what learns longest begins first"
    assert {u.key.rpartition("-")[0] for u in units[10:30]} == {"pupil-dense", "reference-dense"}, (
        "and both at once"
    )
    model.classes = 43
    kinds = [u.key.split("-")[0] for u in Cascade().units(model, twins.data)]
    assert kinds.count("look") == 5 * 43 and kinds.count("head") == 1
    assert {u.key.rpartition("-")[0] for u in Cascade(effort="quick").units(model, twins.data)} == {
        "look-late",
        "",
    }
    full = {u.key.split("-")[0] for u in Cascade(effort="full").units(model, twins.data)}
    assert full == {"class", "reference", "pairs"}


def test_pairs_that_stand_out_are_looked_at_again() -> None:
    evidence = [
        Evidence("cascade", f"pairs-{s}", None, s, {f"to_{t}": 3.0 for t in range(10) if t != s})
        for s in range(10)
    ]
    first, usual = standing_cells(evidence, STANDARD)
    assert len(first) == len(usual) == STANDARD.closer and not set(first) & set(usual)
    again = [
        Evidence("cascade", f"cells-{s}-{t}", t, s, {"log_size": 0.5 if (s, t) == (7, 2) else 3.0})
        for s, t in cells_of(evidence, "pairs")
    ]
    assert standing_cells([*evidence, *again], STANDARD)[0][0] == (7, 2)


def test_what_version_0_1_recorded_means_what_it_meant() -> None:
    old = {"spaces": "dense", "pairs": True, "reference": True, "steps": 20, "batch": 12}
    assert Cascade.completed(old)["effort"] == "full"
    new = Cascade(effort="quick").settings()
    assert Cascade.completed(new) == new


@pytest.mark.parametrize("effort", ["quick", "thorough", "full"])
def test_every_effort_tells_the_twins_apart(effort: str, twins: Twins) -> None:
    fast = Cascade(effort=effort, spaces="sparse+late", steps=16, batch=12)  # fewer: p hangs on rounding
    bad = backsweep.scan(twins.infected, twins.data, fast, device="cpu")
    good = backsweep.scan(twins.clean, twins.data, fast, device="cpu")
    assert twins.trigger.target in bad.targets
    assert good.targets == ()


def test_the_plan_says_how_many_units_there_will_be(twins: Twins) -> None:
    small = Cascade(steps=4, batch=4)
    for detector in (replace(small, second=1.0), replace(small, second=0.0), replace(small, reference=False)):
        model = twins.clean.copy("cpu")
        plan = detector.plan(model, twins.data)
        evidence = list(collect(detector, model, twins.data, seed=0, key="k"))
        assert sum(stage.units for stage in plan) == len(evidence)
        assert all(stage.passes > 0 for stage in plan)


def test_a_reference_of_the_user_is_used_and_checked(twins: Twins) -> None:
    fast = Cascade(spaces="dense", pairs=False, steps=6, batch=8)
    report = backsweep.scan(twins.infected, twins.data, fast, device="cpu", reference=twins.clean)
    assert report.settings["reference"] == twins.clean.digest
    with pytest.raises(BadInput, match="the model itself"):
        backsweep.scan(twins.clean, twins.data, fast, device="cpu", reference=twins.clean)
    blind = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.nn.init.zeros_(blind[1].weight)  # type: ignore[arg-type]  # one constant answer, whatever the draw
    with pytest.raises(BadInput, match="no better than one constant answer"):
        backsweep.scan(twins.clean, twins.data, fast, device="cpu", reference=blind)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7))
    with pytest.raises(BadInput, match="7 classes"):
        backsweep.scan(twins.clean, twins.data, fast, device="cpu", reference=other)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where networks are built beside their clean twin, which is trained once."""
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def unattacked(zoo: Path) -> Report:
    """What is said of that twin."""
    twin = build_net(Entry("digits", None, 5, {}, {"epochs": 30}), zoo)
    return backsweep.scan(twin.model(), load_data("digits")[1], "cascade", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "options", "effort"),  # the standard effort looks too briefly at the pairs of this one
    [
        ("tact", {"rate": 0.03, "cover_rate": 0.03}, "thorough"),
        ("blended", {}, "standard"),
        ("chessboard", {"d": 0.3}, "standard"),
    ],
)
def test_other_kinds_of_trigger_on_digits(
    attack: str, options: dict[str, object], effort: str, unattacked: Report, zoo: Path
) -> None:
    net = build_net(Entry("digits", attack, 5, dict(options), {"epochs": 30}), zoo)
    report = backsweep.scan(net.model(), load_data("digits")[1], Cascade(effort=effort), device="cpu")
    first = report.findings[0]
    assert (first.target, first.source) == (net.triggers()[0].target, net.triggers()[0].source)
    assert (first.score or 0) > (unattacked.findings[0].score or 0)
    assert unattacked.verdict == "clean"


def test_nothing_is_called_clean_that_has_more_classes_than_any_clean_network_that_was_measured() -> None:
    (few, *_) = Cascade().judge(first_look(records(12, {}, {})), 12, 0.05)
    (many, *_) = Cascade().judge(first_look(records(12, {}, {})), 1000, 0.05)
    assert few.level == NOTE
    assert many.level == WARNING and many.message.startswith("cannot tell: of 1000 classes")
