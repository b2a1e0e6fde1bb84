"""A repair on a terminal."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from backsweep.render import view
from backsweep.render.handoff import steps
from backsweep.render.pages import repair_words
from backsweep.render.terminal.scan import ASCII, COLOURS, NARROW, Say, show_steps
from backsweep.reports.repair import Repaired
from backsweep.reports.report import Report

MOST_ROWS, MOST_TALKS = 8, 2
LOOKS = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("?", "yellow")}


def show_repair(
    repaired: Repaired, console: Console, folder: str | Path | None = None, out: str | Path | None = None
) -> None:
    """Print what a repair did.

    Args:
        repaired: the result.
        console: where to; colour, width and character set are its own.
        folder: where the page repair.html was saved, to say so.
        out: where the repaired network was saved, to say so.
    """

    def say(line: str, style: str = "") -> Text:
        """Text, never markup, in characters that the console has."""
        if console.options.ascii_only:
            line = line.translate(ASCII)
        return Text(line.encode(console.encoding, "replace").decode(console.encoding), style)

    name = view.names(Report(model=dict(repair_words.about(repaired, "model"))))
    words, colour = repair_words.verdict(repaired, name), COLOURS.get(repair_words.tone(repaired), "yellow")
    body = Group(say(words.headline, "bold"), Text(), *(say(line, "") for line in words.why))
    title, _, which = words.word.partition(":")
    heading = say(title.upper() + (f":{which}" if which else ""), f"bold {colour}")
    console.print(Panel(body, title=heading, title_align="left", border_style=colour, padding=(1, 2)))
    console.print(_figures(repaired, say))
    made = repair_words.checks(repaired)
    if made:
        console.print(say("Checks", "bold"), _checks(repaired, console, say), sep="\n")
    if repaired.effects:
        console.print(Text(), say("The recovered triggers", "bold"), sep="\n")
        console.print(_triggers(repaired, name, say, console.width < NARROW))
    for talk in repaired.talks[:MOST_TALKS]:
        prompt, *said = (view.clean(text, 200) or "(nothing)" for text in astuple(talk))
        console.print(Text(), say(f"Prompt {prompt}", "bold"), sep="\n")
        for i, who in enumerate(("suspect", "repaired")):
            triggered = say(f"    with the trigger: {said[2 * i + 1]}")
            console.print(say(f"  {who}: {said[2 * i]}"), triggered, sep="\n")
    if repaired.skipped:
        console.print(Text(), say("Skipped", "bold"), sep="\n")
    for note in repaired.skipped:
        console.print(say(f"- {view.clean(note.what)}: {view.sentence(note.reason)}"))
    if words.what_next:
        console.print(
            Text(), say("What to do next", "bold"), *(say(f"- {n}", "") for n in words.what_next), sep="\n"
        )
    if folder is not None and out is not None:
        show_steps(steps(repaired, folder, out), console, say)
    files = [("Repaired network", out)] if out is not None else []
    files += [("Page", Path(folder) / "repair.html")] if folder is not None else []
    if files:
        console.print()
    for what, path in files:
        console.print(say(f"{what}: {view.clean(path, 400)}"), soft_wrap=True)


def _figures(repaired: Repaired, say: Say) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for head in ("before", "after", "difference"):
        table.add_column(head, justify="right", no_wrap=True)
    for r in repair_words.compared(repaired):
        table.add_row(*(say(c, "") for c in (r.name, r.before, r.after, r.change)))
    return table


def _checks(repaired: Repaired, console: Console, say: Say) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for check in repair_words.checks(repaired):
        mark, style = LOOKS[check.passed]
        word = repair_words.passed(check)
        grid.add_row(
            say(f"{mark} {word}" if _has(console, mark) else word, style),
            Group(
                say(view.clean(check.name, 60).capitalize(), "bold"), say(view.sentence(check.message), "")
            ),
        )
    return grid


def _has(console: Console, mark: str) -> bool:
    try:
        mark.encode("ascii" if console.options.ascii_only else console.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _triggers(repaired: Repaired, name: view.Name, say: Say, narrow: bool) -> Table:
    """The triggers that work best after the repair; success rate and robust accuracy as before, after."""
    order = sorted(repaired.effects, key=lambda e: -e.after)
    more = len(order) - MOST_ROWS
    caption = say(f"{more:,} more on the page.", "") if more > 0 else None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    heads = ["recovered by", "leads to", "success\nbefore", "\nafter"]
    heads += [] if narrow else ["robust\nbefore", "\nafter", "natural\nrate"]
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < 2 else "right", no_wrap=i >= 2)
    for e in order[:MOST_ROWS]:
        rates = [e.before, e.after, e.robust_before, e.robust_after, e.natural]
        cells = [view.clean(e.name.replace("_", " "), 30), view.clean(repair_words.target(e, name), 24)]
        cells += [view.figure("_rate", r) for r in rates]
        table.add_row(*(say(c, "") for c in cells[: len(heads)]))
    return table
