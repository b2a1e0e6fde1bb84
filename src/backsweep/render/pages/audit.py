"""An audit as one self-contained HTML page: no script, nothing fetched, pictures inside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backsweep.auditing.audit import KINDS
from backsweep.core.provenance import known
from backsweep.render import repeat, view
from backsweep.render.handoff import scanned, steps, training
from backsweep.render.pages.audit_map import Counts, Histogram, Map, Tile, histogram, scatter, tiles, usable
from backsweep.render.pages.card import Bar, Bars, Fact, isolated
from backsweep.render.pages.page import template
from backsweep.render.pages.scan import origin, timing
from backsweep.reports.audit import Audit, Examples, Retrained, scored_by
from backsweep.reports.report import (
    BACKDOORED,
    CLEAN,
    ERROR,
    INCONCLUSIVE,
    WARNING,
    Evidence,
    Finding,
    Report,
    worst_first,
)
from backsweep.scanning.calibration import UNCALIBRATED

MOST_OPEN_ROWS = 12
ODD = 0.5  # a class of which more than this share is flagged is worth a second look


def html(report: Audit, folder: str | Path | None = None) -> str:
    """The page.

    Everything a user or a stranger wrote is cleaned and escaped; the page forbids itself scripts and
    any connection (Content-Security-Policy).

    Args:
        folder: where it is saved, for the commands to go on with.
    """
    name, counts = isolated(report), Counts(report)
    shown = [_card(report, p, counts, name) for p in report.pictures if usable(p, counts.samples)]
    drawn = {p.label for p in report.pictures if usable(p, counts.samples)}
    return template("audit.html.j2").render(
        verdict=verdict(report, name),
        steps=steps(report, folder),
        tone=report.verdict,
        facts=_facts(report, counts),
        heading=_heading(report, found(report)),
        cards=shown,
        missing=_missing(report, drawn, counts, name),
        tables=[_table(report, d, counts, name) for d in dict.fromkeys(e.detector for e in report.evidence)],
        retrained=None if report.retrained is None else _retrained(report, report.retrained),
        skipped=[(view.clean(n.what), view.sentence(n.reason)) for n in report.skipped],
        errors=[(view.clean(n.what), view.sentence(n.reason)) for n in report.errors],
        command=_command(report),
        typed=view.clean(report.model.get("command") or "", 4000),
        origin=origin(report),
        timings=[timing(k, v) for k, v in report.timings.items()],
    )


# ---------------------------------------------------------------------- the verdict in words


def found(report: Audit) -> list[int]:
    """Classes that were found poisoned, the most suspicious first."""
    errors = [f for f in worst_first(report.findings) if f.level == ERROR]
    return list(dict.fromkeys(f.target for f in errors if f.target is not None))


def verdict(report: Audit, name: view.Name | None = None) -> view.Verdict:
    """What the audit says, in words; `name` makes a class index into text."""
    name = name or view.names(report)
    return {BACKDOORED: _poison, CLEAN: _none, INCONCLUSIVE: _open}[report.verdict](report, name)


def _poison(report: Audit, name: view.Name) -> view.Verdict:
    counts, classes = Counts(report), found(report)
    if len(classes) == 1:
        own, of = counts.flagged_of(classes[0]), counts.of(classes[0])
        headline = f"Poisoned samples were found in class {name(classes[0])}: "
        headline += f"{own:,} of {view.counted(of, 'sample')} {'is' if own == 1 else 'are'} flagged."
    else:
        shown = [name(c) for c in classes[: 3 if len(classes) > 4 else 4]]
        more = [f"{len(classes) - len(shown):,} more"] if len(classes) > len(shown) else []
        where = f" in {len(classes):,} classes: {view.join(shown + more)}" if classes else ""
        headline = f"Poisoned samples were found{where}. "
        headline += f"{counts.flagged:,} of {view.counted(counts.samples, 'sample')} are flagged."
    why = [
        worth(report),
        "This is the chance of a false alarm on a training set without poison, not the chance that this set "
        "is clean. A flagged sample may be merely odd.",
    ]
    if report.errors:
        why.append("Part of the audit failed, so there may be more than was found; see below.")
    what_next = [
        "Look at the flagged samples below before you delete anything: what has the same mark or tint on "
        "many of them is a trigger; what is only hard to read is not.",
        "flagged.csv lists the flagged samples with their scores, kept.csv the rows of the cleaned set.",
    ]
    what_next.append("Do not use the network that was trained on this set; train it again on what is kept.")
    return view.Verdict("Poison found", headline, why, what_next)


def _none(report: Audit, name: view.Name) -> view.Verdict:
    why = []
    said = next((f for f in worst_first(report.findings) if f.target is not None), None)
    if said is not None and report.p_value is not None:
        why.append(f"The class that stands out most is {name(said.target)}. {worth(report)}")
    alpha = report.settings.get("alpha")
    if alpha is not None:
        why.append(f"It accepts false alarms in {view.level(alpha)} of training sets without poison.")
    what = "; ".join(looks_for(report, d) for d in dict.fromkeys(e.detector for e in report.evidence))
    why.append(
        f"This audit looks for {what}. Very few poisoned samples, or poison of another kind, can go unseen: "
        "no audit proves that there is none."
    )
    if report.skipped:
        why.append("Some of the checks were skipped; see below.")
    return view.Verdict("No poison found", "No poison was found in this training set.", why, [])


def _open(report: Audit, name: view.Name) -> view.Verdict:
    warnings = [f for f in report.findings if f.level == WARNING]
    why = [view.sentence(f"{view.clean(n.what)}: {n.reason}") for n in report.errors]
    why += [view.sentence(f.message.removeprefix("cannot tell: ")) for f in warnings]
    what_next = ["Fix the cause above, then run the same audit again."] if report.errors else []
    if warnings:
        what_next.append(
            "Look at the samples below with your own eyes, and try another detector ('backsweep list' names "
            "them)."
        )
    if not why:
        why = ["No detector ran on this training set, so nothing was looked for."]
        why += [view.sentence(f"skipped {view.clean(n.what)}: {n.reason}") for n in report.skipped]
        what_next.append("Choose a detector that fits; 'backsweep list' names them.")
    headline = "The audit cannot tell whether there are poisoned samples."
    return view.Verdict("Cannot tell", headline, why, what_next)


def worth(report: Audit) -> str:
    """What the p-value means, and what it rests on."""
    p = report.p_value
    first = next((f for f in worst_first(report.findings) if f.p_value is not None), None)
    if p is None or first is None:
        return "How often a set without poison looks like this is not known: the test is not calibrated here."
    about, null = f", {view.odds(p)}" if view.odds(p) else "", view.null(first)
    said = f"A training set without poison looks as suspicious with probability {view.probability(p)}{about}"
    if null == UNCALIBRATED:
        return (
            f"{said}. This figure is {view.DOUBTFUL}: it follows from how the classes of this one set differ "
            "and was not checked on sets without poison."
        )
    return f"{said}: its rank among {null}." if null else f"{said}."


def said(report: Audit, finding: Finding, text: str) -> str:
    """The message of a finding, for a code host: which class, how many samples."""
    if finding.level != ERROR:
        return text
    counts = Counts(report)
    own, of = counts.flagged_of(finding.target), counts.of(finding.target)
    where = "" if finding.target is None else f" in class {view.names(report)(finding.target)}"
    return f"Poisoned samples{where}: {own:,} of {of:,} are flagged. {text}"


def looks_for(report: Report, detector: str) -> str:
    """What a detector flags, from its summary."""
    cls = known(KINDS, detector, report.settings)
    return re.sub(r" \([^()]*\)$", "", view.summary(cls, detector))


# ---------------------------------------------------------------------- facts


def _facts(report: Audit, counts: Counts) -> list[Fact]:
    model, data, alpha = report.model, report.data, report.settings.get("alpha")
    facts = [
        Fact("Training set", view.clean(data.get("source") or "unknown", 300)),
        Fact("Model trained on it", view.clean(model.get("source") or "unknown", 300)),
        Fact("Samples", f"{counts.samples:,}"),
        Fact("Flagged", f"{counts.flagged:,}", _share(counts.flagged, counts.samples)),
    ]
    if model.get("classes"):
        present = data.get("classes_present")
        note = f"{view.figure('', present)} of them in the set" if present != model["classes"] else ""
        facts.append(Fact("Classes", view.figure("", model["classes"]), note if present is not None else ""))
    if view.shape(report):
        facts.append(Fact("Input", view.clean(view.shape(report)), view.modality(report).axes))
    if data.get("training_accuracy") is not None:
        value = view.figure("accuracy", data["training_accuracy"])
        facts.append(Fact("Training accuracy", value, "of the model, on these samples"))
    names = dict.fromkeys([*report.settings.get("detectors", {}), *report.scores])
    facts.append(Fact("Detectors", ", ".join(view.title(n) for n in names) or "none"))
    if data.get("clean"):
        facts.append(Fact("Samples known to be clean", view.clean(data["clean"], 300)))
    if alpha is not None:
        facts.append(Fact("False alarms accepted", view.level(alpha), "of sets without poison"))
    if report.p_value is not None:
        first = next(f for f in worst_first(report.findings) if f.p_value is not None)
        facts.append(Fact("p-value", view.probability(report.p_value), view.rests_on(first)))
    return facts


def _share(part: int, whole: int) -> str:
    return view.percent(part / whole) if whole else ""


def _command(report: Audit) -> str:
    command = repeat.command(report, "audit", training(report))
    return command + " --clean CLEAN" * bool(report.data.get("clean"))


# ---------------------------------------------------------------------- classes


@dataclass(frozen=True)
class Card:
    """One class: where its samples lie, their scores, some of them."""

    heading: str
    tag: str
    texts: list[str]
    hot: bool
    map: Map | None
    keys: tuple[str, str]
    some: str
    histogram: Histogram | None
    detector: str
    suspicious: list[Tile]
    typical: list[Tile]
    mixed: bool
    facts: list[Fact]


def _heading(report: Audit, classes: list[int]) -> str:
    if classes:
        return "The poisoned class" if len(classes) == 1 else "The poisoned classes"
    return "The class that stands out most"


def _card(report: Audit, shown: Examples, counts: Counts, name: view.Name) -> Card:
    of_class = [f for f in worst_first(report.findings) if f.target == shown.label]
    finding = next((f for f in of_class if f.detector in report.scores), None)
    own, of = counts.flagged_of(shown.label), counts.of(shown.label)
    hot = finding is not None and finding.level == ERROR
    texts = [text for f in of_class if (text := view.sentence(f.message))]
    if hot and own > ODD * of:
        texts.append(
            "More than half of the class is flagged: the flagged samples may be the class itself and the "
            "others the poison. The pictures tell."
        )
    if not hot:
        texts.append("Every class has some most suspicious samples, in a set without poison too.")
    drawn, marked = scatter(shown, counts.rows), None
    by, suspicious, typical, facts = "", list[Tile](), list[Tile](), list[Fact]()
    if finding is not None:
        scores, by = report.scores[scored_by(finding)], view.title(scored_by(finding))
        marked = histogram(scores[counts.labels == shown.label], _cut(report, finding), hot)
        suspicious, typical = tiles(shown, scores, counts.rows, view.modality(report))
        facts = _class_facts(report, of_class)
    some, tag = "", "cannot tell" if report.verdict == INCONCLUSIVE else "not found poisoned"
    if drawn is not None and drawn.drawn < of:
        some = f"Drawn are {drawn.drawn:,} of {of:,} samples, the most suspicious among them."
    return Card(
        f"Class {name(shown.label)}", f"{own:,} of {of:,} flagged" if hot else tag, texts,
        hot, drawn, (f"{own:,}", f"{of - own:,}"), some, marked, by,
        suspicious, typical, any(t.hot for t in typical), facts,
    )  # fmt: skip


def _cut(report: Audit, finding: Finding) -> float | None:
    which = scored_by(finding), finding.target
    e = next((e for e in report.evidence if (e.detector, e.target) == which), None)
    value = None if e is None else e.values.get("cut")
    return float(value) if isinstance(value, int | float) else None


def _class_facts(report: Audit, findings: list[Finding]) -> list[Fact]:
    """What each detector says of the class."""
    facts = []
    for f in findings:
        by = f" ({view.title(f.detector)})" if len({g.detector for g in findings}) > 1 else ""
        if f.score is not None:
            over = f"threshold {view.number(f.threshold)}" if f.threshold is not None else ""
            facts.append(Fact(f"Statistic{by}", view.number(f.score), over))
        if f.p_value is not None:
            doubt = f" ({view.DOUBTFUL})" if view.rests_on(f) == view.DOUBTFUL else ""
            said = view.null(f) if doubt else view.rests_on(f)
            facts.append(Fact(f"p-value{by}", view.probability(f.p_value) + doubt, said))
        cut = _cut(report, f)
        if cut is not None:
            note = "samples above it are flagged" if f.level == ERROR else "nothing is flagged here"
            facts.append(Fact(f"Cut{by}", view.number(cut), note))
    return facts


def _missing(report: Audit, drawn: set[int], counts: Counts, name: view.Name) -> list[tuple[str, str]]:
    """Poisoned classes that are not drawn, with their counts."""
    return [
        (name(c), f"{counts.flagged_of(c):,} of {counts.of(c):,} samples flagged")
        for c in found(report) if c not in drawn
    ]  # fmt: skip


# ---------------------------------------------------------------------- the table of classes


@dataclass(frozen=True)
class Row:
    """Evidence of one class."""

    name: str
    hot: bool
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """Evidence of one detector, the most suspicious class first."""

    detector: str
    looks_for: str
    heads: list[str]
    rows: list[Row]
    folded: bool
    more: str


def _table(report: Audit, detector: str, counts: Counts, name: view.Name) -> Table:
    evidence = [e for e in report.evidence if e.detector == detector]
    findings = {f.target: f for f in report.findings if f.detector == detector}
    hot = {t for t, f in findings.items() if f.level == ERROR}
    scores = report.scores.get(detector)

    def cells(e: Evidence) -> dict[str, str]:
        f, above = findings.get(e.target), e.values.get("above_cut")
        cut = e.values.get("cut")
        if scores is not None and isinstance(cut, int | float):
            above = int((scores[counts.labels == e.target] > cut).sum())
        return {
            "statistic": view.figure("statistic", e.values.get("statistic")),
            "p-value": "" if f is None or f.p_value is None else view.probability(f.p_value),
            "share of the second kind": view.figure("share", e.values["share"])
            if "share" in e.values
            else "",
            "above the cut": view.figure("", above),
            "samples": f"{counts.of(e.target):,}",
        }

    order = sorted(evidence, key=lambda e: -_statistic(e))
    made = [(e, cells(e)) for e in order]
    heads = [h for h in made[0][1] if any(c[h] for _, c in made)]
    rows = [Row(name(e.target), e.target in hot, [c[h] for h in heads]) for e, c in made]
    left = counts.samples and len(set(counts.labels.tolist()) - {e.target for e in evidence})
    more = f"{view.counted(left, 'class')} had too few samples to look at." if left else ""
    return Table(
        view.clean(detector), looks_for(report, detector), heads, rows, len(rows) > MOST_OPEN_ROWS, more
    )


def _statistic(e: Evidence) -> float:
    value = e.values.get("statistic")
    return float(value) if isinstance(value, int | float) else 0.0


def _retrained(report: Audit, again: Retrained) -> tuple[Bars, str]:
    """Accuracy before and after, and what it does not say."""
    given: dict[str, Any] = report.data
    note = f"Both on {view.clean(again.measured_on, 120)}."
    if not given.get("clean"):
        note += " The audited network was trained on these as well, which is to its favour."
    rows = [
        Bar(term, view.figure("accuracy", value), round(100 * min(max(value or 0.0, 0.0), 1.0), 1), hot)
        for term, value, hot in (
            ("the audited network", again.accuracy_before, False),
            (f"a fresh one, trained on {view.counted(again.samples, 'kept sample')}",
             again.accuracy_after, True),
        )
    ]  # fmt: skip
    said = "This is what it costs to leave the flagged samples out. " + scanned(report)
    return Bars("Accuracy", note, rows), said
