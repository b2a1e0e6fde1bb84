"""A report on a terminal: in colour, in black and white, in plain ASCII, or in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.color import Color
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch import Tensor

from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.modality import Modality
from backsweep.inputs.trigger import Trigger
from backsweep.render import standing, talks, view
from backsweep.render.handoff import Step, steps
from backsweep.reports.report import BACKDOORED, CLEAN, ERROR, NOTE, Evidence, Finding, Note, Report

COLOURS = {BACKDOORED: "red", CLEAN: "green"}
RAMP = " .:-=+*#%@"
ASCII = str.maketrans({"…": "...", "–": "-", "×": "x"})  # noqa: RUF001
MOST_ROWS, MOST_PICTURES, WIDEST, NARROW = 8, 3, 32, 60
Say = Callable[[str, str], Text]


def show(report: Report, console: Console, folder: str | Path | None = None) -> None:
    """Print a report.

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

    verdict, colour = view.verdict(report), COLOURS.get(report.verdict, "yellow")
    title = say(verdict.word.upper(), f"bold {colour}")
    body = Group(say(verdict.headline, "bold"), Text(), *(say(line, "") for line in verdict.why))
    console.print(Panel(body, title=title, title_align="left", border_style=colour, padding=(1, 2)))
    console.print(say(_facts(report), "dim"))
    groups = standing.groups(report)
    for group in groups:
        if group.of_the_network:  # the panel says it
            continue
        kind = view.modality(report)
        many = kind.answers if kind.classified else f"{kind.found}s"
        caption = say(f"{view.title(group.detector)}: the {many} that stand out most", "bold")
        console.print(Text(), caption, _table(report, group, say, console.width < NARROW), sep="\n")
    width = min(WIDEST, max(8, (console.width - 2) // 2))
    for heading, rates, trigger in _triggers(report, groups):
        found = standing.examples(report, trigger, 1)
        example = found[0] if found is not None else None
        lines = [say(heading, "bold"), *([say(rates, "")] if rates else [])]
        kind = view.modality(report)
        drawn: list[RenderableType] = [say(line, "") for line in _spoken(trigger, example, kind)]
        drawn = drawn or [pictures(trigger, example, width, kind)]
        console.print(Text(), *lines, *drawn, sep="\n")
    for finding in standing.suspects(report):
        for talk in talks.of(finding):
            said = (f"Prompt   {talk.prompt}", f"without  {talk.without}", f"with     {talk.triggered}")
            console.print(Text(), *(say(line, "") for line in said), sep="\n")
    natural = view.about_shortcuts(report, view.names(report))
    if natural:
        console.print(
            Text(), say("Natural shortcuts", "bold"), *(say(line, "") for line in natural), sep="\n"
        )
    _notes("Skipped", report.skipped, console, say)
    _notes("Failed", report.errors, console, say)
    if verdict.what_next:
        console.print(
            Text(), say("What to do next", "bold"), *(say(f"- {n}", "") for n in verdict.what_next), sep="\n"
        )
    show_steps(steps(report, folder), console, say)
    if folder is not None:
        path = view.clean(Path(folder) / "report.html", 400)
        console.print(Text(), say(f"Report: {path}", ""), soft_wrap=True, sep="\n")


def show_steps(found: Sequence[Step], console: Console, say: Say) -> None:
    """The commands to go on with, each on a line of its own that can be copied."""
    for step in found:
        console.print(Text(), say(f"To {step.what}:", ""), sep="\n")
        console.print(say(f"  {step.command}", ""), soft_wrap=True)


def pictures(
    trigger: Trigger, example: Tensor | None = None, width: int = WIDEST, modality: Modality = IMAGE
) -> RenderableType:
    """A trigger side by side with an input that carries it.

    Args:
        trigger: what to draw: its mask where it has one, else its picture.
        example: a clean input (*shape) to stamp; None shows the trigger's picture instead.
        width: columns of each picture at most.
        modality: what an input is.
    """
    if example is not None and (cells := modality.cells(example)):
        return _changed(cells, modality.cells(trigger(example[None])[0]))
    where = trigger.stamped_at(width)
    drawn: list[tuple[str, Image.Image]] = []
    if where is not None:
        drawn.append(("mask: where it is stamped", where))
    if where is None or example is None:
        drawn.append(("trigger", trigger.picture()))
    if example is not None:
        drawn.append(("stamped on a clean input", modality.picture(trigger(example[None])[0])))
    grid = Table.grid(padding=(0, 2))
    grid.add_row(*(Text(caption, "dim") for caption, _ in drawn))
    grid.add_row(*(Picture(image, width) for _, image in drawn))
    return grid


def _spoken(trigger: Trigger, example: Tensor | None, kind: Modality) -> list[str]:
    """A trigger in words, and an input that carries it: a terminal shows text as text."""
    words = getattr(trigger, "words", None)
    if words is None:
        return []
    place = getattr(trigger, "place", "")
    lines = [f"{view.clean(words, 200)!r}" + (f", at the {place} of a text" if place else "")]
    if kind.classified and example is not None and (text := kind.words(trigger(example[None])[0])):
        lines.append(f"in a text: {view.clean(text, 200)}")
    return lines


def _changed(before: Sequence[tuple[str, str]], after: Sequence[tuple[str, str]]) -> RenderableType:
    """The values of an input that a trigger changes."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for head in ("column", "clean", "with the trigger"):
        table.add_column(head)
    for (name, old), (_, new) in zip(before, after, strict=True):
        if old != new:
            table.add_row(*(Text(view.clean(t, 40)) for t in (name, old, new)))
    return table


class Picture:
    """An image in half blocks, two pixels a character; without colour a ramp of dense characters."""

    def __init__(self, image: Image.Image, width: int = WIDEST) -> None:
        rgb = image.convert("RGB")
        scale = max(1, min(24, width) // rgb.width)
        rgb = rgb.resize((rgb.width * scale, rgb.height * scale), Image.Resampling.NEAREST)
        if rgb.width > width:
            height = max(1, round(rgb.height * width / rgb.width))
            rgb = rgb.resize((width, height), Image.Resampling.BOX)
        pixels = np.asarray(rgb)
        self.rows = np.pad(pixels, ((0, len(pixels) % 2), (0, 0), (0, 0)), mode="edge").tolist()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self.rows[0]), len(self.rows[0]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        coloured = console.color_system in ("256", "truecolor") and not console.no_color
        for top, bottom in zip(self.rows[0::2], self.rows[1::2], strict=True):
            for a, b in zip(top, bottom, strict=True):
                if coloured and not options.ascii_only:
                    yield Segment("▀", Style(color=Color.from_rgb(*a), bgcolor=Color.from_rgb(*b)))
                else:
                    grey = (sum(a) + sum(b)) / 6
                    yield Segment(RAMP[min(len(RAMP) - 1, int(grey / 256 * len(RAMP)))])
            yield Segment.line()


def _facts(report: Report) -> str:
    model, data = report.model, report.data
    parts = [view.clean(model.get("source") or "unknown model", 200)]
    if model.get("classes"):
        parts.append(f"{view.figure('', model['classes'])} {view.modality(report).answers}")
    if data.get("samples"):
        parts.append(f"{view.figure('', data['samples'])} clean samples")
    if data.get("clean_accuracy") is not None:
        parts.append(f"clean accuracy {view.figure('accuracy', data['clean_accuracy'])}")
    return ", ".join(parts)


def _table(report: Report, group: standing.Group, say: Say, narrow: bool) -> Table:
    """The classes that stand out most."""
    findings = {
        (f.target, f.source): f
        for f in report.findings
        if f.detector == group.detector and f.level != NOTE and standing.evidence_of([group], f) is not None
    }
    order = sorted(
        range(len(group.evidence)),
        key=lambda i: (
            (group.evidence[i].target, group.evidence[i].source) not in findings,
            -group.index[i] if group.index else 0.0,
        ),
    )
    measure = group.measure
    indexed = measure is not None and not measure.ranks and any(group.index)
    doubtful = not narrow and any(view.rests_on(f) == view.DOUBTFUL for f in findings.values())
    heads = [
        view.modality(report).found, view.title(measure.key) if measure else "", "stands out in", "sigmas",
        "attack success", "index", f"p-value,\n{view.DOUBTFUL}" if doubtful else "p-value", "",
    ]  # fmt: skip
    rows = []
    for i in order[:MOST_ROWS]:
        e = group.evidence[i]
        finding = findings.get((e.target, e.source))
        measured = bool(group.figures) and math.isfinite(group.figures[i])
        rate = e.values.get("attack_success_rate")
        sigmas = view.sigmas(e.values)
        rows.append((
            view.clean(standing.row_name(report, group, i, finding is not None), 22),
            _figure(group, i),
            view.brief(sigmas[0][0]) if sigmas and not narrow else "",
            view.figure(*sigmas[0]) if sigmas and not narrow else "",
            view.figure("_rate", rate) if rate is not None and not sigmas else "",
            f"{group.index[i]:.2f}" if measured and indexed else "",
            view.probability(finding.p_value) if finding and finding.p_value is not None else "",
            "" if finding is None else "evidence" if finding.level == ERROR else "cannot tell",
        ))  # fmt: skip
    kept = [c for c in range(len(heads)) if any(row[c] for row in rows)]
    said = " ".join(_captions(group, findings.values(), len(order) - len(rows), narrow))
    table = Table(
        caption=say(said, "") if said else None, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for c in kept:
        table.add_column(heads[c], justify="left" if c in (0, 2, 7) else "right")
    for row in rows:
        table.add_row(*(say(row[c], "bold red" if row[7] == "evidence" else "") for c in kept))
    return table


def _figure(group: standing.Group, position: int) -> str:
    """What a class is judged by."""
    if group.measure is None or not group.figures:
        return ""
    value = group.figures[position]
    if not math.isfinite(value):
        return "none works"
    return view.figure(group.measure.key, value) if group.measure.ranks else view.number(value)


def _captions(group: standing.Group, findings: Iterable[Finding], more: int, narrow: bool) -> list[str]:
    """What is to be said under a table; where it is narrow, also what its heads have no room for."""
    lines = [f"{more:,} more in the report."] if more > 0 else []
    if group.measure is not None and group.measure.ranks and group.limit is not None:
        lines.append(f"Evidence begins at a {view.title(group.measure.key)} of {view.number(group.limit)}.")
    ranks = dict.fromkeys(view.rests_on(f) for f in findings if f.p_value is not None)
    return lines + [f"p-value: {r}." for r in ranks if r and (narrow or r != view.DOUBTFUL)]


def _triggers(report: Report, groups: Sequence[standing.Group]) -> list[tuple[str, str, Trigger]]:
    """Headings, success rates and triggers."""
    name = view.names(report)
    found = []
    for f in standing.suspects(report):
        if f.trigger is not None:
            rates = _rates(standing.evidence_of(groups, f))
            found.append((f"Trigger that leads to {name(f.target)}", rates, f.trigger))
    least = standing.smallest(groups)
    if not found and least is not None and least.trigger is not None:
        heading = f"{standing.compared(groups, least)}: class {standing.record_name(report, least)}"
        found = [(heading, _rates(least), least.trigger)]
    return found[:MOST_PICTURES]


def _rates(e: Evidence | None) -> str:
    """How often a trigger works, here and on the reference; "" where that was not measured."""
    here, there = (e.values.get(k) if e else None for k in ("attack_success_rate", "reference_success_rate"))
    if here is None or there is None:
        return ""
    rates = [view.figure("_rate", r) for r in (here, there)]
    return f"Works on {rates[0]} of unseen samples in this model, on {rates[1]} in the reference."


def _notes(title: str, notes: Sequence[Note], console: Console, say: Say) -> None:
    if notes:
        console.print(Text(), say(title, "bold"), sep="\n")
    for note in notes:
        console.print(say(f"- {view.clean(note.what)}: {view.sentence(note.reason)}", ""))
