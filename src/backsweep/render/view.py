"""What the console and the page have in common: words, and numbers for people.

Class names, paths and reasons are untrusted text: every renderer passes them through `clean`.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from backsweep.core.method import Method
from backsweep.core.provenance import known
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.kinds import modalities, modality_of
from backsweep.inputs.modality import Modality
from backsweep.reports.report import (
    BACKDOORED,
    CLEAN,
    ERROR,
    INCONCLUSIVE,
    NOTE,
    WARNING,
    Finding,
    Report,
    worst_first,
)
from backsweep.scanning.calibration import UNCALIBRATED
from backsweep.scanning.detector import ModelDetector

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


# Sigmas of a class by space (`screens.py`), and other figures with a name.
TITLES = {
    "z_early": "embedding of an early layer", "z_late": "embedding of a later layer",
    "z_mean": "{unit}s and embeddings together", "z_pairs": "few {unit}s, one source",
    "attack_success_rate": "attack success rate", "reference_success_rate": "success rate on the reference",
}  # fmt: skip

_BRIEF = {  # the same in few letters
    "z_early": "early layer", "z_late": "later layer", "z_mean": "all together", "z_pairs": "one source",
}  # fmt: skip


def modality(report: Report) -> Modality:
    """What an input of the model is."""
    return modality_of(report.model)


@functools.cache
def _spaces() -> dict[str, tuple[str, str]]:
    """Sigmas by their key: the name of the space, and the same in few letters; in the order of the page."""
    inner = {f"z_{n}": (s.title, s.brief) for m in modalities().values() for n, s in m.spaces().items()}
    return inner | {k: (TITLES[k], brief) for k, brief in _BRIEF.items()}


def is_space(key: str) -> bool:
    """Whether a figure is a sigma of a space."""
    return key in _spaces()


def brief(key: str) -> str:
    """Name of a space in few letters."""
    return _spaces()[key][1]


def title(key: str, kind: Modality = IMAGE) -> str:
    """Name of a figure: "median_norm" -> "median norm"; of what counts units in the words of its modality."""
    if key.startswith("alone_"):
        return f"{title('z_' + key[6:], kind)}: works here, not there (log odds)"
    known = TITLES.get(key) or (_spaces()[key][0] if key in _spaces() else None)
    return clean(key.replace("_", " ")) if known is None else known.replace("{unit}", kind.unit)


def sigmas(values: Mapping[str, object]) -> list[tuple[str, float]]:
    """How far a class lies from the others in each space, by its key; largest first."""
    found = [(k, float(v)) for k in _spaces() if isinstance(v := values.get(k), int | float)]
    return sorted([f for f in found if math.isfinite(f[1])], key=lambda f: -f[1])


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
    if key == "suspicion" or key.startswith("z_"):
        digits = 2 if key == "suspicion" else 1
        return f"{round(value, digits) + 0.0:.{digits}f}"  # never -0.0
    return probability(value) if key == "p_value" or key.endswith("_chance") else number(value)


# ---------------------------------------------------------------------- what a finding is worth

SHORTCUT = "BSW111"  # the rule of natural shortcuts, which are no evidence of a backdoor
OF_KINDS = re.compile(r"\d+ clean networks of \d+ kinds")  # of many, so that a p-value is no rank
DOUBTFUL = "uncalibrated"  # stands beside a p-value that no clean networks are behind


def is_shortcut(finding: Finding) -> bool:
    """Whether it is about a class that is easy to reach by nature."""
    return finding.code == SHORTCUT and finding.level == NOTE


def shortcuts(report: Report) -> list[Finding]:
    """Natural shortcuts, the easiest first."""
    found = [f for f in report.findings if is_shortcut(f) and f.target is not None]
    return sorted(found, key=lambda f: (-(f.score or 0.0), f.target or 0))


def about_shortcuts(report: Report, name: Name, most: int = 8) -> list[str]:
    """What natural shortcuts are and which classes have one; nothing where there are none."""
    found = [name(f.target) for f in shortcuts(report)]
    if not found:
        return []
    more = [f"{len(found) - most} more"] if len(found) > most else []
    one = len(found) == 1
    unit = modality(report).unit
    return [
        f"A faint change of every {unit} sends other classes to {join(found[:most] + more)}, in this model "
        "and in the reference alike.",
        f"This is no evidence of a backdoor: {'the class is' if one else 'the classes are'} easy to reach by "
        "nature, in clean models too. Yet an attacker can use it, and needs to plant nothing for that.",
    ]


def null(finding: Finding) -> str:
    """What its p-value rests on: "39 clean networks of mnist", `UNCALIBRATED`, or "" where not said."""
    said = finding.details.get("null")
    return clean(said, 120) if isinstance(said, str) else ""


def rests_on(finding: Finding) -> str:
    """Beside a p-value: "uncalibrated", what it is a rank among, or what stands beside it."""
    said = null(finding)
    if said == UNCALIBRATED or not said:
        return DOUBTFUL if said else ""
    return f"beside {said}" if OF_KINDS.fullmatch(said) else f"rank among {said}"


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
    why, classes = [*of_the_network(errors), _worth(report)], any(f.target is not None for f in errors)
    what = "This is the chance of a false alarm on a clean model, not the chance that this model is clean. It"
    nature = ": a class can be unusually easy to reach by nature. What is shown below helps to judge."
    unseen = ", and shows no trigger: look for one with the default detectors."
    why.append(
        f"{what if any(f.p_value is not None for f in errors) else 'The scan'} says nothing of who made the "
        f"model or why{nature if classes else unseen}"
    )
    again = "Scan again with --confirm or other clean samples; a real backdoor shows the same class again."
    if report.second is not None:
        why.append("A second opinion, a whole scan with another seed, calls it too; neither alone would do.")
        again = "Compare with the page of the second opinion, trigger by trigger."
    if report.errors:
        why.append("Part of the scan failed, so there may be more than was found; see below.")
    away = "Until the trigger is explained, keep the model away from inputs that strangers can shape."
    what_next = [again if classes else "Scan again with another detector.", away]
    return Verdict("Evidence found", evidence_of_a_backdoor(errors, name) + ".", why, what_next)


def of_the_network(findings: Sequence[Finding]) -> list[str]:
    """What detectors say of the network as a whole, in sentences."""
    found = [f for f in findings if f.target is None and f.source is None and not is_shortcut(f)]
    return [sentence(f"{title(f.detector)}: {f.message}") for f in found]


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
    """What the p-value means, and what it rests on."""
    p, count = report.p_value, report.model.get("classes")
    first = next((f for f in worst_first(report.findings) if f.p_value is not None), None)
    if p is None or first is None:
        return "How often a clean model looks like this is not known: the test is not calibrated here."
    about = f", {odds(p)}" if odds(p) else ""
    if OF_KINDS.fullmatch(null(first)):
        return (
            f"A clean model looks as suspicious with probability {probability(p)}{about}, judged beside "
            f"{null(first)}, if its kind is one more of the same sort."
        )
    rank = re.fullmatch(r"(\d+) (clean (?:networks|adapters) of .+)", null(first))
    if rank:
        return (
            f"A clean model of this kind looks as suspicious with probability {probability(p)}{about}: its "
            f"rank among {rank[1]} {rank[2]}, {_as_suspicious(first.p_value or 1.0, int(rank[1]))}."
        )
    model = f"A clean model with {counted(count, 'class')}" if isinstance(count, int) else "A clean model"
    worth = f"{model} shows an outlier as strong as this with probability {probability(p)}{about}."
    if null(first) == UNCALIBRATED:
        worth += (
            f" This figure is {DOUBTFUL}: it follows from how the classes of this one model differ, and was "
            "not checked on clean networks of this kind."
        )
    return worth


def _as_suspicious(p: float, count: int) -> str:
    """How many of `count` clean networks score at least as high, from p = (1 + hits) / (1 + count)."""
    hits = round(p * (1 + count)) - 1
    if 0 < hits < count:
        return f"of which {hits:,} {'is' if hits == 1 else 'are'} as suspicious"
    return f"of which {'all are' if hits >= count else 'none is'} as suspicious"


def _nothing(report: Report, name: Name) -> Verdict:
    why = []
    said = [f for f in worst_first(report.findings) if f.target is not None and not is_shortcut(f)]
    if said and report.p_value is not None:
        why.append(f"The class that stands out most is {name(said[0].target)}. {_worth(report)}")
    why += of_the_network([f for f in report.findings if f.p_value is not None])
    what = "; ".join(looks_for(report, d) for d in dict.fromkeys(e.detector for e in report.evidence))
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


def looks_for(report: Report, detector: str) -> str:
    """What a detector finds, from the first line of its description."""
    cls = known([ModelDetector], detector, report.settings)
    first = clean((cls.__doc__ or "").strip().split("\n")[0], 300).rstrip(".") if cls is not None else ""
    return first.removeprefix("Finds ") if first.startswith("Finds ") else summary(cls, detector)


def summary(cls: type[Method] | None, name: str) -> str:
    """What a method does in a few words; of one that is not known here, or says nothing, its name alone."""
    said = getattr(cls, "summary", "")
    return clean(said, 200) if isinstance(said, str) and said else f"what {clean(name)} finds"


def shape(report: Report) -> str:
    """3 x 32 x 32"""
    return f" {_TIMES} ".join(map(str, report.model.get("shape") or ()))
