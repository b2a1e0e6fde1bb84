"""Who stands out: the evidence by detector, one record for each class, and the figure it is judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from backsweep.core.provenance import remade
from backsweep.render import view
from backsweep.reports.report import ERROR, NOTE, Evidence, Finding, Report, trigger_file, worst_first
from backsweep.scanning.detector import ModelDetector

if TYPE_CHECKING:
    from torch import Tensor

    from backsweep.inputs.trigger import Trigger


@dataclass(frozen=True)
class Measure:
    """The figure that a detector judges classes by.

    Attributes:
        key: its name among the values of the evidence.
        asks: the question that a chart of it answers.
        reads: how to read its dots, in a sentence.
        shows: what it shows in one line, before its range.
        high: whether large is suspicious; else small is.
        log: whether classes differ by factors: the axis is logarithmic, the index is of logarithms.
        ranks: whether it is on the scale of the score itself, so that it needs no index beside it.
    """

    key: str
    asks: str
    reads: str
    shows: str
    high: bool = False
    log: bool = True
    ranks: bool = False


MEASURES = (  # the first that a detector's evidence has
    Measure(
        "suspicion", "How suspicious each class is",
        "Each dot is a class; the higher it lies, the more rarely a clean model looks like this: every step "
        "of 1 is ten times as rare.",
        "Suspicion", high=True, log=False, ranks=True,
    ),
    Measure(
        "norm", "How small a trigger each class needs",
        "Each dot is a class; the lower it lies, the smaller a trigger sends other classes to it.",
        "Size of the smallest trigger",
    ),
    Measure(
        "size", "How small a trigger each class needs",
        "Each dot is a class; the lower it lies, the smaller a trigger sends other classes to it.",
        "Size of the smallest trigger",
    ),
    Measure(
        "reach", "How far each class is to reach",
        "Each dot is a class; the lower it lies, the smaller a common shift of the embedding leads to it, as "
        "a share of the way to the class itself.",
        "Smallest shift of the embedding",
    ),
    Measure(
        "need", "How small a change each class needs",
        "Each dot is a class; the lower it lies, the smaller a change sends other classes to it. The axis "
        "has the logarithm of that change and of what it lacks to work.",
        "Log of the smallest change", log=False,
    ),
    Measure(
        "margin", "How large a margin each class reaches",
        "Each dot is a class; the higher it lies, the surer the model can be made of it, whatever the input.",
        "Largest margin", high=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The evidence of one detector.

    Attributes:
        detector: its name.
        evidence: one record for each class or pair (`ModelDetector.rows`), in the order of its units.
        measured: how many measurements are behind it.
        measure: what its classes are judged by, or None.
        figures: that figure of every record, infinite where no trigger works; empty without a measure.
        index: how suspicious each is: robust sigmas from the median, or the score itself.
        median: of the figures; None when there is none.
        limit: figure at which a class is as suspicious as the detector's threshold, or None.
    """

    detector: str
    evidence: list[Evidence]
    measured: int = 0
    measure: Measure | None = None
    figures: list[float] = field(default_factory=list)
    index: list[float] = field(default_factory=list)
    median: float | None = None
    limit: float | None = None

    @property
    def of_the_network(self) -> bool:
        """Whether it is one record, of the network as a whole."""
        return len(self.evidence) == 1 and self.evidence[0].target is self.evidence[0].source is None

    @property
    def by_class(self) -> bool:
        """Whether every record has a target class of its own."""
        targets = {e.target for e in self.evidence}
        return None not in targets and len(targets) == len(self.evidence)


def groups(report: Report) -> list[Group]:
    """The evidence, by detector."""
    by_name: dict[str, list[Evidence]] = {}
    for e in report.evidence:
        by_name.setdefault(e.detector, []).append(e)
    return [_group(report, name, evidence) for name, evidence in by_name.items()]


def _rows(report: Report, name: str, evidence: list[Evidence]) -> list[Evidence]:
    """One record for each class, as the detector says; the evidence itself where it cannot.

    The report may be damaged, made by another version, or of a detector from outside, which is not known
    here or raises anything: it is shown as far as it can be.
    """
    try:
        detector = remade((ModelDetector,), name, report.settings["detectors"][name], report.settings)
        rows = detector.rows(evidence, int(report.model["classes"]))
        return rows if all(isinstance(e, Evidence) for e in rows) else evidence
    except Exception:
        return evidence


def _group(report: Report, name: str, evidence: list[Evidence]) -> Group:
    rows = _rows(report, name, evidence)
    measure = next((m for m in MEASURES if any(m.key in e.values for e in rows)), None)
    figures = [_figure(e, measure) for e in rows] if measure else []
    if measure is None or not any(math.isfinite(n) for n in figures):
        return Group(name, rows, len(evidence))
    said = [f for f in report.findings if f.detector == name and not view.is_shortcut(f)]
    if measure.ranks:
        limit = next((f.threshold for f in said if f.threshold is not None), None)
        return Group(name, rows, len(evidence), measure, figures, figures, None, limit)
    scaled = np.log(np.maximum(figures, 1e-12)) if measure.log else np.asarray(figures)
    center = float(np.median(scaled))
    if not math.isfinite(center):
        return Group(name, rows, len(evidence), measure, figures, [0.0] * len(figures))
    sign = 1.0 if measure.high else -1.0
    spread, threshold = _scale(said, sign, center)
    index = (sign * (scaled - center) / spread).tolist() if spread else [0.0] * len(figures)
    limit = center + sign * threshold * spread if threshold is not None and spread else None
    if limit is not None and measure.log:
        limit = math.exp(min(limit, 300.0))
    return Group(name, rows, len(evidence), measure, figures, index, float(np.median(figures)), limit)


def _scale(said: Sequence[Finding], sign: float, center: float) -> tuple[float | None, float | None]:
    """Robust sigma and threshold that the findings were judged with; None where they do not say.

    A detector that judges something else than the figure itself has another median.
    """
    for f in said:
        spread, median = f.details.get("spread"), f.details.get("median")
        if not isinstance(spread, int | float) or not 0 < spread < math.inf:
            continue
        if isinstance(median, int | float) and abs(-sign * center - median) > 1e-3 * max(1.0, abs(median)):
            return None, None
        usable = f.threshold is not None and math.isfinite(f.threshold)
        return float(spread), f.threshold if usable else None
    return None, None


def _figure(e: Evidence, measure: Measure) -> float:
    """Infinite where no trigger works."""
    value = e.values.get(measure.key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return -math.inf if measure.high else math.inf
    return math.inf if e.values.get("reached") is False and not measure.high else float(value)


def _about(record: Evidence | Finding) -> tuple[str, int | None, int | None]:
    return record.detector, record.target, record.source


def suspects(report: Report, most: int = 8) -> list[Finding]:
    """Findings that are evidence, and those that leave something open and have a trigger; worst first."""
    shown = [f for f in worst_first(report.findings) if f.level != NOTE]
    return [f for f in shown if f.level == ERROR or f.trigger is not None][:most]


def evidence_of(found: Sequence[Group], finding: Finding) -> Evidence | None:
    """The one record of evidence that a finding speaks of."""
    records = [e for g in found for e in g.evidence if _about(e) == _about(finding)]
    return records[0] if len(records) == 1 else None


def marked(report: Report, group: Group) -> set[int]:
    """Positions in the group of what there is evidence of a backdoor for."""
    errors = {_about(f) for f in report.findings if f.level == ERROR and evidence_of([group], f) is not None}
    return {i for i, e in enumerate(group.evidence) if _about(e) in errors}


def smallest(found: Sequence[Group]) -> Evidence | None:
    """The evidence with the smallest trigger that works, to compare with."""
    having = [e for g in found for e in g.evidence if e.trigger is not None]
    working = [e for e in having if e.values.get("reached") is not False]
    return min(working or having, key=lambda e: e.trigger.size if e.trigger else math.inf, default=None)


def compared(found: Sequence[Group], e: Evidence) -> str:
    """What the trigger of `e` is, where nothing is suspicious."""
    group = next((g for g in found if g.detector == e.detector), None)
    if group is None or sum(x.trigger is not None for x in group.evidence) > 1 or len(group.evidence) == 1:
        return "The smallest trigger found, for comparison"
    first = any(e is x and i == max(group.index) for i, x in zip(group.index, group.evidence, strict=False))
    what = "The trigger of the class that stands out most" if first else "A recovered trigger"
    return f"{what}, for comparison"


def examples(report: Report, trigger: Trigger, most: int) -> Tensor | None:
    """Clean inputs to stamp; of the source, else of other classes than the target, if there are any."""
    rows = example_rows(report, trigger, most)
    return report.examples[rows] if rows else None


def example_rows(report: Report, trigger: Trigger, most: int) -> list[int]:
    """Which of the report's examples these are."""
    if report.examples is None or not len(report.examples):
        return []
    labels = report.data.get("example_labels") or []
    labels = [*labels, *[None] * len(report.examples)][: len(report.examples)]
    source = [i for i, label in enumerate(labels) if label is not None and label == trigger.source]
    others = [i for i, label in enumerate(labels) if label is None or label != trigger.target]
    return (source or others or list(range(len(labels))))[:most]


def example_label(report: Report, row: int) -> int | None:
    """The class of an example, None where it is not known."""
    labels = report.data.get("example_labels") or []
    label = labels[row] if row < len(labels) else None
    return label if isinstance(label, int) else None


def answers(report: Report, found: Finding, row: int) -> tuple[int, int] | None:
    """What the model says of an example, clean and with the trigger of a finding; None: it was not asked."""
    own = next(
        (e for e in report.evidence if e.trigger is not None
         and (e.detector, e.target, e.source) == (found.detector, found.target, found.source)), None
    )  # fmt: skip
    stamped = (report.data.get("stamped_answers") or {}).get(
        trigger_file(own.detector, own.unit) if own else ""
    )
    said = [(each or [])[row : row + 1] for each in (report.data.get("example_answers"), stamped)]
    (before, after) = (s[0] if s else None for s in said)
    return (before, after) if isinstance(before, int) and isinstance(after, int) else None


def record_name(report: Report, e: Evidence) -> str:
    """What a record is about: its class, or "2 to 3" for a pair."""
    name = view.names(report)
    if e.target is None:
        return view.clean(e.unit)
    return name(e.target) if e.source is None else f"{name(e.source)} to {name(e.target)}"


def row_name(report: Report, group: Group, position: int, suspected: bool) -> str:
    """The same in a list; where each class has one record, sources are left to those suspected for one."""
    e = group.evidence[position]
    alone = group.by_class and not suspected
    return view.names(report)(e.target) if alone else record_name(report, e)
