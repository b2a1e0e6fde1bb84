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
    """Shows on stderr how far a command is: one bar in a terminal, elsewhere a line now and then."""

    EVERY = 30.0  # seconds between two lines

    def __init__(self, screen: Console | None = None) -> None:
        self._console = screen if screen is not None else console()

    def __enter__(self) -> OnEvent:
        from backsweep.core.progress import Whole

        self._whole, self._began = Whole(), False
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._last = time.monotonic()
        return self._event

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _event(self, event: Event) -> None:
        self._whole.told(event)
        if event.plan:
            self._print(f"{event.stage}: {event.plan}")
            self._began = False
            return
        if not self._began and self._whole.plans > 1 and (takes := self._whole.expected):
            self._print(f"in all about {duration(takes)}")
        self._began = self._began or self._whole.plans > 0
        if self._console.is_terminal:
            self._draw(event)
        elif time.monotonic() - self._last >= self.EVERY:
            self._last = time.monotonic()
            self._print(f"{event.stage}: {self._text(event)}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def _draw(self, event: Event) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bar is None:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=1.0, text="")
            self._bar.start()
        if self._task is not None:
            self._bar.update(
                self._task, description=event.stage, completed=self._whole.share, text=self._text(event)
            )

    def _text(self, event: Event) -> str:
        left = self._whole.seconds_left
        text = f"{self._whole.share:.0%}" + (f", about {duration(left)} left" if left else "")
        return text + (f", {event.resumed} from an earlier run" if event.resumed else "")
