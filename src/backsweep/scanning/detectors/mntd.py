"""Meta Neural Analysis (Xu, Wang, Li, Borisov, Gunter, Li; IEEE S&P 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit
from backsweep.shadows.bank import answers, opened
from backsweep.shadows.meta_classifier import FORMS, JUMBO, LOGITS, VARIANTS, distance, distances_within
from backsweep.shadows.meta_classifier import spread as spread_of

LEAST_VOUCHED = 8  # clean networks that a distance from them can be measured with


@dataclass(frozen=True)
class MNTD(ModelDetector):
    """Finds networks that answer tuned queries as trojaned shadow networks do.

    The score is that of the bank's meta-classifier (`shadows/`); the p-value its rank among clean shadows
    that the meta-classifier was not tuned with, or among networks that somebody vouches for. One pass over
    a hundred inputs; no gradient is needed. It names no class and recovers no trigger.

    Attributes:
        bank: file that `backsweep bank build` wrote, made for this kind of network and task.
        variant: "jumbo", "one_class" or "robust".
        form: "logits", or "centred" for networks that answer with probabilities.
        shadows: a side, that the meta-classifier was tuned with; None takes the one with the most.
        two_sided: look for answers that are unlike those of the networks that somebody vouches for, be they
            too much or too little like a trojaned network's (`meta.distance`). With "robust" decisions this
            finds networks that were trained to evade; it needs a calibrated bank.
    """

    name: ClassVar[str] = "mntd"
    code: ClassVar[str] = "BSW106"
    summary: ClassVar[str] = "answers to tuned queries, read as shadow networks taught (MNTD, 2021)"
    needs: ClassVar[tuple[str, ...]] = ()

    bank: str | None = None
    variant: str = JUMBO
    form: str = LOGITS
    shadows: int | None = None
    two_sided: bool = False

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r} is none of {', '.join(VARIANTS)}")
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r} is none of {', '.join(FORMS)}")

    def applies(self, model: Model, data: Data) -> str:
        if not model.modality.grid:
            return f"shadow networks are trained on images, and the model takes {model.modality.noun}s"
        if self.bank is None:
            return "no bank of shadow networks; make one with `backsweep bank build`, name it with --bank"
        bank = opened(self.bank)
        vouched = len(bank.meta(self.variant, self.form, self.shadows).clean)
        if self.two_sided and vouched < LEAST_VOUCHED:
            return (
                f"two_sided needs {LEAST_VOUCHED} clean networks that you vouch for, the bank has {vouched}; "
                "add them with `backsweep bank calibrate`"
            )
        if model.answers_probabilities and self.form == LOGITS:
            return "the network answers with probabilities; set mntd.form=centred"
        return bank.outside(model, data)

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        return [Unit("network")]

    def depends_on(self) -> dict[str, str]:
        return {} if self.bank is None else {"bank": opened(self.bank).digest}

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        bank = opened(self.bank or "")
        meta = bank.meta(self.variant, self.form, self.shadows)
        given = answers(model, meta)
        scores, spread = meta.scores(given), float(spread_of(given)[0])
        vouched = len(meta.clean) > 0
        if self.two_sided:
            score, null = float(distance(scores, meta.clean)), distances_within(meta.clean)
        else:
            score, null = float(scores.mean()), meta.clean.mean(1) if vouched else meta.null
        values: dict[str, float | int | bool | str | None] = {
            "score": score, "exceeding": int((null >= score).sum()), "clean": len(null), "vouched": vouched,
            "spread": spread, "least_spread": float(meta.reach[0]), "most_spread": float(meta.reach[1]),
            "trojaned_below": float((meta.held_out < scores.mean()).float().mean()),
            "shadows": meta.shadows, "passes": len(meta.asked),
        }  # fmt: skip
        if not math.isfinite(score):
            values = {"score": None}
        return [Evidence(self.name, unit.key, values=values) for unit in units]

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        return [self._finding(e, alpha) for e in evidence]

    def _finding(self, evidence: Evidence, alpha: float) -> Finding:
        v = evidence.values
        score, exceeding, count = (float(v.get(k) or 0) for k in ("score", "exceeding", "clean"))
        spread, least, most = (float(v.get(k) or 0) for k in ("spread", "least_spread", "most_spread"))
        p: float | None = (1 + exceeding) / (1 + count)  # conformal rank
        clean = "clean networks" if v.get("vouched") else "clean shadow networks"
        alike = f"{exceeding:.0f} of {count:.0f} {clean} score as high"
        found = "as trojaned shadow networks do"
        if self.two_sided:
            found = "unlike clean networks"
            alike = f"{exceeding:.0f} of {count:.0f} {clean} lie as far off"
        if v["score"] is None:
            level, p = WARNING, None
            message = "cannot tell: its answers to tuned queries are not finite numbers"
        elif not v["vouched"] and not least <= spread <= most:
            level, p = WARNING, None
            message = (
                f"cannot tell: its answers spread by {spread:.2g}, those of the bank's shadows by "
                f"{least:.2g} to {most:.2g}: it was trained in another way; calibrate the bank with clean "
                "networks of its kind (backsweep bank calibrate)"
            )
        elif 1 / (1 + count) > alpha:
            level = WARNING
            message = (
                f"cannot tell: among {count:.0f} {clean} no p-value is below {1 / (1 + count):.3g}; make a "
                f"larger bank, or ask for a higher alpha than {alpha:.3g}"
            )
        elif p is not None and p <= alpha:
            level, message = ERROR, f"answers tuned queries {found}: {alike}"
        else:
            level, message = NOTE, f"answers tuned queries as clean networks do: {alike}"
        return Finding(
            self.code, self.name, level, message, score=score, p_value=p,
            details={
                "null": f"{count:.0f} {clean} of its bank", "trojaned_below": v.get("trojaned_below"),
                "variant": self.variant, "two_sided": self.two_sided, "shadows": float(v.get("shadows") or 0),
            },
        )  # fmt: skip
