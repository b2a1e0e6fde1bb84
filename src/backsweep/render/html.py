"""A report as one self-contained HTML page: no script, nothing fetched, pictures inside."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from backsweep.render import repeat, view
from backsweep.render.chart import chart
from backsweep.render.page import template
from backsweep.report import NOTE, WARNING, Evidence, Finding, Report
from backsweep.stats import chance_of_index
from backsweep.trigger import Trigger, to_image

SIDE, LARGEST = 160, 224  # shown width of a small picture, and the most that is kept of a large one
MOST_EXAMPLES, MOST_THUMBNAILS, MOST_OPEN_ROWS = 4, 64, 12


def html(report: Report) -> str:
    """The page.

    Everything a user or a stranger wrote is cleaned and escaped; the page forbids itself scripts and
    any connection (Content-Security-Policy).
    """
    found = view.suspects(report)
    smallest = None if found else view.smallest(report)
    cards = [_finding_card(report, f) for f in found]
    if smallest is not None:
        cards = [_smallest_card(report, smallest)]
    name = _isolated(report)
    groups = view.groups(report)
    return template("report.html.j2").render(
        verdict=view.verdict(report, name),
        tone=report.verdict,
        facts=_facts(report),
        charts=[chart(report, g) for g in groups if g.norms],
        cards=cards,
        only_for_comparison=smallest is not None,
        tables=[_table(report, g) for g in groups],
        skipped=[(view.clean(n.what), view.sentence(n.reason)) for n in report.skipped],
        errors=[(view.clean(n.what), view.sentence(n.reason)) for n in report.errors],
        command=repeat.command(report),
        typed=view.clean(report.model.get("command") or "", 4000),
        origin=_origin(report),
        timings=[_timing(k, v) for k, v in report.timings.items()],
    )


def _isolated(report: Report) -> view.Name:
    """Class names between Unicode isolates: text that runs from right to left stays where it is."""
    name = view.names(report)
    return lambda index: f"\u2066{name(index)}\u2069"


# ---------------------------------------------------------------------- facts


@dataclass(frozen=True)
class Fact:
    """A figure with its name; `note` says what it is worth, `full` is shown on hovering."""

    term: str
    value: str
    note: str = ""
    full: str = ""


def _facts(report: Report) -> list[Fact]:
    model, data = report.model, report.data
    facts = [
        Fact("Model", view.clean(model.get("source") or "unknown", 300)),
        Fact("Clean data", view.clean(data.get("source") or "unknown", 300)),
    ]
    for term, digest in (("SHA-256 of the model", model), ("SHA-256 of the data", data)):
        if digest.get("sha256"):
            text = view.clean(digest["sha256"], 64)
            facts.append(Fact(term, text[:12] + "…", full=text))
    if model.get("classes"):
        present = data.get("classes_present")
        note = (
            f"{view.number(present)} of them in the data" if present not in (None, model["classes"]) else ""
        )
        facts.append(Fact("Classes", view.figure("", model["classes"]), note))
    if view.shape(report):
        facts.append(Fact("Input", view.shape(report), "channels, height, width"))
    if model.get("parameters"):
        facts.append(Fact("Parameters", view.figure("", model["parameters"])))
    if data.get("clean_accuracy") is not None:
        facts.append(Fact("Clean accuracy", view.figure("accuracy", data["clean_accuracy"])))
    if data.get("samples"):
        facts.append(Fact("Clean samples", view.figure("", data["samples"])))
    if report.settings.get("alpha") is not None:
        facts.append(Fact("False alarms accepted", view.level(report.settings["alpha"]), "of clean models"))
    return facts


def _origin(report: Report) -> list[Fact]:
    """What a second person needs to get the same result."""
    versions = ", ".join(f"{view.clean(k)} {view.clean(v)}" for k, v in report.versions.items())
    rows = [Fact("Versions", versions)]
    for key in ("seed", "device"):
        if key in report.settings:
            rows.append(Fact(key.capitalize(), view.clean(report.settings[key])))
    for term, digest in (("Model SHA-256", report.model), ("Data SHA-256", report.data)):
        if digest.get("sha256"):
            rows.append(Fact(term, view.clean(digest["sha256"], 64), full="code"))
    return [r for r in rows if r.value]


def _timing(key: str, value: Any) -> Fact:
    """ "neural_cleanse_cpu_seconds": 60 -> neural cleanse, CPU: 1 min 0 s"""
    name = view.title(key.removesuffix("_seconds"))
    name = name.removesuffix(" cpu") + ", CPU time" if name.endswith(" cpu") else name
    text = view.duration(value) if isinstance(value, int | float) and math.isfinite(value) else "–"  # noqa: RUF001
    return Fact(name, text)


# ---------------------------------------------------------------------- triggers


@dataclass(frozen=True)
class Picture:
    """An image inside the page, shown at a whole multiple of its size."""

    uri: str
    width: int
    height: int
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One class with its trigger."""

    heading: str
    word: str
    text: str
    pictures: list[Picture]
    pairs: list[tuple[Picture, Picture]]
    facts: list[Fact]


def _finding_card(report: Report, finding: Finding) -> Card:
    e = view.evidence_of(report, finding)
    values = dict(e.values) if e is not None else {}
    facts = _size_facts(finding.trigger, values)
    if finding.attack_success_rate is not None:
        rate = view.figure("_rate", finding.attack_success_rate)
        facts.insert(0, Fact("Attack success rate", rate, "on samples the search has not seen"))
    if finding.score is not None:
        term = "Outlier index" if "norm" in values else "Score"
        over = f"threshold {view.number(finding.threshold)}" if finding.threshold is not None else ""
        facts.append(Fact(term, view.number(finding.score), over))
    if finding.p_value is not None:
        p = view.probability(finding.p_value)
        facts.append(Fact("p-value", p, "how often a clean model shows such an outlier"))
    facts += _detail_facts(finding, report.model.get("classes"))
    name = _isolated(report)
    heading = f"Class {name(finding.target)}" if finding.target is not None else "Every class"
    if finding.source is not None:
        heading = f"From {name(finding.source)} to {name(finding.target)}"
    word = "Cannot tell" if finding.level == WARNING else ""
    return _card(report, heading, word, view.sentence(finding.message), finding.trigger, facts)


def _smallest_card(report: Report, e: Evidence) -> Card:
    """The smallest trigger where none is suspicious."""
    said = next((f for f in report.findings if view.evidence_of(report, f) is e), None)
    finding = said or Finding("", e.detector, NOTE, "", e.target, e.source, trigger=e.trigger)
    rate = e.values.get("attack_success_rate")
    if finding.attack_success_rate is None and isinstance(rate, int | float):
        finding = replace(finding, attack_success_rate=float(rate))
    message = f"{view.sentence(finding.message)} Every class has some smallest trigger, in a clean model too."
    return _finding_card(report, replace(finding, message=message.strip()))


def _card(
    report: Report, heading: str, word: str, text: str, trigger: Trigger | None, facts: list[Fact]
) -> Card:
    if trigger is None:
        return Card(heading, word, text, [], [], facts)
    pictures = []
    mask = getattr(trigger, "mask", None)
    if mask is not None:
        pictures.append(picture(to_image(mask), "Mask", "where it is stamped; white covers the pixel"))
    note = "mask times pattern" if mask is not None else ""
    pictures.append(picture(trigger.picture(), "Trigger", note))
    pairs = []
    clean = view.examples(report, trigger, MOST_EXAMPLES)
    if clean is not None:
        stamped = trigger(clean)
        pairs = [
            (picture(to_image(a), "clean"), picture(to_image(b), "stamped"))
            for a, b in zip(clean, stamped, strict=True)
        ]
    return Card(heading, word, text, pictures, pairs, facts)


def _size_facts(trigger: Trigger | None, values: dict[str, Any]) -> list[Fact]:
    norm, pixels = values.get("norm"), values.get("pixels")
    if isinstance(norm, int | float) and isinstance(pixels, int | float) and pixels:
        share = f"{view.percent(norm / pixels)} of the image's {view.number(pixels)}"
        return [Fact("Size", f"{view.number(norm)} pixels", share)]
    return [Fact("Size", view.number(trigger.size))] if trigger is not None else []


def _detail_facts(finding: Finding, classes: Any) -> list[Fact]:
    """Further figures of the detector; the index of the Neural Cleanse paper with what it is worth."""
    facts = []
    for key, value in finding.details.items():
        if key == "paper_index" and isinstance(value, int | float):
            facts.append(Fact("The paper's own index", view.number(value), _paper_note(finding, classes)))
        elif key != "paper_index_chance":
            facts.append(Fact(view.title(key).capitalize(), view.figure(key, value)))
    return facts


def _paper_note(finding: Finding, classes: Any) -> str:
    if not isinstance(classes, int) or classes < 3:
        return "the rule “index above 2” can never fire here: with 2 classes the index is always 0.67"
    note = f"the rule “index above 2” fires on {view.percent(chance_of_index(2.0, classes))} of clean models"
    note += f" with {classes:,} classes"
    chance = finding.details.get("paper_index_chance")
    if isinstance(chance, int | float):
        note += f"; an index this high has probability {view.probability(chance)}"
    return note


def picture(image: Image.Image, caption: str = "", note: str = "", side: int = SIDE) -> Picture:
    """An image as a data URI; a small one is to be shown enlarged by a whole factor."""
    if max(image.size) > LARGEST:
        image = image.copy()
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    scale = max(1, side // max(image.size))
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(uri, image.width * scale, image.height * scale, caption, note)


# ---------------------------------------------------------------------- the table of evidence


@dataclass(frozen=True)
class Row:
    """Evidence of one unit."""

    name: str
    hot: bool
    thumbnail: Picture | None
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """Evidence of one detector; figures that are the same for all units stand in `common`."""

    detector: str
    looks_for: str
    heads: list[str]
    rows: list[Row]
    common: str
    folded: bool


def _table(report: Report, group: view.Group) -> Table:
    evidence = group.evidence
    keys = list(dict.fromkeys(k for e in evidence for k in e.values))
    same = {
        k for k in keys
        if len(evidence) > 1 and len({repr(e.values.get(k)) for e in evidence}) == 1
        and not isinstance(evidence[0].values.get(k), bool)
    }  # fmt: skip
    columns = [k for k in keys if k not in same]
    hot = view.marked(report, group)
    drawn = len(evidence) <= MOST_THUMBNAILS
    rows = [
        Row(
            view.unit_name(report, e),
            i in hot,
            _thumbnail(e.trigger) if drawn and e.trigger is not None else None,
            [view.figure(k, e.values.get(k)) for k in columns],
        )
        for i, e in enumerate(evidence)
    ]
    first = evidence[0].values
    common = ", ".join(
        f"{view.title(k)} {view.figure(k, first[k])}" for k in keys if k in same and first.get(k) is not None
    )
    heads = [view.title(k) for k in columns]
    folded = len(rows) > MOST_OPEN_ROWS
    return Table(view.clean(group.detector), view.looks_for(group.detector), heads, rows, common, folded)


def _thumbnail(trigger: Trigger) -> Picture:
    image = trigger.picture()
    image.thumbnail((48, 48), Image.Resampling.BOX)
    return picture(image, side=32)
