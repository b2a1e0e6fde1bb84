"""Progress, for whoever listens."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Event:
    """Progress, for whoever listens (`on_event`).

    Attributes:
        stage: what is going on, e.g. a detector's name.
        done, total: units, in parts of a unit where known.
        resumed: units that an earlier run had already done.
        seconds: since the stage began.
        plan: what is going to be done, told once before it begins.
        expected: seconds that the plan is going to take, where known.
        span: from which share of the whole command to which this stage goes, each in [0, 1].
        seconds_left: estimate, None while nothing is known.
    """

    stage: str
    done: float
    total: int
    resumed: int
    seconds: float
    plan: str = ""
    expected: float | None = None
    span: tuple[float, float] = (0.0, 1.0)

    @property
    def share(self) -> float:
        """Of the whole command, in [0, 1], if all before this stage is done."""
        return self._at(self.done)

    @property
    def share_resumed(self) -> float:
        """Of the whole command, what an earlier run had done of this stage."""
        return self._at(self.resumed) - self.span[0]

    def _at(self, done: float) -> float:
        low, high = self.span
        return low + (high - low) * min(1.0, done / self.total) if self.total else low

    @property
    def seconds_left(self) -> float | None:
        fresh = self.done - self.resumed
        return self.seconds / fresh * (self.total - self.done) if fresh > 0 else None


OnEvent = Callable[[Event], None]


def counted(stage: str, total: int, resumed: int, on_event: OnEvent | None) -> Callable[[], None]:
    """Tells of a stage's progress now, with what an earlier run had done, and with one more at each call."""
    begin, counter = time.monotonic(), itertools.count(resumed)

    def tell() -> None:
        if on_event is not None:
            on_event(Event(stage, next(counter), total, resumed, time.monotonic() - begin))

    tell()
    return tell


def split(on_event: OnEvent | None, weights: Sequence[float]) -> list[OnEvent | None]:
    """A listener for each of several parts of a whole, one done after the other.

    Args:
        weights: about how long each takes, in any unit.
    """
    if on_event is None:
        return [None] * len(weights)
    ends = [0.0, *itertools.accumulate(weights)]
    whole = ends[-1] or 1.0
    return [_within(on_event, a / whole, b / whole) for a, b in itertools.pairwise(ends)]


def _within(on_event: OnEvent, low: float, high: float) -> OnEvent:
    def tell(event: Event) -> None:
        begin, end = (low + (high - low) * s for s in event.span)
        on_event(replace(event, span=(begin, end)))

    return tell


class Whole:
    """A command as a whole, from what its stages tell: which share is done, and the time that is left.

    The share never falls, though a stage may find more to do. A stage that says of no part which it is stands
    for all: where another such one begins, so does the whole.

    Attributes:
        share: what is done, in [0, 1].
        resumed: of that, what an earlier run had done.
        plans: how many were told.
    """

    SURE = 0.25  # share that is done from which on only the pace counts, and no longer the plan

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._stage = clock, ""
        self._start()

    def _start(self) -> None:
        self.share, self.plans, self._begin = 0.0, 0, self._clock()
        self._expected = self._planned = 0.0
        self._resumed: dict[tuple[str, tuple[float, float]], float] = {}

    def told(self, event: Event) -> None:
        """Take note of an event."""
        if event.plan:
            self.plans += 1
            if event.expected is not None:
                self._expected += event.expected
                self._planned += event.span[1] - event.span[0]
            return
        if event.span == (0.0, 1.0) and event.stage != self._stage and self.share > 0:
            self._start()
        self._stage = event.stage
        self.share = max(self.share, event.share)
        self._resumed[event.stage, event.span] = event.share_resumed

    @property
    def resumed(self) -> float:
        return sum(self._resumed.values())

    @property
    def expected(self) -> float | None:
        """Seconds that all of it takes, as planned; None where nothing was."""
        return self._expected / self._planned if self._planned else None

    @property
    def seconds_left(self) -> float | None:
        """None while nothing is known."""
        passed, fresh = self._clock() - self._begin, self.share - self.resumed
        pace = passed / fresh if fresh > 0 else None
        plan = None if self.expected is None else max(self.expected, passed)
        if pace is None or plan is None:
            takes = plan if pace is None else pace
        else:
            sure = min(1.0, fresh / self.SURE)
            takes = sure * pace + (1 - sure) * plan
        return None if takes is None else takes * (1 - self.share)


class Stage:
    """Progress of one thing after another.

    Args:
        count: how many things there are, each as large a part of the whole; 1: each is all of it.

    Attributes:
        part: the listener of what was begun last.
    """

    def __init__(self, on_event: OnEvent | None, count: int = 1) -> None:
        self._parts = iter(split(on_event, [1.0] * count)) if count > 1 else itertools.repeat(on_event)
        self.part: OnEvent | None = None
        self._name, self._begin = "", 0.0

    def named(self, name: str) -> Callable[[float], None]:
        """Begin with something; what is returned is told now and then which share of it is done."""
        self._name, self._begin, self.part = name, time.monotonic(), next(self._parts)
        self.tell(0.0)
        return self.tell

    def tell(self, share: float) -> None:
        """So much is done of what was begun last."""
        if self.part is not None:
            done = share if math.isfinite(share) else 0.0
            self.part(Event(self._name, done, 1, 0, time.monotonic() - self._begin))

    def done(self) -> None:
        """All of it."""
        self.tell(1.0)
