"""What is said where: text and progress for people on stderr, the result for programs on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from backsweep.cli.terminal import Progress
from backsweep.cli.terminal import console as opened

if TYPE_CHECKING:
    from backsweep.core.progress import OnEvent
    from backsweep.reports.repair import Repaired
    from backsweep.reports.report import Report

READ = 1, 30  # of the time of a command: reading, and what comes after
NOT_KEPT = "nothing was kept; --out FOLDER keeps the page, the report and its triggers"


@dataclass(frozen=True)
class Saying:
    """What is said, and how."""

    as_json: Annotated[
        bool, typer.Option("--json", help="The result as one JSON document on the standard output.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say the result and errors alone.")] = False

    def console(self) -> Console:
        """Where text for people goes."""
        return Console(stderr=True, quiet=True) if self.quiet else opened()

    def progress(self) -> Progress:
        """Bars and plans, or none."""
        return Progress(self.console())

    def notes(self, notes: Iterable[str]) -> None:
        """What was done to read a model, for people."""
        from backsweep.render.view import clean

        for note in notes:
            self.console().print(f"note: {clean(note, 400)}", markup=False, soft_wrap=True)

    def report(self, report: Report, folder: Path | None) -> None:
        """A scan or an audit: for people, then its result."""
        from backsweep.render.terminal import audit as of_audits
        from backsweep.render.terminal import scan as of_scans
        from backsweep.render.view import clean, join, names
        from backsweep.reports.audit import Audit
        from backsweep.reports.report import ERROR

        if isinstance(report, Audit):
            of_audits.show(report, self.console(), folder=folder)
        else:
            of_scans.show(report, self.console(), folder=folder)
        if folder is None:
            self.console().print(NOT_KEPT, markup=False, soft_wrap=True)
        name, proven = names(report), {f.target for f in report.findings if f.level == ERROR}
        targets = [t for t in report.targets if t in proven or not proven]
        shown = [name(t) for t in targets[:8]] + [f"{len(targets) - 8} more"] * (len(targets) > 8)
        classes = f"{'class' if len(targets) == 1 else 'classes'} {join(shown)}" if targets else "no class"
        page = clean(folder / "report.html", 400) if folder is not None else "no page"
        self.result(f"{report.verdict}: {classes}", report.exit_status, page, report.to_json)

    def repair(self, repaired: Repaired, folder: Path, out: Path) -> None:
        """A repair: for people, then its result."""
        from backsweep.render.pages import repair_words
        from backsweep.render.terminal.repair import show_repair
        from backsweep.render.view import clean

        show_repair(repaired, self.console(), folder, out)
        word = repair_words.verdict(repaired, str).word.lower()
        self.result(word, repaired.exit_status, clean(folder / "repair.html", 400), repaired.to_json)

    def result(self, said: str, status: int, page: str, document: Any) -> None:
        """The last line: what was found, exit status and page; or one JSON document in its place.

        A terminal gets it from stderr, after the text; a pipe or a file from stdout as well.

        Args:
            said: verdict and classes.
            status: that the command exits with.
            page: where the page is.
            document: makes the JSON.
        """
        line = f"{said}; exit status {status}; {page}"
        piped = not sys.stdout.isatty()
        if self.as_json:
            typer.echo(json.dumps(document(), indent=2, allow_nan=False))
        elif piped or self.quiet:
            typer.echo(line.encode(sys.stdout.encoding or "utf-8", "replace").decode(errors="replace"))
        if not self.quiet and (self.as_json or not piped or not _same_file()):
            screen = self.console()
            text = line.encode(screen.encoding, "replace").decode(screen.encoding)
            screen.print(text, style="bold", markup=False, highlight=False, soft_wrap=True)


def opening(on_event: OnEvent) -> OnEvent | None:
    """Tells that the model and the data are read; returns who hears of all that comes after."""
    from backsweep.core.progress import Stage, split

    first, rest = split(on_event, READ)
    Stage(first).named("reading")
    return rest


def _same_file() -> bool:
    """Whether stdout and stderr end in the same place, as with 2>&1."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return False
