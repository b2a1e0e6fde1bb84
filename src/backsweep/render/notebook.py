"""What a notebook shows of a result: its verdict, its pictures and its figures, in a small box.

Results find this by its name (`core.discovery.drawn`): they know no page. All text is cleaned and escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

from backsweep.guarding.guard import Guard
from backsweep.inputs.trigger import Trigger
from backsweep.render import view
from backsweep.render.pages import audit, repair_words, scan
from backsweep.render.pages.audit_map import Counts
from backsweep.render.pages.card import Picture, isolated, picture
from backsweep.render.pages.page import template
from backsweep.reports.audit import Audit
from backsweep.reports.repair import Repaired
from backsweep.reports.report import NOTE, Report, worst_first

MOST_ROWS = 8


@singledispatch
def html(result: object) -> str:
    """The box of a result."""
    raise TypeError(f"there is no picture of a {type(result).__name__}")


@html.register
def _(result: Report) -> str:
    name = isolated(result)
    words, pair = view.verdict(result, name), scan.pair(result, name)
    pictures = [] if pair is None else [(pair.clean, pair.before), (pair.stamped, pair.after)]
    told = [f for f in worst_first(result.findings) if f.level != NOTE][:MOST_ROWS]
    rows = [
        [
            view.title(view.clean(f.detector)), "the network" if f.target is None else name(f.target),
            "" if f.score is None else view.number(f.score),
            "" if f.p_value is None else view.probability(f.p_value),
        ]
        for f in told
    ]  # fmt: skip
    return _box(result.verdict, words, ["detector", "class", "score", "p-value"], rows, pictures)


@html.register
def _(result: Audit) -> str:
    name, counts = isolated(result), Counts(result)
    rows = [
        [name(c), f"{counts.flagged_of(c):,}", f"{counts.of(c):,}"] for c in audit.found(result)[:MOST_ROWS]
    ]
    return _box(result.verdict, audit.verdict(result, name), ["class", "flagged", "samples"], rows)


@html.register
def _(result: Repaired) -> str:
    name = isolated(Report(model=dict(repair_words.about(result, "model"))))
    rows = [[r.name, r.before, r.after] for r in repair_words.compared(result)]
    return _box(repair_words.tone(result), repair_words.verdict(result, name), ["", "before", "after"], rows)


@html.register
def _(result: Guard) -> str:
    words = view.Verdict(
        "Guard", f"Flags {view.percent(result.fpr)} of clean inputs.",
        [f"{result.passes:g} forward passes an input; above {result.threshold:.4g} one is flagged."], [],
    )  # fmt: skip
    rows = [[view.title(view.clean(n))] for n in result.scorers]
    rows += [[f"{view.clean(n.what)}: skipped, {view.sentence(n.reason)}"] for n in result.skipped]
    return _box("", words, ["detectors"], rows)


@html.register
def _(result: Trigger) -> str:
    to = "the next class" if result.target is None else f"class {result.target}"
    source = "every class" if result.source is None else f"class {result.source}"
    words = view.Verdict(
        "Trigger", f"{type(result).__name__}: {source} to {to}.", [f"Size {result.size:.4g}."], []
    )
    return _box("", words, [], [], [(picture(result.picture()), result.drawn)])


def _box(
    tone: str,
    words: view.Verdict,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    pictures: Sequence[tuple[Picture, str]] = (),
) -> str:
    return template("notebook.html.j2").render(
        tone=tone, words=words, heads=heads, rows=rows, pictures=pictures
    )
