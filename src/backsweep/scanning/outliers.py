"""From one number per class to findings: the outlier among classes, as every class-wise detector judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from backsweep.core.statistics import anomaly_index, center_and_spread, chance_of_index, index_at
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding


class Judge(Protocol):
    """A detector that judges classes: of models or of training sets."""

    @property
    def name(self) -> str: ...

    @property
    def code(self) -> str: ...


TWO_CLASSES = (
    "cannot tell: with 2 classes both values are equally far from their median, so this test can never fire"
)
NO_MEDIAN = "cannot tell: most classes have no value, so there is no median to compare with"


def outlier_findings(
    detector: Judge,
    evidence: Sequence[Evidence],
    values: Sequence[float],
    alpha: float,
    classes: int,
    message: Callable[[Evidence, bool, float], str],
    *,
    least_spread: float = 0.25,
    rate: str = "attack_success_rate",
    details: Callable[[Evidence], Mapping[str, float]] = lambda _: {},
) -> list[Finding]:
    """Findings of the classes whose value lies far below the others'; at least one, the lowest.

    Args:
        detector: whose findings they are.
        evidence: one for each class.
        values: the statistic of each, on a scale on which clean classes are about normal (the log of
            a size); small is suspicious, +inf is "larger than could be measured".
        alpha: false-alarm rate of the whole test.
        classes: number of classes.
        message: told the evidence, whether it is flagged, and the median value; a sentence.
        least_spread: a smaller robust sigma than this is taken for an accident of few classes.
        rate: name of the evidence's value that is the attack success rate.
        details: further figures of a finding.
    """
    v = np.asarray(values, dtype=np.float64)
    index = anomaly_index(v.tolist(), least_spread)
    chances = [chance_of_index(i, classes, floored=True) for i in index]
    threshold = index_at(alpha, classes, floored=True)
    median, spread = (float(a[0]) for a in center_and_spread(v, least_spread))
    doubt = TWO_CLASSES if threshold is None else "" if math.isfinite(median) else NO_MEDIAN
    order = sorted(range(len(evidence)), key=lambda i: -index[i])
    flagged = [i for i in order if chances[i] <= alpha and not doubt]
    findings = []
    for i in flagged or order[:1]:
        e = evidence[i]
        found = e.values.get(rate)
        findings.append(Finding(
            detector.code, detector.name,
            WARNING if doubt else ERROR if flagged else NOTE,
            doubt or message(e, bool(flagged), median),
            e.target, e.source, score=float(index[i]), threshold=threshold,
            p_value=None if threshold is None else chances[i], trigger=e.trigger,
            attack_success_rate=None if found is None else float(found),
            details={"median": median, "spread": spread, **details(e)} if math.isfinite(median) else {},
        ))  # fmt: skip
    return findings
