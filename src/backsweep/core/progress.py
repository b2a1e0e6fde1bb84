"""Progress, for whoever listens."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Progress, for whoever listens (`on_event`).

    Attributes:
        stage: what is going on, e.g. a detector's name.
        done, total: units, in parts of a unit where known.
        resumed: units that an earlier run had already done.
        seconds: since the stage began.
        plan: what is going to be done, told once before it begins.
        seconds_left: estimate, None while nothing is known.
    """

    stage: str
    done: float
    total: int
    resumed: int
    seconds: float
    plan: str = ""

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


class Stage:
    """Progress of one thing after another, each as a share of the whole."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event, self._name, self._begin = on_event, "", 0.0

    def named(self, name: str) -> Callable[[float], None]:
        """Begin with something; what is returned is told now and then which share of it is done."""
        self._name, self._begin = name, time.monotonic()
        self.tell(0.0)
        return self.tell

    def tell(self, share: float) -> None:
        """So much is done of what was begun last."""
        if self._on_event is not None:
            done = share if math.isfinite(share) else 0.0
            self._on_event(Event(self._name, done, 1, 0, time.monotonic() - self._begin))

    def done(self) -> None:
        """All of it."""
        self.tell(1.0)
