"""Two reports side by side: verdicts, what was found by whom, triggers, settings; what differs is marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backsweep.inventory.store import Record
from backsweep.render import standing, view
from backsweep.render.dashboard.lists import WORDS, when
from backsweep.render.pages.card import picture
from backsweep.reports.report import NOTE, Finding, Report, worst_first

Side = tuple[int, Record, Report]
MOST_FINDINGS, MOST_TRIGGERS = 40, 4


@dataclass(frozen=True)
class Pair:
    """A line of a table: a name, the value on either side, whether they differ."""

    name: str
    left: str
    right: str

    @property
    def differs(self) -> bool:
        """Whether the sides do not say the same."""
        return self.left != self.right


def compared(left: Side, right: Side) -> dict[str, Any]:
    """What the page shows of two verdicts, in the order that they were chosen."""
    sides = [_side(*s) for s in (left, right)]
    reports = (left[2], right[2])
    told = [_settings(s[1], s[2]) for s in (left, right)]
    keys = list(dict.fromkeys([*told[0], *told[1]]))
    settings = [Pair(view.clean(k, 80), told[0].get(k, "–"), told[1].get(k, "–")) for k in keys]  # noqa: RUF001
    return {
        "sides": sides,
        "findings": _findings(*reports),
        "settings": sorted(settings, key=lambda p: not p.differs),
        "same_model": left[1].model == right[1].model,
        "drawn": any(s["triggers"] for s in sides),
    }


def _side(number: int, record: Record, report: Report) -> dict[str, Any]:
    verdict = view.verdict(report)
    found = [
        (f"leads to {view.names(report)(f.target)}", picture(f.trigger.picture()))
        for f in standing.suspects(report, MOST_TRIGGERS)
        if f.trigger is not None
    ]
    return {
        "id": number, "model": view.clean(record.model, 64), "source": view.clean(record.source, 200),
        "verdict": report.verdict, "word": WORDS[report.verdict], "headline": verdict.headline,
        "p_value": "not calibrated" if report.p_value is None else view.probability(report.p_value),
        "when": when(record.time), "triggers": found,
    }  # fmt: skip


Key = tuple[str, str, int | None, int | None]


def _findings(left: Report, right: Report) -> list[dict[str, Any]]:
    """Findings of either report, those of the same detector and classes in one line."""

    def key(f: Finding) -> Key:
        return f.detector, f.code, f.source, f.target

    def of(report: Report) -> dict[Key, Finding]:
        told = (f for f in worst_first(report.findings) if f.level != NOTE or f.p_value is not None)
        return {key(f): f for f in told}

    both = [of(left), of(right)]
    keys: list[Key] = list(dict.fromkeys([*both[0], *both[1]]))
    rows = []
    for k in keys[:MOST_FINDINGS]:
        name = view.names(left if k in both[0] else right)
        about = (
            "the network"
            if k[3] is None
            else f"{name(k[2])} to {name(k[3])}"
            if k[2] is not None
            else name(k[3])
        )
        cells = [_figures(side.get(k)) for side in both]
        rows.append({"detector": view.title(view.clean(k[0])), "about": about, "cells": cells})
    return rows


def _figures(finding: Finding | None) -> dict[str, str] | None:
    """What one side says; None where it has no such finding."""
    if finding is None:
        return None
    rate = finding.attack_success_rate
    return {
        "level": {"error": "evidence", "warning": "cannot tell"}.get(finding.level, "for information"),
        "hot": "hot" if finding.level == "error" else "",
        "score": "" if finding.score is None else view.number(finding.score),
        "threshold": "" if finding.threshold is None else view.number(finding.threshold),
        "p_value": "" if finding.p_value is None else view.probability(finding.p_value),
        "rate": "" if rate is None else view.figure("_rate", rate),
    }


def _settings(record: Record, report: Report) -> dict[str, str]:
    """All that a verdict depends on, flat: "detectors.cascade.effort" -> "standard"."""
    flat: dict[str, str] = {"model": view.clean(record.model, 64)[:24]}
    _flatten("", dict(record.settings), flat)
    flat["host"] = view.clean(record.host)
    flat["python"] = view.clean(record.versions.get("python", ""))
    return flat


def _flatten(where: str, value: Any, flat: dict[str, str]) -> None:
    if isinstance(value, Mapping):
        for k, v in value.items():
            _flatten(f"{where}.{k}" if where else str(k), v, flat)
    elif value is not None:
        flat[where] = view.clean(value, 200)
