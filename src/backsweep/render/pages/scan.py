"""A report as one self-contained HTML page: no script, nothing fetched, pictures inside."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backsweep.render import repeat, standing, talks, view
from backsweep.render.handoff import steps
from backsweep.render.pages.card import Fact, Picture, cards, isolated, shown, thumbnail
from backsweep.render.pages.chart import chart
from backsweep.render.pages.page import template
from backsweep.reports.report import Report

MOST_THUMBNAILS, MOST_OPEN_ROWS = 64, 12


def html(report: Report, links: Sequence[tuple[str, str]] = (), folder: str | Path | None = None) -> str:
    """The page.

    Everything a user or a stranger wrote is cleaned and escaped; the page forbids itself scripts and
    any connection (Content-Security-Policy).

    Args:
        report: what was found.
        links: addresses and their names, shown at the top.
        folder: where it is saved, for the commands to go on with.
    """
    groups = standing.groups(report)
    heading, closely = cards(report, groups)
    name = isolated(report)
    return template("report.html.j2").render(
        noun=view.modality(report).noun,
        found=view.modality(report).found,
        links=links,
        verdict=view.verdict(report, name),
        steps=steps(report, folder),
        tone=report.verdict,
        pair=pair(report, name),
        facts=_facts(report),
        charts=[drawn for g in groups if (drawn := chart(report, g)) is not None],
        cards=closely,
        cards_heading=heading,
        shortcuts=view.about_shortcuts(report, name),
        tables=[_table(report, g) for g in groups],
        skipped=[(view.clean(n.what), view.sentence(n.reason)) for n in report.skipped],
        errors=[(view.clean(n.what), view.sentence(n.reason)) for n in report.errors],
        command=repeat.command(report),
        typed=view.clean(report.model.get("command") or "", 4000),
        origin=origin(report),
        timings=[timing(k, v) for k, v in report.timings.items()],
    )


@dataclass(frozen=True)
class Pair:
    """One clean input, and the same with the recovered trigger, with what is known of the answers."""

    clean: Picture
    stamped: Picture
    before: str
    after: str


def pair(report: Report, name: view.Name) -> Pair | None:
    """What stands beside the verdict: the trigger of the worst finding on one input; None without either."""
    found = next((f for f in standing.suspects(report) if f.trigger is not None), None)
    if found is None or found.trigger is None:
        return None
    rows = standing.example_rows(report, found.trigger, 1)
    if not rows:
        return None
    inputs, kind = report.examples[rows], view.modality(report)
    label = standing.example_label(report, rows[0])
    before = f"A clean {kind.noun}" + (f" of class {name(label)}" if label is not None else "")
    after = f"with the recovered trigger; it leads to {name(found.target)}"
    if kind.classified and (said := standing.answers(report, found, rows[0])) is not None:
        before += f": the model says {name(said[0])}"
        after = (
            f"with the recovered trigger: the model says {name(said[1])}. It leads to {name(found.target)}"
        )
    if found.attack_success_rate is not None:
        after += f" on {view.figure('_rate', found.attack_success_rate)} of samples the search has not seen"
    stamped = found.trigger(inputs)
    return Pair(shown(kind, inputs[0]), shown(kind, stamped[0]), before, after)


# ---------------------------------------------------------------------- facts


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
        present = data.get("classes_present") if view.modality(report).classified else None
        note = (
            f"{view.number(present)} of them in the data" if present not in (None, model["classes"]) else ""
        )
        facts.append(
            Fact(view.modality(report).answers.capitalize(), view.figure("", model["classes"]), note)
        )
    if view.shape(report):
        facts.append(Fact("Input", view.shape(report), view.modality(report).axes))
    if model.get("parameters"):
        facts.append(Fact("Parameters", view.figure("", model["parameters"])))
    if data.get("clean_accuracy") is not None:
        facts.append(Fact("Clean accuracy", view.figure("accuracy", data["clean_accuracy"])))
    elif "clean_accuracy" in data:
        facts.append(Fact("Clean accuracy", "not measured"))
    if data.get("samples"):
        facts.append(Fact("Clean samples", view.figure("", data["samples"])))
    for note in data.get("notes") or ():
        facts.append(Fact("What was done to the data", view.clean(note, 400)))
    if report.settings.get("alpha") is not None:
        facts.append(Fact("False alarms accepted", view.level(report.settings["alpha"]), "of clean models"))
    return facts


def origin(report: Report) -> list[Fact]:
    """What a second person needs to get the same result."""
    versions = ", ".join(f"{view.clean(k)} {view.clean(v)}" for k, v in report.versions.items())
    rows = [Fact("Versions", versions)]
    for key in ("seed", "device"):
        if key in report.settings:
            rows.append(Fact(key.capitalize(), view.clean(report.settings[key])))
    for term, digest in (("Model SHA-256", report.model), ("Data SHA-256", report.data)):
        if digest.get("sha256"):
            rows.append(Fact(term, view.clean(digest["sha256"], 64), full="code"))
    rows += from_outside(report.settings)
    return [r for r in rows if r.value]


def from_outside(settings: Mapping[str, Any]) -> list[Fact]:
    """Methods that are not of Backsweep: the package that brings one, or where its class stands."""
    said = {key: settings.get(key) for key in ("packages", "origins")}
    found = [(name, where) for s in said.values() if isinstance(s, dict) for name, where in s.items()]
    words = [f"{view.clean(name)} ({view.clean(where)})" for name, where in found]
    return [Fact("Methods from outside", view.join(words))] if words else []


def timing(key: str, value: Any) -> Fact:
    """ "neural_cleanse_cpu_seconds": 60 -> neural cleanse, CPU: 1 min 0 s"""
    name = view.title(key.removesuffix("_seconds"))
    name = name.removesuffix(" cpu") + ", CPU time" if name.endswith(" cpu") else name
    text = view.duration(value) if isinstance(value, int | float) and math.isfinite(value) else "–"  # noqa: RUF001
    return Fact(name, text)


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
    drawn: bool
    common: str
    folded: bool
    more: str


def _table(report: Report, group: standing.Group) -> Table:
    evidence = group.evidence
    # what was measured with the trigger of a few classes only stands on their cards
    times = Counter(k for e in evidence for k in talks.plain(e.values))
    keys = [k for k in times if 2 * times[k] >= len(evidence) or view.is_space(k)]
    same = {
        k for k in keys
        if len(evidence) > 1 and len({repr(e.values.get(k)) for e in evidence}) == 1
        and not isinstance(evidence[0].values.get(k), bool)
    }  # fmt: skip
    columns = [k for k in keys if k not in same]
    hot = standing.marked(report, group)
    drawn = len(evidence) <= MOST_THUMBNAILS and any(e.trigger is not None for e in evidence)
    rows = [
        Row(
            standing.row_name(report, group, i, i in hot),
            i in hot,
            thumbnail(e.trigger) if drawn and e.trigger is not None else None,
            [view.figure(k, e.values.get(k)) for k in columns],
        )
        for i, e in enumerate(evidence)
    ]
    first = evidence[0].values
    kind = view.modality(report)
    shared = [k for k in keys if k in same and first.get(k) is not None]
    common = ", ".join(f"{view.title(k, kind)} {view.figure(k, first[k])}" for k in shared)
    more = ""
    if group.measured != len(evidence):
        more = (
            f"One row for each class, made from {view.counted(group.measured, 'measurement')}, which are in "
            "report.json."
        )
    if any(view.sigmas(e.values) for e in evidence):
        more += " The columns of the kinds of change are in sigmas; larger is more suspicious."
    return Table(
        view.clean(group.detector), view.looks_for(report, group.detector),
        [view.title(k, kind) for k in columns], rows,
        drawn, common, len(rows) > MOST_OPEN_ROWS, more.strip(),
    )  # fmt: skip
