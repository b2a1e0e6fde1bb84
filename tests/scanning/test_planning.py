"""A budget ends a scan without a verdict, the next goes on; the plan is told first."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

import backsweep
from backsweep.core.errors import BadInput
from backsweep.core.progress import Event
from backsweep.core.text import duration, seconds_of
from backsweep.engine.engine import Engine
from backsweep.models.model import Model
from backsweep.models.washing import MOST_UPDATES
from backsweep.scanning.cascade.schedule import EFFORTS
from backsweep.scanning.cascade.screens import TRIED
from backsweep.scanning.detector import ModelDetector, Stage
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.scanning.detectors.mm_bd import MmBd
from backsweep.scanning.planning import seconds, stages
from conftest import Twins
from shells import Shell

FAST = Cascade(spaces="sparse+late", pairs=False, steps=4, batch=4)
SPACES = ("dense", "sparse", "tone", "early", "late")


def test_a_budget_ends_in_no_verdict_and_the_next_scan_goes_on(
    twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    probe = Cascade.probe

    def slow(self: Cascade, *args: object) -> object:
        clock[0] += 40.0
        return probe(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Cascade, "probe", slow)
    how = {"device": "cpu", "out": tmp_path, "engine": Engine()}
    short = backsweep.scan(twins.infected, twins.data, FAST, budget=60.0, **how)  # type: ignore[arg-type]
    assert short.verdict == "inconclusive"
    assert (short.findings, short.evidence) == ([], [])
    assert "budget of 60 s ended: 20 of " in short.errors[0].reason
    whole = backsweep.scan(twins.infected, twins.data, FAST, **how)  # type: ignore[arg-type]
    alone = backsweep.scan(twins.infected, twins.data, FAST, device="cpu", engine=Engine())
    assert [(e.unit, e.values) for e in whole.evidence] == [(e.unit, e.values) for e in alone.evidence]
    assert not whole.errors


def test_what_was_not_begun_in_time_is_said_too(twins: Twins) -> None:
    report = backsweep.scan(twins.clean, twins.data, [FAST, "mm_bd"], budget=1e-9, device="cpu")
    assert [n.what for n in report.errors] == ["cascade", "mm_bd"]
    assert report.verdict == "inconclusive"


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_some_time(wrong: float, twins: Twins) -> None:
    with pytest.raises(BadInput, match="budget"):
        backsweep.scan(twins.clean, twins.data, FAST, budget=wrong, device="cpu")


@pytest.mark.parametrize("second", [0.3, 1.0])
def test_the_plan_comes_first_and_the_share_that_is_done_never_shrinks(twins: Twins, second: float) -> None:
    events: list[Event] = []
    method = replace(FAST, second=second)
    backsweep.scan(twins.clean, twins.data, method, device="cpu", on_event=events.append)
    first, plan, *later = events
    assert first.stage == "clean samples"
    assert "a patch to look at: about " in plan.plan and plan.expected and plan.expected > 0
    assert not any(e.plan for e in later)
    shares = [e.done / e.total for e in later]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_all_detectors_and_the_second_opinion_are_parts_of_one_whole(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MmBd, "plan", lambda *_: [Stage("ways up", 10, 1e4)])
    events: list[Event] = []
    methods: list[str | ModelDetector] = [MmBd(images=2, steps=4), "htell"]
    backsweep.scan(
        twins.clean, twins.data, methods, device="cpu", confirm=True, on_event=events.append,
        engine=Engine(),
    )  # fmt: skip
    plans = [e for e in events if e.plan]
    assert events[1] is plans[0] and len(plans) == 2 and plans[0].expected
    names = ["clean samples", "mm_bd", "htell"]
    assert list(dict.fromkeys(e.stage for e in events)) == [*names, *(f"{n}, second opinion" for n in names)]
    shares = [e.share for e in events if not e.plan]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    # one without a plan is taken to need as long as the other, and each opinion is half
    widths = [e.span[1] - e.span[0] for e in plans]
    assert widths == pytest.approx([20 / 81, 20 / 81 * 40 / 41])


def test_an_effort_is_for_those_that_know_it(twins: Twins) -> None:
    report = backsweep.scan(twins.clean, twins.data, [FAST, "htell"], effort="quick", device="cpu")
    assert report.settings["detectors"]["cascade"]["effort"] == "quick"
    assert "effort" not in report.settings["detectors"]["htell"]
    with pytest.raises(BadInput, match="quick, standard, thorough"):
        backsweep.scan(twins.clean, twins.data, FAST, effort="lazy", device="cpu")


def test_cost_grows_far_more_slowly_than_the_classes() -> None:
    def cost(classes: int) -> float:
        plan = stages(EFFORTS["standard"], SPACES, classes, classes, 5 * classes, reference=True)
        return sum(s.passes for s in plan)

    assert cost(100) < 3 * cost(10)
    assert cost(1000) < 10 * cost(10)
    quick, usual, thorough = (
        sum(s.passes for s in stages(EFFORTS[e], SPACES, 100, 100, 1000, reference=True))
        for e in ("quick", "standard", "thorough")
    )
    assert 1.5 * quick < usual < thorough / 1.5


def test_a_reference_that_is_trained_whole_is_planned_as_such() -> None:
    full, kept = (
        sum(s.passes for s in stages(replace(EFFORTS["full"], kept=k), SPACES, 10, 10, 1000, reference=True))
        for k in (False, True)
    )
    assert full > kept + 1.5 * MOST_UPDATES  # 4 forward passes of an update's input, and not 1.5


def test_what_a_scan_uses_is_what_was_planned(twins: Twins) -> None:
    method = replace(FAST, spaces="sparse", effort="full")  # early stopping leaves out some
    report = backsweep.scan(twins.clean, twins.data, method, device="cpu", engine=Engine())
    used = sum(int(e.values.get("passes") or 0) for e in report.evidence if e.unit.startswith("class-"))
    planned = method.plan(twins.clean.copy("cpu"), twins.data)[0].passes
    tried = TRIED * twins.clean.classes
    assert 0.5 * (planned - tried) < 2 * used <= planned - tried


def test_an_estimate_is_that_of_the_passes(twins: Twins) -> None:
    model: Model = twins.clean.copy("cpu")
    plan = FAST.plan(model, twins.data)
    begin = time.perf_counter()
    one, two = (seconds(plan, model, twins.data, threads) for threads in (1, 2))
    assert time.perf_counter() - begin < 60
    assert one > 0 and two > 0


@pytest.mark.parametrize(("text", "many"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations(text: str, many: float) -> None:
    assert seconds_of(text) == many


def test_durations_as_people_say_them() -> None:
    assert [duration(s) for s in (4.2, 61, 3600 * 3 + 59)] == ["4 s", "1 min 01 s", "3 h 00 min"]


def test_from_the_shell(shell: Shell, tmp_path: Path, twins: Twins) -> None:
    status, _, err = shell("scan", "nowhere.pt", "--data", "nowhere.npz", "--budget", "soon")
    assert status == 2
    assert "soon" in err
