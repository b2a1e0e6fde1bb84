"""A verdict as a section of a model card: Markdown to paste into the README of a model."""

from __future__ import annotations

import re
from pathlib import PurePath

from backsweep.core.text import in_markdown
from backsweep.render import view
from backsweep.reports.report import ERROR, Report


def model_card(report: Report) -> str:
    """A section of Markdown that says what was looked at, with what, what was found, and what that is worth.

    Text out of the model or its files is escaped, so that it can make no link, picture or heading.
    """
    said, model, data = view.verdict(report), report.model, report.data
    name = view.names(report)
    classes = ", ".join(name(t) for t in report.targets) or "none"
    alpha = report.settings.get("alpha")
    detectors = ", ".join(map(str, report.settings.get("detectors", {}))) or "none"
    p_value = "not calibrated" if report.p_value is None else view.probability(report.p_value)
    samples = view.figure("", data.get("samples", 0))
    rows = [
        ("Verdict", f"**{_text(said.word)}**"),
        ("Suspected classes", _text(classes)),
        ("p-value", _text(p_value) + ("" if alpha is None else f", level {_text(view.level(alpha))}")),
        ("Model", _text(PurePath(str(model.get("source") or "model")).name)),
        (f"SHA-256 of its {_text(model.get('sha256_of') or 'file')}", f"`{_digest(model.get('sha256'))}`"),
        ("Looked at with", _text(f"Backsweep {report.versions.get('backsweep', '')}: {detectors}")),
        ("Clean samples", _text(samples)),
    ]
    if data.get("clean_accuracy") is not None:
        rows.append(("Accuracy on them", _text(view.figure("accuracy", data["clean_accuracy"]))))
    triggers = sum(f.trigger is not None for f in report.findings if f.level == ERROR)
    if triggers:
        rows.append(("Triggers recovered", _text(f"{triggers}, shown in report.html")))
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
    why = map(_text, said.why)
    return "\n\n".join(["## Backdoor scan", _text(said.headline), "\n".join(table), *why]) + "\n"


def _text(text: object) -> str:
    """Untrusted text as one line of plain words in Markdown, which starts no list or heading."""
    return re.sub(r"^(\d*)([-+.#=])(?=[-#=\s]|$)", r"\1\\\2", in_markdown(view.clean(text, 600)))


def _digest(text: object) -> str:
    """Hexadecimal digits alone."""
    return re.sub(r"[^0-9a-f]", "", str(text or "").lower())[:64] or "unknown"
