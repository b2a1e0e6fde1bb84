"""What a scan found: evidence, findings, verdict. Standard library only.

Evidence is numbers without an opinion, one record for every unit of work. A finding is an opinion
with its score, threshold and p-value. What was skipped and what failed are lists of their own: what
was not scanned is never "clean".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backsweep.core import documents
from backsweep.core.discovery import drawn, write_beside
from backsweep.core.equality import Same
from backsweep.core.errors import BadInput
from backsweep.core.text import one_line

if TYPE_CHECKING:
    from backsweep.inputs.trigger import Trigger

SCHEMA = 1
CLEAN, BACKDOORED, INCONCLUSIVE = "clean", "backdoored", "inconclusive"
EXIT_STATUS = {CLEAN: 0, BACKDOORED: 1, INCONCLUSIVE: 3}
ERROR, WARNING, NOTE = "error", "warning", "note"
SECOND = "second-opinion"  # folder of it, in that of a report


@dataclass(frozen=True)
class Evidence:
    """What one unit of work measured.

    Attributes:
        detector: name of the detector.
        unit: key of the unit within the detector, e.g. "class-3".
        target, source: the classes it speaks of, None for all.
        values: measured numbers by name; None where there is none.
        trigger: the trigger it recovered.
        cpu_seconds: processor time that it took.
    """

    detector: str
    unit: str
    target: int | None = None
    source: int | None = None
    values: Mapping[str, float | int | bool | str | None] = field(default_factory=dict)
    trigger: Trigger | None = None
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Finding:
    """An opinion of a detector.

    Attributes:
        code: permanent rule id, e.g. "BSW101".
        detector: name of the detector.
        level: "error" (evidence of a backdoor), "warning" (cannot tell), "note" (for information).
        message: one sentence.
        target, source: suspected classes; `source` None means every class.
        score: the statistic, higher = more suspicious; `threshold` what it was compared with.
        p_value: probability that a clean model scores as high; None: not calibrated.
        trigger: the recovered trigger.
        attack_success_rate: of that trigger, on held-out samples.
        details: further figures of the detector, by name.
    """

    code: str
    detector: str
    level: str
    message: str
    target: int | None = None
    source: int | None = None
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    trigger: Trigger | None = None
    attack_success_rate: float | None = None
    details: Mapping[str, float | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """Something that was skipped, or that failed: what, and why."""

    what: str
    reason: str


@dataclass(eq=False)
class Report(Same):
    """The result of a scan.

    Attributes:
        model, data: what was scanned: source, SHA-256, shape, classes, clean accuracy, ...
        settings: detectors with their settings, alpha, seed, device.
        versions: of Backsweep, torch and Python.
        findings, skipped, errors, evidence: see the classes above.
        timings: wall and CPU seconds by stage.
        examples: a few clean inputs (N, C, H, W) for the pictures of the report, or None.
        second: the report of a second opinion; the findings are those of both together.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    skipped: list[Note] = field(default_factory=list)
    errors: list[Note] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    examples: Any = None
    second: Report | None = None

    def __repr__(self) -> str:
        p = "None" if self.p_value is None else f"{self.p_value:.3g}"
        found = (
            f"{self.verdict}, targets={self.targets}, p_value={p}, {len(self.evidence)} records of evidence"
        )
        return f"{type(self).__name__}({found})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return drawn(self)

    @property
    def verdict(self) -> str:
        """ "backdoored" with any finding of level error; "clean" only when something ran, nothing
        failed and nothing stayed open; else "inconclusive"."""
        levels = {f.level for f in self.findings}
        if ERROR in levels:
            return BACKDOORED
        if WARNING in levels or self.errors or not self.evidence:
            return INCONCLUSIVE
        return CLEAN

    @property
    def p_value(self) -> float | None:
        """Smallest p-value of the findings, corrected for the number of detectors (Bonferroni).

        Detectors that were calibrated together, `details["together"]` of them, count as one of that weight,
        those that take no share of alpha not at all.
        """
        ran = len({e.detector for e in self.evidence} - set(self.settings.get("unranked") or ()))
        values = [
            f.p_value * ran / float(f.details.get("together") or 1)
            for f in self.findings if f.p_value is not None
        ]  # fmt: skip
        return min(1.0, *values) if values else None

    @property
    def targets(self) -> tuple[int, ...]:
        """Suspected target classes, most suspicious first."""
        suspicious = [f for f in worst_first(self.findings) if f.level != NOTE]
        return tuple(dict.fromkeys(f.target for f in suspicious if f.target is not None))

    @property
    def exit_status(self) -> int:
        """0 clean, 1 backdoored, 3 inconclusive."""
        return EXIT_STATUS[self.verdict]

    def label(self, index: int | None) -> str:
        """Class name for people (untrusted text), its number when it has none; the answer that begins so."""
        names: Sequence[str] = self.model.get("labels") or ()
        if index is None:
            return str(self.model.get("every") or "every class")
        known: Mapping[str, object] = self.model.get("answers") or {}
        said = (f.details.get("answer") for f in self.findings if f.target == index)
        if (answer := next(filter(None, [*said, known.get(str(index))]), None)) is not None:
            return f"“{answer}”"
        return f"{index} ({names[index]})" if index < len(names) and names[index] else str(index)

    # ------------------------------------------------------------------ files

    def to_json(self) -> dict[str, Any]:
        """The report as strict JSON (what is not finite becomes null); triggers are named by their files."""
        plain: dict[str, Any] = documents.finite({
            "schema": SCHEMA,
            "verdict": self.verdict,
            "p_value": self.p_value,
            "targets": list(self.targets),
            **{name: getattr(self, name) for name in ("versions", "model", "data", "settings", "timings")},
            "findings": [_plain(f) for f in self.findings],
            "skipped": [asdict(n) for n in self.skipped],
            "errors": [asdict(n) for n in self.errors],
            "evidence": [_plain(e) for e in self.evidence],
        })  # fmt: skip
        return plain

    def save(self, folder: str | Path) -> Path:
        """Write report.json, report.html, report.sarif and the triggers; returns the folder.

        Raises:
            BadInput: the folder cannot be written.
        """
        from backsweep.core.files import save_tensor, writable_folder, write_json
        from backsweep.inputs.kinds import modality_of

        folder = writable_folder(Path(folder))
        for evidence in self.evidence:
            if evidence.trigger is not None:
                path = folder / trigger_file(evidence.detector, evidence.unit)
                path.parent.mkdir(exist_ok=True)
                evidence.trigger.save(path)
        if self.examples is not None:
            save_tensor(folder / "examples.safetensors", modality_of(self.model).pack(self.examples))
        if self.second is not None:
            self.second.save(folder / SECOND)
        write_beside(self, folder)
        write_json(folder / "report.json", self.to_json())
        return folder

    @staticmethod
    def load(folder: str | Path) -> Report:
        """Read a saved report.

        Raises:
            BadInput: no report there, damaged, or of a newer schema.
        """
        folder = Path(folder)
        path = folder / "report.json" if folder.is_dir() else folder
        return Report.from_json(read_json(path), path.parent, str(path))

    @staticmethod
    def from_json(raw: Any, folder: Path | None = None, name: str = "this") -> Report:
        """The report that `to_json` wrote.

        Args:
            raw: the JSON.
            folder: where its triggers and examples are; None leaves them out.
            name: of the report, for errors.

        Raises:
            BadInput: damaged, or of a newer schema.
        """
        from safetensors import SafetensorError

        try:
            known_schema(raw, name)
            documents.check("report", raw)
            parts = {n: raw[n] for n in ("versions", "model", "data", "settings", "timings")}
            evidence = [read_evidence(e, folder) for e in raw["evidence"]]
            triggers = {(e.detector, e.target, e.source): e.trigger for e in evidence}
            findings = [Finding(**f) for f in raw["findings"]]
            report = Report(
                **parts,
                findings=[
                    replace(f, trigger=triggers.get((f.detector, f.target, f.source))) for f in findings
                ],
                skipped=[Note(**n) for n in raw["skipped"]],
                errors=[Note(**n) for n in raw["errors"]],
                evidence=evidence,
                examples=_examples(folder, parts["model"]),
            )
            _agrees(report, raw)
            if folder is not None and parts["settings"].get("confirm") and folder.name != SECOND:
                report.second = Report.load(folder / SECOND)
            return report
        except OSError as e:
            raise BadInput(f"cannot read {name}: {e.strerror or e}; give the folder of a scan (--out)") from e
        except (ValueError, SafetensorError) as e:
            raise BadInput(f"{name} is not a report of Backsweep, or is damaged ({one_line(str(e))})") from e


def read_json(path: Path) -> Any:
    """What report.json says, not yet checked.

    Raises:
        BadInput: there is none, or it is no JSON.
    """
    try:
        return documents.parsed(path.read_bytes())
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror or e}; give the folder of a scan (--out)") from e
    except ValueError as e:
        raise BadInput(f"{path} is not a report of Backsweep, or is damaged ({one_line(str(e))})") from e


def known_schema(raw: Any, name: str, known: int = SCHEMA) -> None:
    """Refuse what a newer version wrote, before looking for what is wrong with it.

    Raises:
        BadInput: the document has a schema of another number.
    """
    found = raw.get("schema") if isinstance(raw, dict) else None
    if isinstance(found, int) and found != known:
        raise BadInput(f"{name} has schema {found}; this version reads schema {known}")


def _agrees(report: Report, raw: Mapping[str, Any]) -> None:
    """Whether a report says one thing everywhere: what follows from its findings, and its classes.

    Raises:
        ValueError: it does not.
    """
    classes = report.model.get("classes")
    about: dict[str, Sequence[Finding | Evidence]] = {
        "findings": report.findings,
        "evidence": report.evidence,
    }
    for what, records in about.items():
        for i, r in enumerate(records):
            most = max(-1 if r.target is None else r.target, -1 if r.source is None else r.source)
            if classes is not None and most >= classes:
                raise ValueError(f"{what}[{i}] speaks of class {most}, there are {classes}")
    p, said = report.p_value, raw["p_value"]
    agree = p == said if p is None or said is None else math.isclose(p, said, rel_tol=1e-9)
    follow = {"verdict": (report.verdict, raw["verdict"]), "targets": (list(report.targets), raw["targets"])}
    for key, (own, other) in {**follow, "p_value": (p, p if agree else said)}.items():
        if own != other:
            raise ValueError(f"{key} is {other!r}, from the findings follows {own!r}")
    shape = report.model.get("shape")
    for e in report.evidence if shape else ():
        if e.trigger is not None:
            e.trigger.try_on(shape)


def _examples(folder: Path | None, model: dict[str, Any]) -> Any:
    """The inputs that a report shows, None where there are none."""
    from backsweep.core.files import load_tensor
    from backsweep.inputs.kinds import modality_of

    kept = load_tensor(folder / "examples.safetensors") if folder is not None else None
    if kept is None:
        return None
    found, shape = modality_of(model).unpack(kept), model.get("shape")
    if found.ndim < 2 or (shape is not None and tuple(found.shape[1:]) != tuple(shape)):
        raise ValueError(f"the examples have shape {tuple(found.shape)}, the model takes {shape}")
    return found


def trigger_file(detector: str, unit: str) -> str:
    """Where the trigger of a unit lies in a report's folder."""
    return f"triggers/{detector}-{unit}.safetensors"


def evidence_json(evidence: Evidence) -> dict[str, Any]:
    """One record of evidence as strict JSON."""
    plain: dict[str, Any] = documents.finite(_plain(evidence))
    return plain


def read_evidence(raw: dict[str, Any], folder: Path | None) -> Evidence:
    """The record that `evidence_json` wrote, with its trigger from the folder if there is one.

    Args:
        raw: checked against its schema.
        folder: of the report; None leaves triggers out.
    """
    from backsweep.inputs.trigger import Trigger

    file = raw.get("trigger")
    expected = trigger_file(raw["detector"], raw["unit"])
    if file is not None and (file != expected or len(Path(file).parts) != 2):
        raise ValueError(f"trigger file {file!r}")
    trigger = Trigger.load(folder / file) if file and folder is not None else None
    return Evidence(**{**raw, "trigger": trigger})


def _plain(record: Evidence | Finding) -> dict[str, Any]:
    out = {k: getattr(record, k) for k in record.__dataclass_fields__}
    if isinstance(record, Evidence):
        out["values"] = dict(record.values)
        out["trigger"] = trigger_file(record.detector, record.unit) if record.trigger else None
    else:
        del out["trigger"]
        out["details"] = dict(record.details)
    return out


def checked_findings(detector: str, findings: Iterable[Finding]) -> list[Finding]:
    """The findings of a detector from outside, once they are what a report can hold.

    Raises:
        TypeError: they are not.
    """
    found = list(findings)
    for f in found:
        if not isinstance(f, Finding) or f.level not in (ERROR, WARNING, NOTE) or f.detector != detector:
            raise TypeError(f"it gave {f!r}"[:200] + ", which is no finding of its own with a level")
        try:
            documents.check("report", documents.finite(_plain(f)), "finding")
        except documents.Misfit as e:
            raise TypeError(f"it gave a finding that no report can hold: {e}") from e
    return found


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; smallest p-value first."""
    rank = {ERROR: 0, WARNING: 1, NOTE: 2}
    return sorted(findings, key=lambda f: (rank[f.level], f.p_value if f.p_value is not None else 1.0))
