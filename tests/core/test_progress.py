"""One share of a whole command out of what its stages tell, and the time that is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from backsweep.cli.saying import opening
from backsweep.cli.terminal import Progress
from backsweep.core.progress import Event, OnEvent, Stage, Whole, split


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def heard(parts: list[OnEvent | None]) -> list[OnEvent]:
    assert all(p is not None for p in parts)
    return [p for p in parts if p is not None]


def test_parts_of_parts_make_one_whole() -> None:
    events: list[Event] = []
    first, second = heard(split(events.append, (1, 3)))
    inner = heard(split(second, (1, 1)))
    for part in (first, *inner):
        for done in (0, 1, 2):
            part(Event("x", done, 2, 0, 0.0))
    assert [e.share for e in events] == [0, 0.125, 0.25, 0.25, 0.4375, 0.625, 0.625, 0.8125, 1.0]
    assert split(None, (1, 2)) == [None, None]


def test_the_share_never_falls_though_a_stage_finds_more_to_do() -> None:
    whole, seen = Whole(), []
    (first, second) = heard(split(whole.told, (1, 1)))
    for done, total in ((0, 4), (3, 4), (3, 8), (6, 8), (8, 8)):
        first(Event("a", done, total, 0, 0.0))
        seen.append(whole.share)
    second(Event("b", 0, 0, 0, 0.0))
    assert seen == [0, 0.375, 0.375, 0.375, 0.5] and whole.share == 0.5


def test_an_undivided_stage_after_another_begins_anew() -> None:
    whole = Whole()
    whole.told(Event("shadows", 8, 8, 0, 0.0))
    assert whole.share == 1.0
    whole.told(Event("tuning", 1, 4, 0, 0.0))
    assert whole.share == 0.25


def test_the_plan_counts_first_and_the_pace_later() -> None:
    clock = Clock()
    whole = Whole(clock)
    assert whole.seconds_left is None
    whole.told(Event("a", 0, 10, 0, 0.0, "much", 100.0, (0.0, 0.5)))
    assert whole.expected == 200.0 and whole.seconds_left == pytest.approx(200.0)
    clock.now = 60.0
    whole.told(Event("a", 6, 10, 0, 0.0, span=(0.0, 0.5)))  # 0.3 in 60 s: 200 in all
    assert whole.seconds_left == pytest.approx(140.0)
    clock.now = 120.0  # slower than was planned
    whole.told(Event("a", 8, 10, 0, 0.0, span=(0.0, 0.5)))
    assert whole.seconds_left == pytest.approx(0.6 * 300.0)


def test_what_an_earlier_run_had_done_says_nothing_of_the_pace() -> None:
    clock = Clock()
    whole = Whole(clock)
    whole.told(Event("a", 5, 10, 5, 0.0))
    assert whole.seconds_left is None
    clock.now = 10.0
    whole.told(Event("a", 6, 10, 5, 0.0))
    assert whole.resumed == 0.5 and whole.seconds_left == pytest.approx(40.0)


def test_stages_one_after_another_share_the_whole() -> None:
    events: list[Event] = []
    stage = Stage(events.append, 2)
    stage.named("a")(0.5)
    stage.done()
    stage.named("b")(float("nan"))
    stage.done()
    assert [(e.stage, e.share) for e in events] == [
        ("a", 0), ("a", 0.25), ("a", 0.5), ("b", 0.5), ("b", 0.5), ("b", 1.0),
    ]  # fmt: skip


def test_a_terminal_shows_one_bar_and_the_estimate_before_it() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(screen) as on_event:
        rest = opening(on_event)
        for part in heard(split(rest, (1, 1))):
            part(Event("cascade", 0, 2, 0, 0.0, "10 classes: about 30 s", 30.0))
        for part in heard(split(rest, (1, 1))):
            part(Event("cascade", 1, 2, 0, 0.0))
            part(Event("cascade", 2, 2, 0, 0.0))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("10 classes: about 30 s") == 2 and "in all about 1 min" in text
    assert text.index("in all about") < text.rindex("100%")


def test_elsewhere_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Progress, "EVERY", 0.0)
    screen = Console(file=io.StringIO(), width=100)
    with Progress(screen) as on_event:
        on_event(Event("models", 3, 10, 1, 0.0))
    assert "models: 30%" in screen.file.getvalue()  # type: ignore[attr-defined]
    assert "1 from an earlier run" in screen.file.getvalue()  # type: ignore[attr-defined]
