"""An audit on a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from backsweep.render import view
from backsweep.render.handoff import scanned, steps
from backsweep.render.pages.audit import verdict
from backsweep.render.pages.audit_map import Counts
from backsweep.render.terminal.scan import ASCII, COLOURS, NARROW, Say, show_steps
from backsweep.reports.audit import Audit
from backsweep.reports.report import ERROR, INCONCLUSIVE, worst_first

MOST_ROWS = 8
FILES = (("Report", "report.html"), ("Flagged samples", "flagged.csv"), ("The cleaned set", "kept.csv"))


def show(report: Audit, console: Console, folder: str | Path | None = None) -> None:
    """Print an audit.

    Args:
        report: what was found.
        console: where to; colour, width and character set are its own.
        folder: where the report was saved, to say so.
    """

    def say(line: str, style: str = "") -> Text:
        """Text, never markup, in characters that the console has."""
        if console.options.ascii_only:
            line = line.translate(ASCII)
        return Text(line.encode(console.encoding, "replace").decode(console.encoding), style)

    words, counts = verdict(report), Counts(report)
    colour = COLOURS.get(report.verdict, "yellow")
    body = Group(say(words.headline, "bold"), *(say(line, "") for line in words.why))
    title = say(words.word.upper(), f"bold {colour}")
    console.print(Panel(body, title=title, title_align="left", border_style=colour, padding=(0, 2)))
    console.print(say(_facts(report, counts), "dim"))
    if any(f.level == ERROR for f in report.findings):
        console.print(_classes(report, counts, say, console.width < NARROW))
    if report.retrained is not None:
        console.print(say(_retrained(report, folder or ""), ""))
    panel_has = report.errors if report.verdict == INCONCLUSIVE else []
    if report.verdict == INCONCLUSIVE and not report.errors and not report.findings:
        panel_has = report.skipped
    for what, notes in (("Skipped", report.skipped), ("Failed", report.errors)):
        for note in notes if notes is not panel_has else ():
            console.print(say(f"{what}: {view.clean(note.what)}: {view.sentence(note.reason)}", ""))
    if counts.flagged:
        console.print(say("Look at the flagged samples in the report before you delete any.", ""))
    elif words.what_next:
        console.print(say(words.what_next[0], ""))
    show_steps(steps(report, folder), console, say)
    if folder is not None:
        for what, file in FILES if counts.flagged else FILES[:1]:
            console.print(say(f"{what}: {view.clean(Path(folder) / file, 400)}", ""), soft_wrap=True)


def _facts(report: Audit, counts: Counts) -> str:
    parts = [
        view.clean(report.data.get("source") or "unknown training set", 200),
        view.counted(counts.samples, "sample"),
    ]
    if report.model.get("classes"):
        parts.append(f"{view.figure('', report.model['classes'])} classes")
    if report.data.get("training_accuracy") is not None:
        parts.append(f"training accuracy {view.figure('accuracy', report.data['training_accuracy'])}")
    return ", ".join(parts)


def _classes(report: Audit, counts: Counts, say: Say, narrow: bool) -> Table:
    """The classes found poisoned, a line for each detector that found them."""
    found = [f for f in worst_first(report.findings) if f.level == ERROR]
    name, several = view.names(report), len({f.detector for f in found}) > 1
    more = len(found) - MOST_ROWS
    caption = say(f"{more:,} more in the report.", "") if more > 0 else None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    heads = ["poisoned class", "flagged", "samples", "p-value"]
    heads += [] if narrow else ["statistic"]
    heads += ["found by"] if several else []
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 or head == "found by" else "right", no_wrap=0 < i < 5)
    for f in found[:MOST_ROWS]:
        cells = [
            view.clean(name(f.target), 22), f"{counts.flagged_of(f.target):,}", f"{counts.of(f.target):,}",
            "" if f.p_value is None else view.probability(f.p_value),
        ]  # fmt: skip
        cells += [] if narrow else ["" if f.score is None else view.number(f.score)]
        cells += [view.title(f.detector)] if several else []
        table.add_row(*(say(c, "bold red") for c in cells))
    return table


def _retrained(report: Audit, folder: str | Path) -> str:
    again = report.retrained
    if again is None:
        return ""
    before, after = (view.figure("accuracy", a) for a in (again.accuracy_before, again.accuracy_after))
    return (
        f"Without the flagged samples a fresh network is right on {after} of "
        f"{view.clean(again.measured_on, 120)}, the audited one on {before}. {scanned(report, folder)}"
    )
