"""A report as SARIF 2.1.0, which code hosts and security dashboards read."""

from __future__ import annotations

import hashlib
import math
import re
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from backsweep.render import view
from backsweep.render.pages import audit
from backsweep.reports.audit import Audit
from backsweep.reports.report import ERROR, NOTE, Finding, Report

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
EXIT_TEXT = {0: "nothing suspicious", 1: "evidence of a backdoor", 3: "inconclusive"}
POISON_TEXT = {**EXIT_TEXT, 1: "evidence of poisoned samples"}


def sarif(report: Report) -> dict[str, Any]:
    """The report as a SARIF log with one run.

    Findings of level "error" and "warning" become results. A "note" says that nothing is wrong; it
    becomes a notification, because code hosts show every result as an alert, whatever its kind.
    """
    of_set = isinstance(report, Audit)
    rules = {_id(f): _set_rule(report, f) if of_set else _rule(report, f) for f in report.findings}
    index = {code: i for i, code in enumerate(rules)}
    location = uri(str(_looked_at(report).get("source") or ("training set" if of_set else "model")))
    version = view.clean(report.versions.get("backsweep", ""))
    home = _home()
    for f in report.findings:
        rules[_id(f)]["helpUri"] = (
            home or f"{_package(version)}#pages/{quote(page_name(f.detector), safe='')}"
        )
    driver = {
        "name": "Backsweep", "rules": list(rules.values()),
        **({"version": version} if version else {}),
        "informationUri": home or _package(version),
    }  # fmt: skip
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "invocations": [_invocation(report, index)],
                "artifacts": [_artifact(report, location)],
                "results": [
                    _result(report, f, index[_id(f)], location) for f in report.findings if f.level != NOTE
                ],
                "properties": {"verdict": report.verdict, "targets": list(report.targets)}
                | _numbers(pValue=report.p_value, alpha=report.settings.get("alpha")),
            }
        ],
    }


@cache
def _home() -> str:
    """Where the installed package says that its documentation is, "" where it says nothing."""
    try:
        said = metadata.metadata("backsweep").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    found = dict(line.split(", ", 1) for line in said if ", " in line)
    return next((found[k] for k in ("Documentation", "Homepage", "Repository") if k in found), "")


def _package(version: str) -> str:
    """The package as an absolute URI (package-url), of which `pages/` holds the page of every method."""
    return "pkg:pypi/backsweep" + (f"@{quote(version, safe='')}" if version else "")


def page_name(method: str) -> str:
    """The file of a method's page, as `backsweep explain` opens it."""
    return f"{method.replace('_', '-')}.md"


def _looked_at(report: Report) -> dict[str, Any]:
    """What is known of the thing that was looked at: a model, or a training set."""
    return report.data if isinstance(report, Audit) else report.model


def _id(finding: Finding) -> str:
    """The rule id; a detector from outside may have none."""
    return view.clean(finding.code) or view.clean(finding.detector) or "unnamed"


def _set_rule(report: Report, finding: Finding) -> dict[str, Any]:
    """The rule of a detector of training sets."""
    detector = view.clean(finding.detector)
    return {
        "id": _id(finding),
        "name": "".join(word.capitalize() for word in re.split(r"[\W_]+", detector)),
        "shortDescription": {"text": f"Poisoned training samples ({detector})"},
        "fullDescription": {"text": f"{detector} looks for {audit.looks_for(report, finding.detector)}."},
        "help": _help(detector, f"looks for {audit.looks_for(report, finding.detector)}"),
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["security", "data-poisoning", "machine-learning"]},
    }


def _rule(report: Report, finding: Finding) -> dict[str, Any]:
    detector = view.clean(finding.detector)
    name = "".join(word.capitalize() for word in re.split(r"[\W_]+", detector))
    short = f"Evidence of a backdoor ({detector})"
    full = f"looks for {view.looks_for(report, finding.detector)}"
    shortcut = view.is_shortcut(finding)
    if shortcut:
        short = f"Natural shortcut ({detector})"
        full = (
            "names classes that a faint change of an input leads to, in a reference alike: no evidence of a "
            "backdoor, yet of use to an attacker"
        )
    return {
        "id": _id(finding),
        "name": name + "Shortcut" * shortcut,
        "shortDescription": {"text": short},
        "fullDescription": {"text": f"{detector} {full}."},
        "help": _help(detector, full),
        "defaultConfiguration": {"level": "note" if shortcut else "error"},
        "properties": {"tags": ["security", *["backdoor"] * (not shortcut), "machine-learning"]},
    }


def _help(detector: str, full: str) -> dict[str, str]:
    """What a code host shows beside an alert, and where to read on."""
    more = "The page beside this file (report.html) shows the evidence. "
    text = f"{detector} {full}. {more}What the detector catches, misses and costs: "
    command = f"backsweep explain {detector}"
    return {"text": text + command, "markdown": f"{text}`{command}`"}


def _result(report: Report, finding: Finding, rule: int, location: str) -> dict[str, Any]:
    text = view.sentence(finding.message) or "Cannot tell."
    if isinstance(report, Audit):
        text = audit.said(report, finding, text)
    elif finding.level == ERROR:
        text = f"{view.evidence_of_a_backdoor([finding], view.names(report))}. {text}"
    if finding.p_value is not None:
        worth = f" ({view.rests_on(finding)})" if view.rests_on(finding) else ""
        text += f" p-value: {view.probability(finding.p_value)}{worth}."
    identity = f"{_looked_at(report).get('sha256')}/{finding.code}/{finding.source}/{finding.target}"
    named = view.clean(finding.detector)
    properties = {"detector": named, "target": finding.target, "source": finding.source}
    return {
        "ruleId": _id(finding),
        "ruleIndex": rule,
        "kind": "fail",
        "level": "error" if finding.level == ERROR else "warning",
        "message": {"text": text},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": location, "index": 0}}}],
        "partialFingerprints": {"backdoor/v1": hashlib.sha256(identity.encode(errors="replace")).hexdigest()},
        "properties": properties
        | _numbers(
            pValue=finding.p_value, score=finding.score, threshold=finding.threshold,
            attackSuccessRate=finding.attack_success_rate, **finding.details,
        ),
    }  # fmt: skip


def _invocation(report: Report, index: dict[str, int]) -> dict[str, Any]:
    notes: list[dict[str, Any]] = []
    for level, title, found in (("warning", "skipped", report.skipped), ("error", "failed", report.errors)):
        notes += [_notification(level, f"{title}: {view.clean(n.what)}: {n.reason}") for n in found]
    for f in report.findings:
        if f.level == NOTE:
            rule = {"id": _id(f), "index": index[_id(f)]}
            about = f"class {view.names(report)(f.target)}: " if view.is_shortcut(f) else ""
            notes.append({**_notification("note", about + f.message), "associatedRule": rule})
    return {
        "executionSuccessful": not report.errors,
        "exitCode": report.exit_status,
        "exitCodeDescription": (POISON_TEXT if isinstance(report, Audit) else EXIT_TEXT)[report.exit_status],
        "toolExecutionNotifications": notes,
    }


def _notification(level: str, text: str) -> dict[str, Any]:
    return {"level": level, "message": {"text": view.sentence(text) or "No reason was given."}}


def _artifact(report: Report, location: str) -> dict[str, Any]:
    artifact: dict[str, Any] = {"location": {"uri": location}, "roles": ["analysisTarget"]}
    digest = str(report.model.get("sha256") or "")
    of_file = report.model.get("sha256_of", "file") == "file" and not isinstance(report, Audit)
    if of_file and re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        artifact["hashes"] = {"sha-256": digest}
    return artifact


def uri(source: str) -> str:
    """A path as a URI reference: relative below the current folder, elsewhere with the scheme "file"."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", source):
        return quote(source, safe="/:?#@!$&'()*+,;=%~", errors="replace")
    windows = PureWindowsPath(source)
    if windows.is_absolute():
        return "file:///" + quote(windows.as_posix(), safe="/:", errors="replace").lstrip("/")
    with suppress(ValueError, OSError):  # code hosts show what lies below the checkout, and nothing else
        source = str(PurePosixPath(source).relative_to(Path.cwd()))
    path = quote(str(PurePosixPath(source)), errors="replace")
    return "file://" + path if path.startswith("/") else path


def _numbers(**values: Any) -> dict[str, Any]:
    """What can be written: no infinity, nothing that is not there."""
    return {
        k: v
        for k, v in values.items()
        if v is not None and not (isinstance(v, float) and not math.isfinite(v))
    }
