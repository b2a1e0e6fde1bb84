"""Network scan, ours: is a class of the network that learned the set planted?

A poisoned set leaves a backdoor in the network, and a scan of the network finds it by other means than the
samples: by how much easier a class is to reach than in references that learn anew. So what it says joins what
the samples say (`nulls.joined`). The cascade (`scanning/detectors/cascade.py`) is given

    the known clean samples, or of every class the samples that are not in its suspected group,

since references that learn from poison would have the backdoor too. The groups are SCAn's (Tang et al.,
USENIX Security 2021), in the penultimate layer or, where the network has BatchNorm, in what its layers do not
expect (FLARE, TIFS 2025) or in both, whichever parts a class best; the suspected one lies farther from the
other classes (`untangling.py`). The samples that are flagged in a class that is found are those of its
suspected group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.auditing.detector import SetDetector, TrainingSet, class_evidence
from backsweep.auditing.mixture import LEAST_STATISTIC
from backsweep.auditing.normalisation import excess
from backsweep.auditing.untangling import parted
from backsweep.core.progress import Event
from backsweep.core.seeds import derive_seed
from backsweep.inversion.budget import spaces_of
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding, Report
from backsweep.scanning import scan
from backsweep.scanning.calibration import UNCALIBRATED
from backsweep.scanning.cascade import population

SCAN = "cascade"
EACH = 30  # samples of a class that the scan is given, where that is more than `samples`
EVERY = 1 - 1e-9  # alpha at which a scan says the p-value of every class


@dataclass(frozen=True)
class NetworkScan(SetDetector):
    """Scans the network with the samples that nobody suspects.

    Attributes:
        samples: that the scan is given, at least.
        dimensions: at most, of the representation in which classes are parted.
    """

    name: ClassVar[str] = "network_scan"
    summary: ClassVar[str] = "scans the network with unsuspected samples, and joins what others say (ours)"
    code: ClassVar[str] = "BSW209"
    independent: ClassVar[bool] = True

    samples: int = 1000
    dimensions: int = 64

    def __post_init__(self) -> None:
        if min(self.samples, self.dimensions) < 1:
            raise ValueError("samples and dimensions are at least 1")

    def applies(self, given: TrainingSet) -> str:
        if reason := given.all_too_small():
            return reason
        if not population.speaks(spaces_of(given.model), given.classes):
            return "no clean networks are known beside which a scan of one like this could be judged"
        return ""

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        scores, report = self.scanned(given)
        scan.judge(report, alpha=EVERY)
        found = [f for f in report.findings if f.target is not None and f.p_value is not None]
        null = next((str(f.details["null"]) for f in found), UNCALIBRATED)
        p_values = {f.target: f.p_value for f in reversed(found)}  # the smallest, they are the worst first
        evidence = []
        for label in given.looked_at:
            p = None if null == UNCALIBRATED else max(p_values.get(label) or 1.0, 1e-12)
            statistic = LEAST_STATISTIC if p is None else 1 / p
            evidence.append(class_evidence(self.name, label, statistic, 0.0, p_value=p, null=null))
        return scores, evidence

    def scanned(self, given: TrainingSet) -> tuple[Tensor, Report]:
        """Positions (N,) of the samples on the lines of their classes, and the scan of the network."""
        odd = excess(given.model, given.data.x)
        scores, upper = parted(given.features, given.data.y, given.looked_at, self.dimensions, odd)
        clean = given.clean or given.data[torch.nonzero(~upper).flatten()]
        some = clean.sample(max(self.samples, EACH * given.classes), derive_seed(given.seed, self.name))

        def told(event: Event) -> None:
            given.tick(event.share)

        report = scan.scan(given.model, some, SCAN, seed=given.seed, device=given.model.device, on_event=told)
        return scores, report

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        known = [(float(p), e) for e in evidence if (p := e.values.get("p_value")) is not None]
        if not known:
            text = "cannot tell: the scan of the network has no clean networks to compare with"
            return [Finding(self.code, self.name, WARNING, text)] if evidence else []
        known.sort(key=lambda pair: pair[0])
        flagged = [(p, e) for p, e in known if p <= alpha]
        text = "the network gives this class as one with a backdoor does" if flagged else "none is planted"
        return [
            Finding(
                self.code, self.name, ERROR if flagged else NOTE, text, e.target, score=1 / p,
                threshold=1 / alpha, p_value=p, details={"null": str(e.values["null"])},
            )
            for p, e in flagged or known[:1]
        ]  # fmt: skip
