"""What the console and the page have in common: words, numbers for people, and who stands out.

Class names, paths and reasons are untrusted text. `clean` makes them harmless, and every renderer
passes them through it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from backsweep.base import ModelDetector
from backsweep.errors import BadInput
from backsweep.plugins import find
from backsweep.report import (
    BACKDOORED,
    CLEAN,
    ERROR,
    INCONCLUSIVE,
    NOTE,
    WARNING,
    Evidence,
    Finding,
    Report,
    worst_first,
)

if TYPE_CHECKING:
    from torch import Tensor

    from backsweep.trigger import Trigger

_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn"}  # control, format (bidi overrides), surrogate, unassigned
_JOINERS = "\u200c\u200d"  # format characters that Persian, Indic scripts and emoji need
_TIMES = "\u00d7"


# ---------------------------------------------------------------------- text


def clean(text: object, most: int = 80) -> str:
    """One harmless line of at most `most` characters out of untrusted text."""
    kept = (
        " " if c.isspace() else c
        for c in str(text)[: 20 * most]
        if c.isspace() or c in _JOINERS or unicodedata.category(c) not in _UNPRINTABLE
    )
    line = " ".join("".join(kept).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def sentence(text: object) -> str:
    """Untrusted text with a capital and a full stop."""
    line = clean(text, 600)
    end = "" if line.endswith(("…", "?", "!")) else "."
    return (line[:1].upper() + line[1:]).rstrip(".") + end if line else ""


def title(key: str) -> str:
    """Name of a figure: "attack_success_rate" -> "attack success rate"."""
    return clean(key.replace("_", " "))


def join(parts: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def counted(count: int, noun: str) -> str:
    """1 class, 10 classes"""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


# ---------------------------------------------------------------------- numbers


def number(x: float) -> str:
    """Three digits that count."""
    if not math.isfinite(x):
        return "not measurable"
    if isinstance(x, int) or x == round(x) or abs(x) >= 999.5:
        return f"{x:,.0f}"
    return f"{x:.3g}" if abs(x) >= 1e-4 else f"{x:.1e}"


def percent(share: float) -> str:
    """A share; never rounded to a full 0% or 100%."""
    text = f"{share:.1%}"
    if text == "100.0%":
        return "100%" if share >= 1 else "over 99.9%"
    if text == "0.0%":
        return "0%" if share <= 0 else f"{share:.2%}" if share >= 0.0001 else "under 0.01%"
    return text


def level(alpha: Any) -> str:
    """A chosen share, as it was chosen: 5%"""
    return f"{100 * alpha:.4g}%" if isinstance(alpha, int | float) else "few"


def probability(p: float) -> str:
    """0.0004, "less than 0.00001"."""
    if p < 1e-5:
        return "less than 0.00001"
    return "more than 0.99" if p > 0.99 else format(Decimal(f"{p:.2g}"), "f")


def odds(p: float) -> str:
    """ "about 1 in 2,500"; "" when the probability itself is plain enough."""
    if p > 0.2:
        return ""
    return f"about 1 in {float(f'{1 / p:.2g}'):,.0f}" if p >= 1e-5 else "fewer than 1 in 100,000"


def duration(seconds: float) -> str:
    """0.8 s, 34 s, 4 min 12 s, 2 h 5 min"""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def figure(key: str, value: object) -> str:
    """A measured value, by its name."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return clean(value)
    if not math.isfinite(value):
        return number(value)
    if key.endswith(("_rate", "accuracy", "share")):
        return percent(value)
    return probability(value) if key == "p_value" or key.endswith("_chance") else number(value)


# ---------------------------------------------------------------------- who stands out


@dataclass(frozen=True)
class Group:
    """The evidence of one detector.

    Attributes:
        detector: its name.
        evidence: in the order of its units.
        norms: size of every unit's trigger, infinite where none works; empty when the detector
            measures no norm.
        index: how far below the median each lies, in robust sigmas of the logarithm.
        median: of the norms; None when there is none.
        limit: norm at which the index equals the detector's threshold, or None.
    """

    detector: str
    evidence: list[Evidence]
    norms: list[float] = field(default_factory=list)
    index: list[float] = field(default_factory=list)
    median: float | None = None
    limit: float | None = None


def groups(report: Report) -> list[Group]:
    """The evidence, by detector."""
    by_name: dict[str, list[Evidence]] = {}
    for e in report.evidence:
        by_name.setdefault(e.detector, []).append(e)
    return [_group(report, name, evidence) for name, evidence in by_name.items()]


def _group(report: Report, name: str, evidence: list[Evidence]) -> Group:
    norms = [_norm(e) for e in evidence]
    if not any(math.isfinite(n) for n in norms):
        return Group(name, evidence)
    logs = np.log(np.maximum(norms, 1e-12))
    center = float(np.median(logs))
    if not math.isfinite(center):
        return Group(name, evidence, norms, [0.0] * len(norms))
    said = next((f.details for f in report.findings if f.detector == name and "spread" in f.details), {})
    spread, limit = _number(said.get("spread")), _number(said.get("norm_threshold"))
    index = ((center - logs) / spread).tolist() if spread else [0.0] * len(norms)
    return Group(name, evidence, norms, index, float(np.median(norms)), limit)


def _about(record: Evidence | Finding) -> tuple[str, int | None, int | None]:
    return record.detector, record.target, record.source


def _number(value: object) -> float | None:
    """A finite number above zero, or None."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if usable else None  # type: ignore[arg-type]


def _norm(e: Evidence) -> float:
    value = e.values.get("norm")
    if isinstance(value, bool) or not isinstance(value, int | float) or e.values.get("reached") is False:
        return math.inf
    return float(value) if math.isfinite(value) else math.inf


def suspects(report: Report, most: int = 8) -> list[Finding]:
    """Findings that are evidence, or leave something open, and have a trigger to show; worst first."""
    return [f for f in worst_first(report.findings) if f.level != NOTE and f.trigger is not None][:most]


def evidence_of(report: Report, finding: Finding) -> Evidence | None:
    """The one record of evidence that a finding speaks of."""
    found = [e for e in report.evidence if _about(e) == _about(finding)]
    return found[0] if len(found) == 1 else None


def marked(report: Report, group: Group) -> set[int]:
    """Positions in the group of what there is evidence of a backdoor for."""
    errors = {_about(f) for f in report.findings if f.level == ERROR and evidence_of(report, f) is not None}
    return {i for i, e in enumerate(group.evidence) if _about(e) in errors}


def smallest(report: Report) -> Evidence | None:
    """The evidence with the smallest trigger that works, to compare with."""
    having = [e for e in report.evidence if e.trigger is not None]
    working = [e for e in having if e.values.get("reached") is not False]
    return min(working or having, key=lambda e: e.trigger.size if e.trigger else math.inf, default=None)


def examples(report: Report, trigger: Trigger, most: int) -> Tensor | None:
    """Clean inputs to stamp, of other classes than the target where there are any; None without."""
    if report.examples is None or not len(report.examples):
        return None
    labels = report.data.get("example_labels") or []
    labels = [*labels, *[None] * len(report.examples)][: len(report.examples)]
    others = [i for i, label in enumerate(labels) if label is None or label != trigger.target]
    rows = (others or list(range(len(labels))))[:most]
    return report.examples[rows]


# ---------------------------------------------------------------------- the verdict in words

Name = Callable[[int | None], str]


@dataclass(frozen=True)
class Verdict:
    """The verdict in plain words.

    Attributes:
        word: two or three words that stand for it.
        headline: one sentence.
        why: what it rests on, and what it is worth.
        what_next: what to do now.
    """

    word: str
    headline: str
    why: list[str]
    what_next: list[str]


def names(report: Report) -> Name:
    """Class index -> harmless text for people."""
    return lambda index: clean(report.label(index), 60)


def verdict(report: Report, name: Name | None = None) -> Verdict:
    """What the report says, in words; `name` makes a class index into text."""
    name = name or names(report)
    return {BACKDOORED: _backdoored, CLEAN: _nothing, INCONCLUSIVE: _open}[report.verdict](report, name)


def _backdoored(report: Report, name: Name) -> Verdict:
    errors = [f for f in worst_first(report.findings) if f.level == ERROR]
    why = [_worth(report)]
    why.append(
        "This is the chance of a false alarm on a clean model, not the chance that this model is "
        "clean. It says nothing of who made the model or why: a class can have an unusually small "
        "trigger by nature. The pictures below help to judge."
    )
    if report.errors:
        why.append("Part of the scan failed, so there may be more than was found; see below.")
    what_next = [
        "Scan again with another seed or other clean samples; a real backdoor shows the same class again.",
        "Until the trigger is explained, keep the model away from inputs that strangers can shape.",
    ]
    return Verdict("Evidence found", evidence_of_a_backdoor(errors, name) + ".", why, what_next)


def evidence_of_a_backdoor(errors: Sequence[Finding], name: Name) -> str:
    """Evidence of a backdoor that sends every class to 3 (stop)"""
    ways = list(dict.fromkeys((f.source, f.target) for f in errors if f.target is not None))
    if not ways:
        return "Evidence of a backdoor"
    if len(ways) == 1:
        source, target = ways[0]
        return f"Evidence of a backdoor that sends {name(source)} to {name(target)}"
    targets = list(dict.fromkeys(target for _, target in ways))
    shown = [name(t) for t in targets[: 3 if len(targets) > 4 else 4]]
    more = [f"{len(targets) - len(shown)} more"] if len(targets) > len(shown) else []
    return f"Evidence of a backdoor with {counted(len(targets), 'target')}: {join(shown + more)}"


def _worth(report: Report) -> str:
    """What the p-value means."""
    p, count = report.p_value, report.model.get("classes")
    if p is None:
        return "How often a clean model looks like this is not known: the test is not calibrated here."
    model = f"A clean model with {counted(count, 'class')}" if isinstance(count, int) else "A clean model"
    about = f", {odds(p)}" if odds(p) else ""
    return f"{model} shows an outlier as strong as this with probability {probability(p)}{about}."


def _nothing(report: Report, name: Name) -> Verdict:
    why = []
    most = next((f for f in worst_first(report.findings) if f.target is not None), None)
    if most is not None and report.p_value is not None:
        why.append(f"The class that stands out most is {name(most.target)}. {_worth(report)}")
    what = "; ".join(looks_for(g.detector) for g in groups(report))
    why.append(
        f"This scan looks for {what}. Other kinds of backdoor are not looked for, and no scan "
        "can prove that there is none."
    )
    if report.skipped:
        why.append("Some of the checks were skipped; see below.")
    return Verdict("Nothing found", "No evidence of a backdoor.", why, [])


def _open(report: Report, name: Name) -> Verdict:
    warnings = [f for f in report.findings if f.level == WARNING]
    why = [sentence(f"{clean(n.what)}: {n.reason}") for n in report.errors]
    why += [sentence(f.message.removeprefix("cannot tell: ")) for f in warnings]
    what_next = []
    if report.errors:
        what_next.append("Fix the cause above, then run the same scan again.")
    if warnings:
        what_next.append(
            "Look at the trigger below with your own eyes, and try other clean samples or another "
            "detector ('backsweep list' names them)."
        )
    if not why:
        why = ["No detector ran on this model, so nothing was looked for."]
        why += [sentence(f"skipped {clean(n.what)}: {n.reason}") for n in report.skipped]
        what_next.append("Choose a detector that fits this model; 'backsweep list' names them.")
    return Verdict("Cannot tell", "The scan cannot tell whether there is a backdoor.", why, what_next)


def looks_for(detector: str) -> str:
    """What a detector finds, from the first line of its description."""
    try:
        cls = find(ModelDetector, detector)
    except BadInput:
        return f"what {clean(detector)} finds"
    first = (cls.__doc__ or "").strip().split("\n")[0].rstrip(".")
    return first.removeprefix("Finds ") if first.startswith("Finds ") else cls.summary


def unit_name(report: Report, e: Evidence) -> str:
    """What the evidence is about: its class, or "2 to 3" for a pair."""
    name = names(report)
    if e.target is None:
        return clean(e.unit)
    return name(e.target) if e.source is None else f"{name(e.source)} to {name(e.target)}"


def shape(report: Report) -> str:
    """3 x 32 x 32"""
    return f" {_TIMES} ".join(str(n) for n in report.model.get("shape") or ())
