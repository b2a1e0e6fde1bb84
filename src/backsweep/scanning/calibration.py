"""Null distributions from clean networks: a score becomes a p-value that was measured.

A table holds the largest score of a detector on every one of n clean networks that were trained for
this alone; with it

    p = (1 + number of clean networks that score as high) / (1 + n)              (conformal rank)

holds whatever the distribution, for a network of the same kind as those of the table. Where no table
fits, the detector's own p-value stays, from a null within the model, and is marked uncalibrated. A detector
whose scores may be compared across kinds asks `Kinds` itself (`threshold_of`).
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from backsweep.core.method import Method
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding

FOLDER = Path(__file__).parent / "nulls"
UNCALIBRATED = "within the model, not calibrated on clean networks of this kind"


class Standard(Protocol):
    """What a score is ranked among."""

    @property
    def words(self) -> str: ...

    def p_value(self, score: float | None, target: int | None = None) -> float: ...

    def critical(self, alpha: float, target: int | None = None) -> float | None: ...


class Judging(Protocol):
    """A detector of models or of training sets."""

    @property
    def name(self) -> str: ...

    def settings(self) -> dict[str, Any]: ...

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]: ...


@dataclass(frozen=True)
class Null:
    """Scores of one detector on clean networks of one kind.

    Attributes:
        detector, settings: what scored them.
        layout: digest of the shapes of their weights (`Model.layout`).
        shape, classes: of their inputs and outputs.
        scores: the largest score of each network, ascending.
        made: how: networks, recipe, versions.
    """

    detector: str
    settings: Mapping[str, Any]
    layout: str
    shape: Sequence[int]
    classes: int
    scores: Sequence[float]
    made: Mapping[str, Any]

    def fits(self, detector: Judging, model: Mapping[str, Any]) -> bool:
        """Whether the table speaks of this detector, as it is set, and of networks like this one.

        Args:
            model: how a report describes it.
        """
        keys = ("layout", "shape", "classes")
        alike = all(list_of(model.get(k)) == list_of(getattr(self, k)) for k in keys)
        return alike and self.detector == detector.name and measured_as(self.settings, detector)

    def p_value(self, score: float | None, target: int | None = None) -> float:
        """Share of clean networks that score at least this, the network itself counted in."""
        value = -math.inf if score is None else score
        return (1 + len(self.scores) - bisect.bisect_left(self.scores, value)) / (1 + len(self.scores))

    def critical(self, alpha: float, target: int | None = None) -> float | None:
        """Score that must be exceeded for a p-value of at most `alpha`; None where none is that small."""
        room = math.floor(alpha * (1 + len(self.scores)) + 1e-9)
        return self.scores[len(self.scores) - room] if 1 <= room <= len(self.scores) else None

    @property
    def words(self) -> str:
        """What the p-value of a finding rests on."""
        return f"{len(self.scores)} clean networks of {self.made.get('kind', 'this kind')}"


@dataclass(frozen=True)
class Kinds:
    """Scores of one detector on clean networks of many kinds: a null for a kind that nobody has seen.

    A kind is task x architecture x size of the training set. With one network drawn from each of k kinds, the
    rank of a network of another kind, drawn like them, is conformal; the mean over all draws is

        p = (1 + sum over kinds of the share of its networks that score as high) / (1 + k)

    (Dunn, Wasserman and Ramdas 2022). Kinds count alike, however many networks they have.

    Attributes:
        detector, settings: what scored them.
        classes: fewest and most classes that a network may have.
        kinds: by kind the largest score of each network, ascending.
        made: how: networks, versions.
    """

    detector: str
    settings: Mapping[str, Any]
    classes: Sequence[int]
    kinds: Mapping[str, Sequence[float]]
    made: Mapping[str, Any]

    def fits(self, detector: Judging, classes: int) -> bool:
        """Whether it speaks of this detector, as it is set, and of networks of so many classes."""
        low, high = self.classes
        return (
            self.detector == detector.name and low <= classes <= high and measured_as(self.settings, detector)
        )

    def p_value(self, score: float | None, target: int | None = None) -> float:
        value = -math.inf if score is None else score
        shares = [1 - bisect.bisect_left(own, value) / len(own) for own in self.kinds.values()]
        return (1 + math.fsum(shares)) / (1 + len(shares))

    def critical(self, alpha: float, target: int | None = None) -> float | None:
        """Score that must be exceeded for a p-value of at most `alpha`; None where none is that small."""
        if self.p_value(math.inf) > alpha:
            return None
        return max(
            (s for own in self.kinds.values() for s in own if self.p_value(s) > alpha), default=-math.inf
        )

    @property
    def words(self) -> str:
        """What the p-value of a finding rests on."""
        return f"{sum(map(len, self.kinds.values()))} clean networks of {len(self.kinds)} other kinds"


def measured_as(settings: Mapping[str, Any], detector: Judging) -> bool:
    """Whether a table was made with the settings of a detector, in the words of this version."""
    known = detector.completed(settings) if isinstance(detector, Method) else settings
    return dict(known) == detector.settings()


def list_of(value: object) -> object:
    """Tuples and lists alike."""
    return list(value) if isinstance(value, list | tuple) else value


def _documents() -> list[dict[str, Any]]:
    paths = sorted(FOLDER.glob("*.json"))
    return [table for path in paths for table in json.loads(path.read_text(encoding="utf-8"))]


@lru_cache(maxsize=1)
def tables() -> tuple[Null, ...]:
    """The tables that come with the package, of one kind each."""
    return tuple(Null(**table) for table in _documents() if "kinds" not in table)


@lru_cache(maxsize=1)
def tables_of_kinds() -> tuple[Kinds, ...]:
    """The tables that come with the package, of many kinds."""
    return tuple(Kinds(**table) for table in _documents() if "kinds" in table)


def of_kinds(detector: Judging, classes: int) -> Kinds | None:
    """The table of clean networks of many kinds that fits, None where there is none."""
    return next((t for t in tables_of_kinds() if t.fits(detector, classes)), None)


@dataclass(frozen=True)
class Threshold:
    """What scores of a detector are held against: clean networks of other kinds, or a number.

    Attributes:
        null: those networks, None where they do not fit.
        at: a score that has to be exceeded beside them, and reached without; None: none is enough.
        doubt: why nothing can be told then, "" where something can.
    """

    null: Kinds | None
    at: float | None
    doubt: str = ""

    def passed(self, score: float) -> bool:
        return self.at is not None and (score >= self.at if self.null is None else score > self.at)

    def p_value(self, score: float) -> float | None:
        """Of a finding; None where there is none."""
        return None if self.null is None or self.doubt else self.null.p_value(score)

    @property
    def details(self) -> dict[str, float | str | None]:
        """What the p-value of a finding rests on, for it to say so."""
        return {} if self.null is None else {"null": self.null.words}


def threshold_of(
    detector: Judging,
    evidence: Sequence[Evidence],
    classes: int,
    alpha: float,
    by_hand: float | None,
    usual: float,
) -> Threshold:
    """Clean networks of other kinds; they had labels, so where the evidence is without, a number.

    Args:
        evidence: says in `labels` whether the clean samples had some.
        by_hand: a threshold that was set, None: the networks, and `usual` where they do not fit.
    """
    labelled = all(e.values.get("labels", False) for e in evidence)
    null = of_kinds(detector, classes) if labelled and by_hand is None else None
    if null is None:
        return Threshold(None, usual if by_hand is None else by_hand)
    if (at := null.critical(alpha)) is not None:
        return Threshold(null, at)
    return Threshold(null, None, _out_of_reach(null, alpha))


def _out_of_reach(null: Standard, alpha: float) -> str:
    """That no score is called at alpha."""
    least = null.p_value(math.inf)
    return (
        f"cannot tell: among {null.words} no p-value is below {least:.3g}; ask for a higher alpha than "
        f"{alpha:.3g}"
    )


def judge(
    detector: Judging,
    evidence: Sequence[Evidence],
    model: Mapping[str, Any],
    alpha: float,
    null: Standard | None = None,
) -> list[Finding]:
    """The detector's findings, with p-values from a fitting table where there is one.

    A detector that brings clean networks of its own says so in `details["null"]`.

    Args:
        model: how a report describes it: layout, shape, classes.
        alpha: false-alarm rate.
        null: what scores are ranked among; None: the table that fits.
    """
    classes = int(model["classes"])
    null = null or next((n for n in tables() if n.fits(detector, model)), None)
    every = detector.judge(evidence, classes, 1.0) if null is not None else []
    every = [f for f in every if f.p_value is not None]
    if null is None or not every:
        findings = detector.judge(evidence, classes, alpha)
        findings = [_told(f, str(f.details.get("null", UNCALIBRATED))) for f in findings]
        return [doubted(f) for f in findings] if getattr(detector, "cautious", False) else findings
    first = min(every, key=lambda f: null.p_value(f.score, f.target))  # a null may know more than the score
    if null.critical(alpha) is None:
        doubt = f"{_out_of_reach(null, alpha)}, or make a larger table (backsweep bench null)"
        p_value = null.p_value(first.score, first.target)
        return [_told(replace(first, level=WARNING, message=doubt, p_value=p_value), null.words)]
    # the detector's own level at which it flags what the table flags, and nothing else
    own = [f.p_value or 0.0 for f in every]
    beyond = [p for f, p in zip(every, own, strict=True) if null.p_value(f.score, f.target) <= alpha]
    findings = detector.judge(evidence, classes, max(beyond, default=min(own) * (1 - 1e-9)))
    if not beyond and first.target not in {f.target for f in findings if f.p_value is not None}:
        # alone it could not tell, the table can; or it tells of another class
        findings = [replace(first, level=NOTE, message="no class stands out among those of the table")]
    # where most classes lie beyond the table their own p-values tie, and the others come with them
    findings = [
        f
        for f in findings
        if f.level != ERROR or f.p_value is None or null.p_value(f.score, f.target) <= alpha
    ]
    return [
        _told(f, null.words) if f.p_value is None
        else _told(
            replace(f, p_value=null.p_value(f.score, f.target), threshold=null.critical(alpha, f.target)),
            null.words,
        )
        for f in findings
    ]  # fmt: skip


def doubted(finding: Finding) -> Finding:
    """The finding; an alarm that no clean networks stand behind is no verdict."""
    if finding.level != ERROR or finding.details.get("null") != UNCALIBRATED:
        return finding
    message = f"cannot tell, no clean networks like this one were measured: {finding.message}"
    return replace(finding, level=WARNING, message=message)


def _told(finding: Finding, null: str) -> Finding:
    """The finding, with what its p-value rests on."""
    return replace(finding, details={**finding.details, "null": null})


def make(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tables from lines of the bench on clean networks, one for every detector, setting and kind."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line.get("attack") is None and line.get("score") is not None:
            key = [line["detector"], line["settings"], line["layout"], line["shape"], line["classes"]]
            groups.setdefault(json.dumps(key, sort_keys=True), []).append(line)
    found = []
    for part in groups.values():
        first = part[0]
        made = {
            "kind": " ".join(filter(None, [first["task"], first.get("arch")])),
            "networks": sorted(line["net"] for line in part),
            "recipes": sorted({json.dumps(line["recipe"], sort_keys=True) for line in part}),
            "backsweep": first["backsweep"], "torch": first["torch"],
        }  # fmt: skip
        scores = sorted(round(float(line["score"]), 6) for line in part)
        keys = ("detector", "settings", "layout", "shape", "classes")
        found.append(asdict(Null(**{k: first[k] for k in keys}, scores=scores, made=made)))
    return found
