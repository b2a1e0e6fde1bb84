"""Progress, for whoever listens."""

from __future__ import annotations

import itertools
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
