"""DFBScanner (arXiv 2605.18907, 2026): anomalies of the weights of the head, in no time and without data.

A backdoor has to make one class win whatever else is there, and the last layer keeps a trace of that.
Several static indicators of every row of the head are turned into robust z-scores; the largest of a class
is its clue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from backsweep.core.statistics import anomaly_index
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit
from backsweep.scanning.head import indicators, why_no_head
from backsweep.scanning.outliers import outlier_findings

LEAST_SPREAD = 1.0  # of the clues among the classes


@dataclass(frozen=True)
class DfbScanner(ModelDetector):
    """Finds a class whose row in the head is unlike the others.

    The abstract is all that is public; the indicators are rebuilt from what it says.
    """

    name: ClassVar[str] = "dfb_scanner"
    summary: ClassVar[str] = "anomalies of the rows of the head, no data (DFBScanner, 2026)"
    needs: ClassVar[tuple[str, ...]] = ("gradients", "layers", "weights")
    code: ClassVar[str] = "BSW120"

    def applies(self, model: Model, data: Data) -> str:
        return why_no_head(model)

    def chunk(self, model: Model) -> int:
        return model.classes

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        found = indicators(*model.head())
        z = {name: anomaly_index((-values).tolist()) for name, values in found.items()}
        evidence = []
        for u in units:
            own = {f"z_{name}": float(index[u.target or 0]) for name, index in z.items()}
            evidence.append(Evidence(self.name, u.key, u.target, None, {"clue": max(own.values()), **own}))
        return evidence

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """The outlier among the clues."""
        clues = [-float(e.values["clue"] or 0) for e in evidence]
        return outlier_findings(self, evidence, clues, alpha, classes, _message, least_spread=LEAST_SPREAD)


def _message(e: Evidence, flagged: bool, median: float) -> str:
    """What is found about a class, in a sentence; `median` is minus the median clue."""
    named = {k.removeprefix("z_"): float(v or 0) for k, v in e.values.items() if k.startswith("z_")}
    most = max(named, key=lambda k: named[k]).replace("_", " ")
    clue = float(e.values["clue"] or 0)
    if flagged:
        return (
            f"the head favours this class: {most} of its row is {clue:.1f} sigma out, usual are {-median:.1f}"
        )
    return f"no row of the head is an outlier; the most unusual is {clue:.1f} sigma out ({most})"
