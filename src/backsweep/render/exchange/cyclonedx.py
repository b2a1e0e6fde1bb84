"""Verdicts as the machine-learning part of a CycloneDX 1.6 bill of materials."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from backsweep import __version__
from backsweep.core.errors import BadInput
from backsweep.inventory.store import Record, now
from backsweep.render import view
from backsweep.reports.report import BACKDOORED, CLEAN, ERROR, INCONCLUSIVE, NOTE, Finding, Report

VERSIONS = ("1.5", "1.6", "1.7")  # they have models and their cards
_GRAVITY = {BACKDOORED: 2, INCONCLUSIVE: 1, CLEAN: 0}
_OURS = "backsweep:"
_EMBEDDED_MALICIOUS_CODE = 506  # CWE
_SOURCE = {"name": "Backsweep"}


def cyclonedx(records: Sequence[Record], bom: dict[str, Any] | None = None) -> dict[str, Any]:
    """A bill of materials with a component for every model and a vulnerability for every finding.

    Of several verdicts on one model the gravest counts, of equal ones the newest.

    Args:
        records: with their reports.
        bom: a bill to put them into: its components of the same SHA-256 are added to, others appended.

    Raises:
        BadInput: `bom` is no bill of materials, or a kept report is damaged.
    """
    whole = _new(records) if bom is None else _checked(bom)
    known = {str(h.get("content")).lower(): c for c in _components(whole) for h in _listed(c, "hashes")}
    gravest: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: (_GRAVITY[r.verdict], r.time)):
        gravest[record.model] = record
    for record in sorted(gravest.values(), key=lambda r: (r.source, r.model)):
        report = Report.from_json(record.report, name=f"the report of {record.source}")
        component = known.get(record.model)
        if component is None:
            component = _component(record, report)
            whole.setdefault("components", []).append(component)
        component.setdefault("bom-ref", f"model-{record.model}")
        theirs = [p for p in _listed(component, "properties") if not str(p.get("name")).startswith(_OURS)]
        component["properties"] = theirs + _properties(record)
        found = {}
        for finding in report.findings:
            if finding.level != NOTE:
                entry = _vulnerability(finding, record, component["bom-ref"])
                found[entry["bom-ref"]] = entry
        kept = [
            v for v in _listed(whole, "vulnerabilities")
            if not str(v.get("bom-ref")).startswith(f"{_OURS}{record.model}/")
        ]  # fmt: skip
        if kept or found:
            whole["vulnerabilities"] = [*kept, *found.values()]
    return whole


def _new(records: Sequence[Record]) -> dict[str, Any]:
    identity = "/".join(sorted(f"{r.model}{r.settings_key}" for r in records))
    tool = {"type": "application", "name": "backsweep", "version": __version__}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",
        "version": 1,
        "metadata": {"timestamp": now(), "tools": {"components": [tool]}},
        "components": [],
    }


def _checked(bom: Any) -> dict[str, Any]:
    if not isinstance(bom, dict) or bom.get("bomFormat") != "CycloneDX":
        raise BadInput("this is no CycloneDX bill of materials in JSON; give one, or leave out --bom")
    if bom.get("specVersion") not in VERSIONS:
        raise BadInput(
            f"this is a bill of materials of CycloneDX {view.clean(bom.get('specVersion'), 20)}; give one of "
            f"{view.join(VERSIONS)}, which know models"
        )
    version = bom.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise BadInput("this bill of materials is damaged: its version is no whole number")
    return {**bom, "version": version + 1}


def _listed(part: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The tables in a list of a bill that a stranger wrote.

    Raises:
        BadInput: something else is there.
    """
    found = part.get(key, [])
    if not isinstance(found, list) or not all(isinstance(f, dict) for f in found):
        raise BadInput(f"this bill of materials is damaged: {key} is no list of tables")
    return found


def _components(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for component in _listed(part, "components"):
        yield component
        yield from _components(component)


def _component(record: Record, report: Report) -> dict[str, Any]:
    of_file = report.model.get("sha256_of") == "file" and re.fullmatch("[0-9a-f]{64}", record.model)
    accuracy = report.data.get("clean_accuracy")
    kind = view.clean(view.modality(report).name, 40) or "unknown"
    metrics = (
        [{"type": "accuracy on clean samples", "value": f"{accuracy:.4f}"}] if accuracy is not None else []
    )
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model-{record.model}",
        "name": view.clean(PurePath(record.source).name or record.source, 200) or "model",
        **({"hashes": [{"alg": "SHA-256", "content": record.model}]} if of_file else {}),
        "modelCard": {
            "modelParameters": {
                "task": f"{kind} classification",
                "inputs": [{"format": f"{kind} " + "x".join(map(str, record.shape))}],
                "outputs": [{"format": f"scores of {record.classes} classes"}],
            },
            **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
        },
    }


def _properties(record: Record) -> list[dict[str, str]]:
    values: dict[str, Any] = {
        "verdict": record.verdict, "p_value": record.p_value,
        "targets": " ".join(map(str, record.targets)), "time": record.time, "source": record.source,
        "detectors": " ".join(record.settings.get("detectors", ())), "alpha": record.settings.get("alpha"),
        "sha256": record.model, "settings_key": record.settings_key,
        "version": record.versions.get("backsweep"),
    }  # fmt: skip
    return [
        {"name": _OURS + k, "value": view.clean(v, 500)}
        for k, v in values.items()
        if v is not None and v != ""
    ]


def _vulnerability(finding: Finding, record: Record, component: str) -> dict[str, Any]:
    sure = finding.level == ERROR
    p = f" p-value: {view.probability(finding.p_value)}." if finding.p_value is not None else ""
    return {
        "bom-ref": f"{_OURS}{record.model}/{view.clean(finding.code)}/{finding.source}/{finding.target}",
        "id": view.clean(finding.code),
        "source": _SOURCE,
        "ratings": [{"source": _SOURCE, "severity": "critical" if sure else "unknown", "method": "other"}],
        "cwes": [_EMBEDDED_MALICIOUS_CODE],
        "description": view.sentence(finding.message) + p,
        "created": record.time,
        "analysis": {"state": "in_triage"},
        "affects": [{"ref": component}],
    }
