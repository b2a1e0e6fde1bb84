"""A report on a terminal: in colour, in black and white, in plain ASCII, or in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from torch.nn.functional import adaptive_max_pool2d

from backsweep.render import view
from backsweep.report import BACKDOORED, CLEAN, ERROR, NOTE, Note, Report
from backsweep.trigger import Trigger, to_image

COLOURS = {BACKDOORED: "red", CLEAN: "green"}
RAMP = " .:-=+*#%@"
ASCII = str.maketrans({"…": "...", "–": "-", "×": "x"})  # noqa: RUF001
MOST_ROWS, MOST_PICTURES, WIDEST = 8, 3, 32
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
    for group in view.groups(report):
        caption = say(f"{view.title(group.detector)}: the classes that stand out most", "bold")
        console.print(Text(), caption, _table(report, group, say), sep="\n")
    width = min(WIDEST, max(8, (console.width - 2) // 2))
    for heading, trigger in _triggers(report):
        found = view.examples(report, trigger, 1)
        example = found[0] if found is not None else None
        console.print(Text(), say(heading, "bold"), pictures(trigger, example, width), sep="\n")
    _notes("Skipped", report.skipped, console, say)
    _notes("Failed", report.errors, console, say)
    if verdict.what_next:
        console.print(
            Text(), say("What to do next", "bold"), *(say(f"- {n}", "") for n in verdict.what_next), sep="\n"
        )
    if folder is not None:
        path = view.clean(Path(folder) / "report.html", 400)
        console.print(Text(), say(f"Report: {path}", ""), soft_wrap=True, sep="\n")


def pictures(trigger: Trigger, example: Tensor | None = None, width: int = WIDEST) -> RenderableType:
    """A trigger side by side with an input that carries it.

    Args:
        trigger: what to draw: its mask where it has one, else its picture.
        example: a clean input (C, H, W) to stamp; None shows the trigger's picture instead.
        width: columns of each picture at most.
    """
    mask = getattr(trigger, "mask", None)
    drawn: list[tuple[str, Image.Image]] = []
    if mask is not None:
        drawn.append(("mask: where it is stamped", to_image(_shrink(mask, width))))
    if mask is None or example is None:
        drawn.append(("trigger", trigger.picture()))
    if example is not None:
        drawn.append(("stamped on a clean input", to_image(trigger(example[None])[0])))
    grid = Table.grid(padding=(0, 2))
    grid.add_row(*(Text(caption, "dim") for caption, _ in drawn))
    grid.add_row(*(Picture(image, width) for _, image in drawn))
    return grid


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


def _shrink(mask: Tensor, width: int) -> Tensor:
    """A mask no wider than `width`; a small patch must not fade away, so the largest value stays."""
    height, wide = mask.shape[-2:]
    if wide <= width:
        return mask
    return adaptive_max_pool2d(mask.float(), (max(1, round(height * width / wide)), width))


def _facts(report: Report) -> str:
    model, data = report.model, report.data
    parts = [view.clean(model.get("source") or "unknown model", 200)]
    if model.get("classes"):
        parts.append(f"{view.figure('', model['classes'])} classes")
    if data.get("samples"):
        parts.append(f"{view.figure('', data['samples'])} clean samples")
    if data.get("clean_accuracy") is not None:
        parts.append(f"clean accuracy {view.figure('accuracy', data['clean_accuracy'])}")
    return ", ".join(parts)


def _table(report: Report, group: view.Group, say: Say) -> Table:
    """The classes that stand out most."""
    findings = {
        (f.target, f.source): f
        for f in report.findings
        if f.detector == group.detector and f.level != NOTE and view.evidence_of(report, f) is not None
    }
    order = sorted(
        range(len(group.evidence)),
        key=lambda i: (
            (group.evidence[i].target, group.evidence[i].source) not in findings,
            -group.index[i] if group.index else 0.0,
        ),
    )
    heads = ["class", "norm", "attack success", "index", "p-value", ""]
    rows = []
    for i in order[:MOST_ROWS]:
        e = group.evidence[i]
        finding = findings.get((e.target, e.source))
        measured = bool(group.norms) and math.isfinite(group.norms[i])
        rate = e.values.get("attack_success_rate")
        rows.append((
            view.clean(view.unit_name(report, e), 22),
            view.number(group.norms[i]) if measured else "none works" if group.norms else "",
            view.figure("_rate", rate) if rate is not None else "",
            f"{group.index[i]:.2f}" if measured else "",
            view.probability(finding.p_value) if finding and finding.p_value is not None else "",
            "" if finding is None else "evidence" if finding.level == ERROR else "cannot tell",
        ))  # fmt: skip
    kept = [c for c in range(len(heads)) if any(row[c] for row in rows)]
    more = len(order) - len(rows)
    caption = f"{more:,} more in the report" if more > 0 else None
    table = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for c in kept:
        table.add_column(heads[c], justify="left" if c in (0, 5) else "right")
    for row in rows:
        table.add_row(*(say(row[c], "bold red" if row[5] == "evidence" else "") for c in kept))
    return table


def _triggers(report: Report) -> list[tuple[str, Trigger]]:
    name = view.names(report)
    found = [
        (f"Trigger that leads to {name(f.target)}", f.trigger) for f in view.suspects(report, MOST_PICTURES)
    ]
    least = view.smallest(report)
    if not found and least is not None:
        heading = f"The smallest trigger found, for comparison: class {view.unit_name(report, least)}"
        found = [(heading, least.trigger)]
    return [(heading, trigger) for heading, trigger in found if trigger is not None]


def _notes(title: str, notes: Sequence[Note], console: Console, say: Say) -> None:
    if notes:
        console.print(Text(), say(title, "bold"), sep="\n")
    for note in notes:
        console.print(say(f"- {view.clean(note.what)}: {view.sentence(note.reason)}", ""))
