"""The classes that a page shows closely: the recovered trigger, a stamped example, and what speaks for it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from torch import Tensor

from backsweep.core.statistics import chance_of_index
from backsweep.inputs.modality import Modality
from backsweep.inputs.trigger import Trigger
from backsweep.render import standing, talks, view
from backsweep.reports.report import NOTE, WARNING, Evidence, Finding, Report

SIDE, LARGEST = 160, 224  # shown width of a small picture, and the most that is kept of a large one
FORMULA = "=+-@|%"  # what a formula may begin with
MOST_ROWS, MOST_CELLS = 3, 40  # of a table
MOST_EXAMPLES = 4
MOST_HEARD = 2**20  # bytes of one sound in a page
WEAK = 0.9  # a reference with less than this share of the model's accuracy says less
ALIKE = 0.5  # a trigger that works on the reference at this share of its success is likely natural


@dataclass(frozen=True)
class Fact:
    """A figure with its name; `note` says what it is worth, `full` is shown on hovering."""

    term: str
    value: str
    note: str = ""
    full: str = ""


@dataclass(frozen=True)
class Picture:
    """An image inside the page, shown at a whole multiple of its size; `audio` is what is played with it."""

    uri: str
    width: int
    height: int
    caption: str = ""
    note: str = ""
    audio: str = ""


@dataclass(frozen=True)
class Bar:
    """A figure as a bar: its length in percent of the longest that can be."""

    term: str
    value: str
    length: float
    hot: bool = False


@dataclass(frozen=True)
class Bars:
    """Figures side by side; `note` says how to read them."""

    title: str
    note: str
    rows: list[Bar]


@dataclass(frozen=True)
class Cells:
    """One named value of some inputs, before and after the trigger."""

    name: str
    pairs: list[tuple[str, str]]
    hot: bool


@dataclass(frozen=True)
class Card:
    """One class with its trigger."""

    heading: str
    word: str
    text: str
    facts: list[Fact]
    pictures: list[Picture] = field(default_factory=list)
    pairs: list[tuple[Picture, Picture]] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    rows: list[Cells] = field(default_factory=list)
    talks: list[talks.Talk] = field(default_factory=list)


def isolated(report: Report) -> view.Name:
    """Class names between Unicode isolates: text that runs from right to left stays where it is."""
    name = view.names(report)
    return lambda index: f"\u2066{name(index)}\u2069"


def cards(report: Report, groups: Sequence[standing.Group]) -> tuple[str, list[Card]]:
    """What stands above the cards, and the cards: of the suspected classes, else of one to compare with."""
    found = standing.suspects(report)
    drawn = [_finding_card(report, groups, f) for f in found]
    plural = "s" if len(found) > 1 else ""
    if found and all(f.trigger is not None for f in found):
        return f"The recovered trigger{plural}", drawn
    if found:
        if any(f.trigger is not None for f in found):
            without = " A trigger was recovered for the most suspicious class only."
            drawn = [c if c.pictures else replace(c, text=c.text + without) for c in drawn]
        return f"The suspected class{'es' if plural else ''}", drawn
    least = standing.smallest(groups)
    if least is None:
        return "", []
    return standing.compared(groups, least), [_smallest_card(report, groups, least)]


def _finding_card(report: Report, groups: Sequence[standing.Group], finding: Finding) -> Card:
    e = standing.evidence_of(groups, finding)
    values = dict(e.values) if e is not None else {}
    bars = _rates(report, values) + _sigmas({**values, **finding.details}, view.modality(report))
    facts = _size_facts(finding.trigger, values, view.modality(report))
    if finding.attack_success_rate is not None and "reference_success_rate" not in values:
        rate = view.figure("_rate", finding.attack_success_rate)
        facts.insert(0, Fact("Attack success rate", rate, "on samples the search has not seen"))
    if finding.score is not None:
        over = f"threshold {view.number(finding.threshold)}" if finding.threshold is not None else ""
        facts.append(Fact(*_score(groups, finding, finding.score), over))
    if finding.p_value is not None:
        doubt = " (uncalibrated)" if view.rests_on(finding) == view.DOUBTFUL else ""
        facts.append(Fact("p-value", view.probability(finding.p_value) + doubt, _worth(finding)))
    facts += _detail_facts(finding, report.model.get("classes"))
    name = isolated(report)
    found = view.modality(report).found.capitalize()
    heading = f"{found} {name(finding.target)}" if finding.target is not None else f"Every {found.lower()}"
    if finding.source is not None:
        heading = f"From {name(finding.source)} to {name(finding.target)}"
    word = "Cannot tell" if finding.level == WARNING else ""
    card = Card(heading, word, view.sentence(finding.message), facts, bars=bars, talks=talks.of(finding))
    return card if finding.trigger is None else _with_pictures(report, card, finding.trigger)


def _smallest_card(report: Report, groups: Sequence[standing.Group], e: Evidence) -> Card:
    """The smallest trigger where none is suspicious."""
    about = (f for f in report.findings if not view.is_shortcut(f))
    said = next((f for f in about if standing.evidence_of(groups, f) is e), None)
    finding = said or Finding("", e.detector, NOTE, "", e.target, e.source, trigger=e.trigger)
    rate = e.values.get("attack_success_rate")
    if finding.attack_success_rate is None and isinstance(rate, int | float):
        finding = replace(finding, attack_success_rate=float(rate))
    message = f"{view.sentence(finding.message)} Every class has some smallest trigger, in a clean model too."
    return _finding_card(report, groups, replace(finding, message=message.strip()))


def _with_pictures(report: Report, card: Card, trigger: Trigger) -> Card:
    pictures = []
    where = trigger.stamped_at(LARGEST)
    modality = view.modality(report)
    if where is not None:
        pictures.append(picture(where, "Mask", f"where it is stamped; white covers the {modality.unit}"))
    alone = trigger.alone(report.model.get("shape") or ())
    drawn = picture(trigger.picture(), "Trigger", trigger.drawn)
    pictures.append(drawn if alone is None else replace(drawn, audio=played(modality, alone)))
    pairs = []
    clean = standing.examples(report, trigger, MOST_EXAMPLES)
    if clean is not None and modality.cells(clean[0]):
        return replace(card, pictures=pictures, rows=cells(modality, clean, trigger(clean)))
    if clean is not None:
        pairs = [
            (shown(modality, a, "clean"), shown(modality, b, "stamped"))
            for a, b in zip(clean, trigger(clean), strict=True)
        ]
    return replace(card, pictures=pictures, pairs=pairs)


def cells(modality: Modality, clean: Tensor, stamped: Tensor) -> list[Cells]:
    """Inputs as names and values, those that the trigger changes first."""
    before = [modality.cells(x) for x in clean[:MOST_ROWS]]
    after = [modality.cells(x) for x in stamped[:MOST_ROWS]]
    found = []
    for j, (name, _) in enumerate(before[0]):
        pairs = [(inert(a[j][1]), inert(b[j][1])) for a, b in zip(before, after, strict=True)]
        found.append(Cells(inert(name), pairs, any(a != b for a, b in pairs)))
    return sorted(found, key=lambda c: not c.hot)[:MOST_CELLS]


def inert(text: str) -> str:
    """Untrusted text that no spreadsheet takes for a formula, wherever it is pasted."""
    line = view.clean(text, 60)
    try:
        float(line)
    except ValueError:
        return "'" + line if line[:1] in FORMULA and line else line
    return line


# ---------------------------------------------------------------------- bars


def _rates(report: Report, values: Mapping[str, Any]) -> list[Bars]:
    """How often the trigger works, here and on the reference."""
    here, there = (_share(values.get(f"{k}_success_rate")) for k in ("attack", "reference"))
    if here is None or there is None:
        return []
    note = "On samples that the search has not seen. "
    note += (
        "It works on the reference as well, as natural triggers mostly do."
        if there >= ALIKE * here
        else "A planted trigger works on this model alone; a natural one mostly works on both."
    )
    given = report.settings.get("reference")
    note += (
        " The reference is the network that was given for it."
        if given
        else " The reference is this model with its later half learned anew from the clean samples."
    )
    right, of = (_share(values.get(k)) for k in ("reference_accuracy", "accuracy"))
    if right is not None and of is not None and right < WEAK * of:
        note += (
            f" It is right on {view.percent(right)} of clean samples only, the model on {view.percent(of)}: "
            "the comparison is worth less here."
        )
    rows = [
        Bar("on this model", view.percent(here), round(100 * here, 1), hot=True),
        Bar("on the reference", view.percent(there), round(100 * there, 1)),
    ]
    return [Bars("How often the trigger works", note, rows)]


def _share(value: object) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if usable else None  # type: ignore[arg-type]


def _sigmas(values: Mapping[str, Any], kind: Modality) -> list[Bars]:
    """How much easier the class is to reach than usual, by the kind of change."""
    found = view.sigmas(values)
    if not found:
        return []
    longest = max(5.0, found[0][1])
    rows = [
        Bar(view.title(key, kind), view.figure(key, z), round(100 * max(z, 0.0) / longest, 1), hot=i == 0)
        for i, (key, z) in enumerate(found)
    ]
    note = (
        "In sigmas: how much smaller a change of each kind is enough than is usual for a class of this "
        "model. Below zero it takes a larger one."
    )
    return [Bars("How easy the class is to reach", note, rows)]


# ---------------------------------------------------------------------- facts


def _score(groups: Sequence[standing.Group], finding: Finding, score: float) -> tuple[str, str]:
    """The name of a score, and the score."""
    measure = next((g.measure for g in groups if g.detector == finding.detector), None)
    if measure is not None and measure.ranks:
        return view.title(measure.key).capitalize(), view.figure(measure.key, score)
    return ("Outlier index" if "spread" in finding.details else "Score"), view.number(score)


def _worth(finding: Finding) -> str:
    """What a p-value says, and what it rests on."""
    said = view.null(finding)
    if view.rests_on(finding) == view.DOUBTFUL:
        return said
    if view.OF_KINDS.fullmatch(said):
        return f"beside {said}"
    return f"its rank among {said}" if said else "how often a clean model shows such an outlier"


def _size_facts(trigger: Trigger | None, values: Mapping[str, Any], modality: Modality) -> list[Fact]:
    norm, units = values.get("norm"), values.get("pixels", values.get("units"))
    if trigger is not None and trigger.units is not None:
        norm = trigger.size if norm is None else norm
        units = units or trigger.units
    if isinstance(norm, int | float) and isinstance(units, int | float) and units:
        share = f"{view.percent(norm / units)} of the {modality.noun}'s {view.number(units)}"
        return [Fact("Size", f"{view.number(norm)} {modality.unit}s", share)]
    return [Fact("Size", view.number(trigger.size))] if trigger is not None else []


def _detail_facts(finding: Finding, classes: Any) -> list[Fact]:
    """Further figures of the detector; the index of the Neural Cleanse paper with what it is worth."""
    facts = []
    for key in talks.plain(finding.details):
        value = finding.details[key]
        if key == "paper_index" and isinstance(value, int | float):
            facts.append(Fact("The paper's own index", view.number(value), _paper_note(finding, classes)))
        elif key not in ("paper_index_chance", "null") and not key.startswith("z_"):
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


def shown(modality: Modality, x: Tensor, caption: str = "", side: int = SIDE) -> Picture:
    """An input (*shape) as a picture, with what is played where it can be heard."""
    return replace(picture(modality.picture(x), caption, side=side), audio=played(modality, x))


def played(modality: Modality, x: Tensor) -> str:
    """An input as a data URI of a sound; "" where it is not heard, or too long to be put into a page."""
    kind, body = modality.playable(x) or ("", b"")
    return f"data:{kind};base64,{base64.b64encode(body).decode()}" if 0 < len(body) <= MOST_HEARD else ""


def thumbnail(trigger: Trigger) -> Picture:
    """A trigger as small as a line of a table."""
    image = trigger.picture()
    image.thumbnail((48, 48), Image.Resampling.BOX)
    return picture(image, side=32)
