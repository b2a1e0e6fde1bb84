"""A repair as one self-contained HTML page: no script, nothing fetched, pictures inside."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import torch
from PIL import Image

from backsweep.core.provenance import known
from backsweep.inputs.kinds import modality_of
from backsweep.render import view
from backsweep.render.handoff import steps
from backsweep.render.pages.card import Fact, Picture, isolated, picture, shown, thumbnail
from backsweep.render.pages.page import template
from backsweep.render.pages.repair_words import (
    about,
    checks,
    compared,
    condition,
    meant,
    passed,
    target,
    tone,
    verdict,
)
from backsweep.render.pages.scan import from_outside
from backsweep.repairing.method import Repair
from backsweep.reports.repair import Answers, Check, Effect, Repaired
from backsweep.reports.report import BACKDOORED, CLEAN, Report

MOST_PICTURES, MOST_LARGE = 256, 12  # triggers that are drawn, and drawn large, in the table
MOST_STRIPS, MOST_EXAMPLES = 3, 4
LONGEST = 400  # characters of a path that becomes a link
LARGE, SIDE = 64, 112  # pixels of a trigger and of an example, as they are shown


def html(repaired: Repaired, folder: str | Path | None = None) -> str:
    """The page.

    Nothing is computed with a network here: the pictures need `Repaired.answers`. Of `Repaired.about` it
    reads "model", "data", "settings" and "versions" as in a scan's report, "repaired" ({"source", "sha256"}
    of the new file), "command" (text or a list of words) and "reports" ({"before", "after"}: paths of the
    scans' pages relative to this one). What is missing is left out.
    """
    name = isolated(Report(model=dict(about(repaired, "model"))))
    words, modality = verdict(repaired, name), modality_of(about(repaired, "model"))
    return template("repair.html.j2").render(
        noun=modality.noun,
        found=modality.found,
        talks=[[view.clean(text, 200) or "(nothing)" for text in astuple(t)] for t in repaired.talks],
        words=words,
        steps=steps(repaired, folder, about(repaired, "repaired").get("source")),
        title=f"{words.word} – Backsweep repair",  # noqa: RUF001
        tone=tone(repaired),
        rows=compared(repaired),
        meant=meant(repaired),
        checks=[_checked(c) for c in checks(repaired)],
        groups=_groups(repaired, name),
        drawn=len(repaired.effects) <= MOST_PICTURES,
        natural=any(e.natural is not None for e in repaired.effects),
        total=len(repaired.effects),
        strips=_strips(repaired, name),
        made=_made(repaired, name),
        command=_command(repaired),
        skipped=[(view.clean(n.what), view.sentence(n.reason)) for n in repaired.skipped],
        links=_links(repaired),
        timings=[_timing(k, v) for k, v in repaired.timings.items()],
    )


# ---------------------------------------------------------------------- checks and triggers


@dataclass(frozen=True)
class Line:
    """A check on the page."""

    name: str
    word: str
    look: str
    message: str
    condition: str


def _checked(check: Check) -> Line:
    when = condition(check.name)
    passes = f"Passes when {when}." if when else ""
    look = {True: CLEAN, False: BACKDOORED, None: "open"}[check.passed]
    label = view.clean(check.name, 60)
    return Line(label[:1].upper() + label[1:], passed(check), look, view.sentence(check.message), passes)


@dataclass(frozen=True)
class Recovered:
    """A row of the table of triggers."""

    name: str
    drawn: str
    target: str
    picture: Picture | None
    cells: list[str]


@dataclass(frozen=True)
class Recoveries:
    """Triggers that the repair may have learned from, or those that it has not seen."""

    heading: str
    rows: list[Recovered]


def _groups(repaired: Repaired, name: view.Name) -> list[Recoveries]:
    effects = repaired.effects
    small, drawn = len(effects) > MOST_LARGE, len(effects) <= MOST_PICTURES

    def row(e: Effect) -> Recovered:
        image = None
        if drawn:
            image = thumbnail(e.trigger) if small else _large(e)
        what = e.trigger.drawn
        family = view.clean(e.trigger.family.replace("_", " "), 40)
        rates = (e.before, e.after, e.robust_before, e.robust_after, e.natural)
        label = view.clean(e.name.replace("_", " "), 60)
        drawing = ": ".join(part for part in (family, what) if part)
        return Recovered(label, drawing, target(e, name), image, [view.figure("_rate", r) for r in rates])

    groups = [
        Recoveries("Found by the scan, before the repair", [row(e) for e in effects if not e.fresh]),
        Recoveries(
            "Recovered afterwards; the repair has not seen them", [row(e) for e in effects if e.fresh]
        ),
    ]
    return [g for g in groups if g.rows]


def _large(effect: Effect) -> Picture:
    image = effect.trigger.picture()
    image.thumbnail((LARGE, LARGE), Image.Resampling.BOX)
    return picture(image, side=LARGE)


# ---------------------------------------------------------------------- the same inputs, clean and stamped


@dataclass(frozen=True)
class Said:
    """An answer of a network; `look` is "right", "target" or "" (neither)."""

    text: str
    look: str


@dataclass(frozen=True)
class Example:
    """An input without and with a trigger, and the answers of suspect and repaired network for each."""

    label: str
    clean: Picture
    stamped: Picture
    before: tuple[Said, Said]
    after: tuple[Said, Said]


@dataclass(frozen=True)
class Strip:
    """A few examples with one trigger."""

    heading: str
    examples: list[Example]


def _strips(repaired: Repaired, name: view.Name) -> list[Strip]:
    """The triggers that worked best on the suspect, on the examples that there are answers for."""
    images = repaired.examples
    if images is None:
        return []
    usable = [
        a for a in repaired.answers
        if 0 <= a.example < len(images) and 0 <= a.effect < len(repaired.effects)
    ]  # fmt: skip
    order = sorted({a.effect for a in usable}, key=lambda i: (-repaired.effects[i].before, i))
    strips = []
    for i in order[:MOST_STRIPS]:
        e = repaired.effects[i]
        heading = f"{view.clean(e.name.replace('_', ' '), 60)}, leads to {target(e, name)}"
        if e.trigger.target is None:
            heading = f"{view.clean(e.name.replace('_', ' '), 60)}, sends {target(e, name)}"
        shown = [a for a in usable if a.effect == i][:MOST_EXAMPLES]
        strips.append(Strip(heading[:1].upper() + heading[1:], [_example(repaired, a, name) for a in shown]))
    return strips


def _example(repaired: Repaired, answers: Answers, name: view.Name) -> Example:
    x = repaired.examples[answers.example : answers.example + 1]
    trigger, modality = repaired.effects[answers.effect].trigger, modality_of(about(repaired, "model"))
    aim = trigger.target
    if aim is None and answers.label is not None:
        aim = int(trigger.labels(torch.tensor([answers.label]), repaired.model.classes)[0])

    def said(answer: int) -> Said:
        look = "right" if answer == answers.label else "target" if answer == aim else ""
        return Said(name(answer), look)

    return Example(
        name(answers.label) if answers.label is not None else "",
        shown(modality, x[0], side=SIDE),
        shown(modality, trigger(x)[0], side=SIDE),
        (said(answers.clean_before), said(answers.triggered_before)),
        (said(answers.clean_after), said(answers.triggered_after)),
    )


# ---------------------------------------------------------------------- how it was made


def _made(repaired: Repaired, name: view.Name) -> list[Fact]:
    model, data, new = (about(repaired, k) for k in ("model", "data", "repaired"))
    settings = {k: v for k, v in about(repaired, "settings").items() if k not in ("origins", "packages")}
    facts = [
        Fact("Method", view.clean(repaired.method.replace("_", " ")), _summary(repaired)),
        Fact("Suspected", _suspected(repaired, name)),
        *(Fact(term, value) for term, value in _settings(settings)),
        *from_outside(about(repaired, "settings")),
        Fact("Model", view.clean(model.get("source") or "", 300)),
        Fact("SHA-256 before", view.clean(model.get("sha256") or "", 64), full="code"),
        Fact("Repaired model", view.clean(new.get("source") or "", 300)),
        Fact("SHA-256 after", view.clean(new.get("sha256") or "", 64), full="code"),
        Fact("Clean data", view.clean(data.get("source") or "", 300), _samples(data)),
        Fact("SHA-256 of the data", view.clean(data.get("sha256") or "", 64), full="code"),
        Fact("Versions", ", ".join(f"{view.clean(k)} {view.clean(v)}"
             for k, v in about(repaired, "versions").items())),
    ]  # fmt: skip
    return [f for f in facts if f.value]


def _suspected(repaired: Repaired, name: view.Name) -> str:
    ways = [
        f"{name(source)} to {'the next' if aim is None else name(aim)}"
        for source, aim in dict.fromkeys(repaired.suspected)
    ]
    more = [f"{len(ways) - 8} more"] if len(ways) > 8 else []
    return view.join(ways[:8] + more) or "nothing"


def _summary(repaired: Repaired) -> str:
    cls = known([Repair], repaired.method, about(repaired, "settings"))
    return "" if cls is None else view.clean(cls.summary, 200)


def _samples(data: Mapping[str, Any]) -> str:
    count = data.get("samples")
    return view.counted(count, "sample") if isinstance(count, int) else ""


def _settings(settings: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, str]]:
    """Plain settings one by one, those of a method on one line."""
    plain = {k: v for k, v in settings.items() if not isinstance(v, Mapping) and v is not None}
    if inside and plain:
        line = ", ".join(f"{view.clean(k)}={view.clean(v)}" for k, v in plain.items())
        yield f"Settings of {inside}", view.clean(line, 600)
    elif plain:
        yield from ((view.title(str(k)).capitalize(), view.clean(v, 200)) for k, v in plain.items())
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _settings(value, view.title(str(key)))


def _command(repaired: Repaired) -> str:
    command = repaired.about.get("command") or ""
    if isinstance(command, Sequence) and not isinstance(command, str):
        command = shlex.join(str(word) for word in command)
    return view.clean(command, 4000)


def _links(repaired: Repaired) -> list[tuple[str, str]]:
    """Names and addresses of the scans' pages; only paths relative to this page become links."""
    names = {"before": "Scan of the suspect", "after": "Scan of the repaired network"}
    links = []
    for key, path in about(repaired, "reports").items():
        parts = PurePosixPath(str(path).replace("\\", "/"))
        if not parts.is_absolute() and parts.parts and len(str(parts)) <= LONGEST:
            words = names.get(str(key)) or view.title(str(key)).capitalize()
            links.append((words, quote(f"./{parts}", errors="replace")))
    return links


def _timing(key: str, value: object) -> Fact:
    """ "scan_cpu_seconds": 60 -> Scan, CPU time: 1 min 0 s"""
    what = view.title(str(key).removesuffix("_seconds"))
    kind = "CPU time" if what.endswith(" cpu") else "wall time"
    what = what.removesuffix(" cpu")
    usable = isinstance(value, int | float) and math.isfinite(value)
    text = view.duration(value) if usable else view.figure("", None)  # type: ignore[arg-type]
    return Fact(f"{what[:1].upper()}{what[1:]}, {kind}", text)
