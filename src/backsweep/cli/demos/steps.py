"""What the demos share: how far the training of both networks is, and their reports one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from backsweep.core.progress import Event, OnEvent, split
from backsweep.render.terminal.scan import show
from backsweep.reports.report import Report

if TYPE_CHECKING:
    from rich.console import Console

NETWORKS = 2  # a clean one, and its backdoored twin
SHARES = 6, 1, 1, 6  # of the time, on digits: training both, scanning each, the repair


def parts(on_event: OnEvent, repairs: bool = False) -> list[OnEvent | None]:
    """Who hears of the training, of the scan of each network, and of the repair, if there is one."""
    return split(on_event, SHARES if repairs else SHARES[:-1])


def telling(on_event: OnEvent | None, epochs: int) -> Callable[[int], Callable[[int, float], None]]:
    """Tells, for the network of a number, of every epoch that is done, both trainings as one."""
    begin = time.monotonic()

    def of(i: int) -> Callable[[int, float], None]:
        def tell(epoch: int, _loss: float) -> None:
            done = i * epochs + epoch + 1
            if on_event is not None:
                on_event(Event("training", done, NETWORKS * epochs, 0, time.monotonic() - begin))

        return tell

    return of


def show_each(console: Console, reports: Mapping[str, Report], out: Path) -> None:
    """Print the reports by the names of their networks; each lies in a folder of that name."""
    for name, report in reports.items():
        console.print()
        console.rule(f"{name}.safetensors", align="left")
        show(report, console, folder=out / name)
