"""The pages, and the files for other programs, that stand beside a saved report."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path

from backsweep.core.files import write_json, write_text
from backsweep.render.exchange.model_card import model_card
from backsweep.render.exchange.sarif import sarif
from backsweep.render.pages import audit, repair, scan
from backsweep.reports.audit import Audit
from backsweep.reports.repair import Repaired
from backsweep.reports.report import Report


@singledispatch
def write(record: object, folder: Path) -> None:
    """Write what people and other programs read of a report, an audit or a repair into its folder."""
    raise TypeError(f"there is no page of a {type(record).__name__}")


@write.register
def _(record: Report, folder: Path) -> None:
    write_text(folder / "report.html", scan.html(record, folder=folder))
    write_text(folder / "model-card.md", model_card(record))
    write_json(folder / "report.sarif", sarif(record))


@write.register
def _(record: Audit, folder: Path) -> None:
    write_text(folder / "report.html", audit.html(record, folder))
    write_json(folder / "report.sarif", sarif(record))


@write.register
def _(record: Repaired, folder: Path) -> None:
    write_text(folder / "repair.html", repair.html(record, folder))
