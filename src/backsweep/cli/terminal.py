"""The terminal: where text and progress go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

from backsweep.core.text import duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from backsweep.core.progress import Event, OnEvent


def console(stderr: bool = True) -> Console:
    """Text and progress go to stderr; what was asked for as text to stdout."""
    return Console(stderr=stderr)


class Progress:
    """Shows events on stderr: a bar in a terminal, elsewhere a line now and then."""

    EVERY = 30.0  # seconds between two lines

    def __init__(self, screen: Console | None = None) -> None:
        self._console = screen if screen is not None else console()

    def __enter__(self) -> OnEvent:
        self._bar: Bar | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last = time.monotonic()
        return self._bar_event if self._console.is_terminal else self._line_event

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _bar_event(self, event: Event) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        if event.plan:
            self._console.print(f"{event.stage}: {event.plan}", markup=False, highlight=False)
            return
        if self._bar is None:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        text = self._text(event)
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bar.add_task(event.stage, total=event.total, text=text)
        self._bar.update(self._tasks[event.stage], completed=event.done, text=text)

    def _line_event(self, event: Event) -> None:
        if event.plan:
            self._console.print(f"{event.stage}: {event.plan}", markup=False, highlight=False)
        elif time.monotonic() - self._last >= self.EVERY:
            self._last = time.monotonic()
            self._console.print(f"{event.stage}: {self._text(event)}", markup=False)

    @staticmethod
    def _text(event: Event) -> str:
        left = event.seconds_left
        text = f"{event.done:.0f}/{event.total}" + (f", {duration(left)} left" if left else "")
        return text + (f", {event.resumed} from an earlier run" if event.resumed else "")
